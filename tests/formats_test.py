"""Corpora in every format: the same lines, and errors that say where."""

import bz2
import gzip
import json
import os
import threading
import time

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from tttnn.corpus import documents
from tttnn.corpus import formats
from tttnn.corpus import jsonl
from tttnn.corpus import sample
from tttnn.corpus import seekable

TEXTS = ['plain', '', 'ä€😀', 'line\nbreak', '\u2028 \x85', ' ', 'x' * 300_000]
KINDS = ('jsonl', 'jsonl.zst', 'jsonl.gz', 'parquet')


def write(path, texts, kind, end=b'\n', meta=None):
  """Writes by other code than what reads; returns path + its ending."""
  path = f'{path}.{kind}'
  if kind == 'parquet':
    columns = {'other': list(range(len(texts))), 'text': texts}
    if meta is not None:
      columns['meta'] = [meta] * len(texts)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path
  lines = [{'text': t} | ({'meta': meta} if meta else {}) for t in texts]
  data = end.join(json.dumps(line).encode() for line in lines)
  with open(path, 'wb') as file:
    file.write(pack(data, kind))
  return path


def pack(data, kind):
  if kind == 'jsonl.gz':
    return gzip.compress(data)
  if kind == 'jsonl.zst':
    return pyarrow.compress(data, 'zstd', asbytes=True)
  return data


def texts_of(path, **kwargs):
  return [record['text'] for _, record in jsonl.records(path, **kwargs)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('end', [b'\n', b'\r\n'])
def test_every_format_gives_its_texts(tmp_path, monkeypatch, kind, end):
  path = write(tmp_path / 'a', TEXTS, kind, end)
  assert texts_of(path) == TEXTS
  corpus = jsonl.read([path, write(tmp_path / 'b', ['z'], kind)])
  assert list(corpus.iter_texts()) == [*TEXTS, 'z']
  for size in (1, 7, 64):  # Lines that end anywhere in a block.
    monkeypatch.setattr(formats, '_BLOCK_BYTES', size)
    short = write(tmp_path / 'c', TEXTS[:6], kind, end)
    assert texts_of(short) == TEXTS[:6]


@pytest.mark.parametrize('kind', KINDS)
def test_test_documents_keep_what_else_is_there(tmp_path, kind):
  path = write(tmp_path / 'a', ['x', 'y'], kind, meta={'pile_set_name': 'p'})
  assert documents.read(path) == [
    documents.Document(0, 'p', 'x'),
    documents.Document(1, 'p', 'y'),
  ]


@pytest.mark.parametrize('kind', ['jsonl.zst', 'jsonl.gz'])
def test_frames_one_after_another_are_one_file(tmp_path, kind):
  path = tmp_path / f'a.{kind}'
  lines = [b'{"text": "a"}\n', b'{"text"', b': "b"}\n', b'']
  path.write_bytes(b''.join(pack(line, kind) for line in lines))
  assert texts_of(str(path)) == ['a', 'b']


@pytest.mark.parametrize('kind', ['jsonl.zst', 'jsonl.gz', 'parquet'])
def test_damaged_files_are_named(tmp_path, kind):
  rng = np.random.default_rng(0)
  texts = [str(rng.integers(0, 1 << 60)) for _ in range(500)]
  path = write(tmp_path / 'a', texts, kind)
  with open(path, 'rb') as file:
    whole = file.read()
  # Cut off in the middle, just before the end; another format altogether.
  for data in (whole[: len(whole) // 2], whole[:-1], bz2.compress(b'x' * 99)):
    with open(path, 'wb') as file:
      file.write(data)
    for on_error in ('error', 'skip'):
      with pytest.raises(ValueError, match=rf'a\.{kind} cannot be read: '):
        texts_of(path, on_error=on_error)
    with pytest.raises(ValueError, match=rf'a\.{kind} cannot be read: '):
      seekable.unpack(path, seekable.stamp(path), str(tmp_path / 'text'))
    left = [name for name in os.listdir(tmp_path / 'text')]
    assert all(name.endswith('.lock') for name in left)


def test_parquet_without_a_column_of_texts(tmp_path):
  path = str(tmp_path / 'a.parquet')
  for column, why in (
    ({'content': ['a']}, r"no \"text\" among the columns \['content'\]"),
    ({'text': [1]}, 'column "text" is int64'),
  ):
    parquet.write_table(pyarrow.table(column), path)
    with pytest.raises(ValueError, match=rf'a\.parquet: {why}'):
      texts_of(path)


def test_parquet_rows_without_a_text_are_malformed_lines(tmp_path):
  raw = pyarrow.array([b'a', None, b'\xff"', b'b'], pyarrow.binary())
  table = pyarrow.table({'text': raw.view(pyarrow.string())})
  path = str(tmp_path / 'a.parquet')
  parquet.write_table(table, path)
  assert texts_of(path, on_error='skip') == ['a', 'b']
  lines = jsonl.read([path])
  with pytest.raises(jsonl.MalformedLine, match=r'parquet:2: .* not NoneType'):
    lines.text(1)
  with pytest.raises(jsonl.MalformedLine, match=r'parquet:3: invalid UTF-8'):
    lines.text(2)
  with pytest.raises(jsonl.MalformedLine, match=r'parquet:2: '):
    texts_of(path)


@pytest.mark.parametrize('kind', ['jsonl', 'jsonl.zst', 'jsonl.gz'])
def test_malformed_lines_are_named_or_skipped(tmp_path, kind):
  path = str(tmp_path / f'a.{kind}')
  lines = [b'{"text": "a"}', b'', b'{"text": 1}', b'{"text": "b"}', b'{"te']
  with open(path, 'wb') as file:
    file.write(pack(b'\n'.join(lines), kind))
  with pytest.raises(jsonl.MalformedLine, match=rf'a\.{kind}:2: empty line'):
    texts_of(path)
  found = [(row, x['text']) for row, x in jsonl.records(path, 'skip')]
  assert found == [(0, 'a'), (3, 'b')]
  with pytest.raises(ValueError, match="on_error='ignore' is neither"):
    texts_of(path, on_error='ignore')


@pytest.mark.parametrize('kind', KINDS)
def test_a_first_look(tmp_path, monkeypatch, kind):
  rng = np.random.default_rng(0)
  letters = list('abcdefghij')
  texts = [''.join(rng.choice(letters, 200)) for _ in range(1000)]
  paths = [write(tmp_path / name, texts, kind) for name in 'ab']
  some, number = sample.look(paths, 20)
  assert number == 2000 and len(some) == 20 and set(some) <= set(texts)
  # Beyond what is looked at, the number is drawn from what has been seen.
  monkeypatch.setattr(sample, '_LOOK_BYTES', 100_000)
  monkeypatch.setattr(formats, '_BLOCK_BYTES', 1000)
  some, number = sample.look(paths, 20)
  assert set(some) <= set(texts)
  exact = kind in ('jsonl', 'parquet')
  assert number == 2000 if exact else 1000 < number < 4000
  empty = write(tmp_path / 'empty', [], 'jsonl')
  with pytest.raises(ValueError, match='corpus is empty'):
    sample.look([empty], 3)


@pytest.mark.parametrize('size', [0, 1, 65536, 65537, 1_000_000])
def test_a_stamp_sees_the_ends_and_the_size(tmp_path, size):
  path = tmp_path / 'a'
  data = bytearray(np.random.default_rng(0).bytes(size))
  path.write_bytes(data)
  before = seekable.stamp(str(path))
  assert before.bytes == size
  os.utime(path, (1, 1))
  seekable.check(str(path), before)
  for place in (0, -1) if size else ():
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='digest .* corpus has changed'):
      seekable.check(str(path), before)
    data[place] ^= 1
  path.write_bytes(data + b'!')
  message = f'{size + 1} bytes but had {size} before: the corpus has changed'
  with pytest.raises(ValueError, match=message):
    seekable.check(str(path), before)
  path.unlink()
  with pytest.raises(ValueError, match='is missing'):
    seekable.check(str(path), before)


@pytest.mark.parametrize('kind', ['jsonl.zst', 'jsonl.gz', 'parquet'])
def test_the_plain_form_is_written_once(tmp_path, monkeypatch, kind):
  path = write(tmp_path / 'a', TEXTS, kind)
  stamp = seekable.stamp(path)
  listing = sorted(os.listdir(tmp_path))
  directory = str(tmp_path / 'text' / 'deep')
  calls = []
  blocks = formats.blocks

  def slow(file):
    calls.append(file.name)
    time.sleep(0.2)
    yield from blocks(file)

  monkeypatch.setattr(formats, 'blocks', slow)
  found = []
  threads = [
    threading.Thread(
      target=lambda: found.append(seekable.unpack(path, stamp, directory))
    )
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(set(found)) == 1 and len(found) == 4 and calls == [path]
  assert os.listdir(directory) == [os.path.basename(found[0])]
  assert list(jsonl.read([found[0]]).iter_texts()) == TEXTS
  assert sorted(os.listdir(tmp_path)) == sorted([*listing, 'text'])
  # What a process left that was killed while it wrote.
  with open(found[0], 'rb') as file:
    whole = file.read()
  os.rename(found[0], f'{found[0]}.tmp')
  os.truncate(f'{found[0]}.tmp', 100)
  with open(f'{found[0]}.lock', 'wb'):
    pass
  assert seekable.unpack(path, stamp, directory) == found[0]
  assert os.listdir(directory) == [os.path.basename(found[0])]
  with open(found[0], 'rb') as file:
    assert file.read() == whole


def test_a_file_that_changes_is_not_unpacked(tmp_path, monkeypatch):
  path = write(tmp_path / 'a', ['a' * 100], 'jsonl.gz')
  stamp = seekable.stamp(path)
  directory = str(tmp_path / 'text')
  blocks = formats.blocks

  def change(file):
    yield from blocks(file)
    write(tmp_path / 'a', ['b' * 99], 'jsonl.gz')

  monkeypatch.setattr(formats, 'blocks', change)
  for _ in range(2):
    with pytest.raises(ValueError, match=r'a\.jsonl\.gz has .* has changed'):
      seekable.unpack(path, stamp, directory)
    assert all(name.endswith('.lock') for name in os.listdir(directory))
