"""Neighbours written to a file and read back."""

import gzip
import json
import os

import pytest

from tttnn.corpus import jsonl
from tttnn.datastore import replay
from tttnn.datastore import retrieve

NEIGHBORS = retrieve.Neighbors(
  [
    retrieve.Neighbor(3, 0.25, 'nearest\u2028 \U0001f600'),
    retrieve.Neighbor(1, 1.5, ''),
  ]
)


def no_corpus():
  raise AssertionError('the store must not be opened')


def write(path, *records):
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  return str(path)


def test_what_was_saved_is_replayed_without_a_store(tmp_path):
  path = str(tmp_path / 'deep' / 'neighbors.jsonl')
  saver = replay.Saver(path, [])
  saver.append('a', NEIGHBORS)
  saver.append(7, retrieve.Neighbors())
  saver.close()
  read = replay.Replay(path, no_corpus)
  read.require(['a', 7])
  assert read('a', 5) == NEIGHBORS
  assert read('a', 1) == NEIGHBORS[:1]
  assert read(7, 5) == []


def test_a_compressed_file_is_replayed(tmp_path):
  path = write(
    tmp_path / 'n.jsonl',
    *({'doc_id': i, 'neighbors': [{'id': i, 'distance': 1}]} for i in range(9)),
  )
  with open(path, 'rb') as file, gzip.open(f'{path}.gz', 'wb') as packed:
    packed.write(file.read())
  corpus_path = write(
    tmp_path / 'c.jsonl', *({'text': str(i)} for i in range(9))
  )
  before = sorted(os.listdir(tmp_path))
  read = replay.Replay(f'{path}.gz', lambda: jsonl.read([corpus_path]))
  for i in (8, 0, 4):
    assert read(i, 5) == [retrieve.Neighbor(i, 1.0, str(i))]
  assert sorted(os.listdir(tmp_path)) == before


def test_saving_goes_on_after_the_documents_that_are_done(tmp_path):
  path = str(tmp_path / 'n.jsonl')
  saver = replay.Saver(path, [])
  for doc_id in ('a', 'b'):  # b was saved, but its row never written.
    saver.append(doc_id, NEIGHBORS)
  saver.close()
  with open(path, 'a') as file:
    file.write('{"doc_id": "c", "neigh')
  saver = replay.Saver(path, ['a'])
  saver.append('b', retrieve.Neighbors(NEIGHBORS[:1]))
  saver.close()
  read = replay.Replay(path, no_corpus)
  assert read('a', 5) == NEIGHBORS
  assert read('b', 5) == NEIGHBORS[:1]
  with pytest.raises(ValueError, match="lacks 1 documents .* 'z'"):
    replay.Saver(path, ['a', 'z'])


def test_texts_come_from_the_corpus_where_the_file_has_none(tmp_path):
  corpus_path = write(tmp_path / 'c.jsonl', {'text': 'x'}, {'text': 'y'})
  path = write(
    tmp_path / 'n.jsonl',
    {'doc_id': 0, 'neighbors': [{'id': 1, 'distance': 2}]},
    {'doc_id': 1, 'neighbors': [{'id': 2, 'distance': 2}]},
    {'doc_id': 2, 'neighbors': [{'id': 99, 'distance': 2, 'text': 'own'}]},
  )
  read = replay.Replay(path, lambda: jsonl.read([corpus_path]))
  assert read(0, 1) == [retrieve.Neighbor(1, 2.0, 'y')]
  assert read(2, 1) == [retrieve.Neighbor(99, 2.0, 'own')]
  with pytest.raises(ValueError, match=r'n.jsonl:2: neighbour 2 .* 2 doc'):
    read(1, 1)


def test_a_missing_document_is_an_error(tmp_path):
  path = write(tmp_path / 'n.jsonl', {'doc_id': 0, 'neighbors': []})
  with pytest.raises(ValueError, match=r"no neighbours for doc_id '0'"):
    replay.Replay(path, no_corpus).require([0, '0'])
  with pytest.raises(ValueError, match='no such file'):
    replay.Replay(str(tmp_path / 'none.jsonl'), no_corpus)


@pytest.mark.parametrize(
  'line',
  [
    '{oops',
    '[]',
    '{"doc_id": 1}',
    '{"neighbors": []}',
    '{"doc_id": 1, "neighbors": [{"id": 1}]}',
    '{"doc_id": 1, "neighbors": [{"distance": 1}]}',
    '{"doc_id": 1, "neighbors": [{"id": null, "distance": 1}]}',
    '{"doc_id": 1, "neighbors": [{"id": 1, "distance": 1, "text": 5}]}',
    '{"doc_id": 0, "neighbors": []}',
  ],
)
def test_bad_lines_are_refused_with_their_place(tmp_path, line):
  path = tmp_path / 'n.jsonl'
  path.write_text('{"doc_id": 0, "neighbors": []}\n' + line + '\n')
  with pytest.raises(ValueError, match=r'n.jsonl:2: '):
    replay.Replay(str(path), no_corpus)
