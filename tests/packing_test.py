"""Packed rows: every block once an epoch, a function of seed and step."""

import gzip
import os

import numpy as np
import pytest

from tests import tiny
from tttnn.corpus import packing
from tttnn.corpus import tokenizer as tokenizer_lib


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokenizer_lib.train(
    tiny.documents(100),
    str(tmp_path_factory.mktemp('tokenizer')),
    vocab_size=300,
    kind='gpt2',
  )


def counted(*sizes, window=0):
  """Pieces of so many tokens, numbered through."""
  tokens = np.arange(sum(sizes), dtype=np.int32)
  return packing.Stream(np.split(tokens, np.cumsum(sizes)[:-1]), 1, '', window)


def tokens_of(stream):
  return np.concatenate(list(stream.pieces))


def encoded(tokenizer, texts):
  """With the separator 0, one text at a time."""
  return [
    token
    for text in texts
    for token in (*tokenizer_lib.encode(tokenizer, [text])[0], 0)
  ]


@pytest.mark.parametrize('workers', [1, 2])
def test_pieces_are_the_documents_with_separators(tmp_path, tokenizer, workers):
  texts = tiny.documents(300) + ['ß "quoted" \n line', '']
  # The second file does not end with a newline.
  spec = tiny.write_jsonl(tmp_path / 'a.jsonl', texts[:200])
  with open(spec, 'rb') as file:
    size = len(file.read())
  rest = tiny.write_jsonl(tmp_path / 'b.jsonl', texts[200:])
  os.truncate(rest, os.path.getsize(rest) - 1)
  stream = packing.pack(
    tokenizer,
    0,
    f'{spec},{rest}',
    str(tmp_path / 'tokens' / 'train'),
    workers=workers,
    # Bounds of pieces fall into lines, and one on the beginning of a line.
    piece_bytes=size // 7,
  )
  assert len(stream.pieces) > 8
  np.testing.assert_array_equal(tokens_of(stream), encoded(tokenizer, texts))
  assert stream.documents == 302
  assert stream.pieces[0].dtype == np.uint16
  stream.close()


def test_bounds_between_lines_lose_nothing(tmp_path, tokenizer):
  # All lines are 17 bytes: each bound is one of a line, or is not.
  texts = [f'{i:04}' for i in range(20)]
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(f'{{"text": "{text}"}}\n' for text in texts))
  assert path.stat().st_size == 340
  for size in (15, 16, 17, 34, 100, 339, 340):
    stream = packing.pack(
      tokenizer, 0, str(path), str(tmp_path / f'{size}'), piece_bytes=size
    )
    assert len(stream.pieces) == -(-340 // size)
    np.testing.assert_array_equal(tokens_of(stream), encoded(tokenizer, texts))
    assert stream.documents == 20


def test_compressed_and_malformed_corpora(tmp_path, tokenizer):
  texts = ['one two', 'three', 'four']
  spec = tiny.write_jsonl(tmp_path / 'a.jsonl', texts)
  with open(spec, 'rb') as file:
    lines = file.readlines()
  lines.insert(1, b'{"text": 1}\n')
  (tmp_path / 'b.jsonl').write_bytes(b''.join(lines))
  with gzip.open(tmp_path / 'b.jsonl.gz', 'wb') as file:
    file.writelines(lines)
  directory = str(tmp_path / 'tokens')
  # The plain one in pieces: the second has the line.
  for name, size in (('b.jsonl', 60), ('b.jsonl.gz', 60), ('b.jsonl', 10**9)):
    options = {'piece_bytes': size}
    path = str(tmp_path / name)
    with pytest.raises(ValueError, match=rf'/{name}:2: "text" must be'):
      packing.pack(tokenizer, 0, path, directory, **options)
    stream = packing.pack(
      tokenizer, 0, path, directory, on_error='skip', **options
    )
    np.testing.assert_array_equal(tokens_of(stream), encoded(tokenizer, texts))
    assert stream.documents == 3
  with gzip.open(path := str(tmp_path / 'c.jsonl.gz'), 'wb') as file:
    file.writelines(lines[1:2])
  with pytest.raises(ValueError, match=r'corpus is empty: .*c\.jsonl\.gz'):
    packing.pack(tokenizer, 0, path, directory, on_error='skip')


def test_pieces_are_kept_until_the_corpus_changes(tmp_path, tokenizer):
  directory = tmp_path / 'tokens'

  def pack():
    stream = packing.pack(tokenizer, 0, f'{tmp_path}/*.jsonl', str(directory))
    times = {path.stat().st_mtime_ns for path in directory.glob('*.tokens')}
    return stream.digest, times

  tiny.write_jsonl(tmp_path / 'a.jsonl', ['one two', 'three'])
  first = pack()
  # The same text, as a copy elsewhere has another time.
  tiny.write_jsonl(tmp_path / 'a.jsonl', ['one two', 'three'])
  assert pack() == first
  tiny.write_jsonl(tmp_path / 'b.jsonl', ['four'])
  digest, times = pack()
  assert digest != first[0]
  assert times > first[1]
  tiny.write_jsonl(tmp_path / 'b.jsonl', ['five'])
  assert pack()[0] not in (digest, first[0])


def test_training_begins_before_all_is_tokenized(tmp_path, tokenizer):
  texts = tiny.documents(400)
  for i in range(8):
    tiny.write_jsonl(tmp_path / f'{i}.jsonl', texts[50 * i : 50 * i + 50])
  directory = tmp_path / 'tokens'
  stream = packing.pack(
    tokenizer, 0, f'{tmp_path}/*.jsonl', str(directory), window=2, seed=5
  )
  stream.close()  # What is not there now will not be.
  made = len(list(directory.glob('*.tokens')))
  assert 2 <= made < 8
  assert 100 <= stream.documents == 400
  how = {'rows': 4, 'length': 10, 'overlap': 1, 'seed': 5}
  early = packing.batch(stream, 0, **how)
  with pytest.raises(InterruptedError, match='is not tokenized'):
    packing.batch(stream, 10**6, **how)
  # The rows are those that come when everything is there.
  whole = packing.pack(
    tokenizer, 0, f'{tmp_path}/*.jsonl', str(directory), window=2, seed=5
  )
  packing.batch(whole, 10**3, **how)
  np.testing.assert_array_equal(packing.batch(whole, 0, **how), early)


def test_a_line_that_no_worker_can_read_is_an_error_when_it_is_due(
  tmp_path, tokenizer
):
  for i in range(4):
    tiny.write_jsonl(tmp_path / f'{i}.jsonl', ['a b c ' * 20])
  (tmp_path / '2.jsonl').write_text('no JSON\n')
  with pytest.raises(ValueError, match=r'2\.jsonl:1: malformed JSON'):
    packing.pack(
      tokenizer, 0, f'{tmp_path}/*.jsonl', str(tmp_path / 'tokens'), workers=2
    )


def test_windows_mix_their_pieces_alone():
  sizes = [40, 3, 70, 25, 61, 58, 90]
  stream = counted(*sizes, window=3)
  ends = np.cumsum(sizes)
  rows = [
    row
    for step in range(30)
    for row in packing.batch(stream, step, rows=3, length=5, overlap=1, seed=9)
  ]
  position = 0
  for epoch in range(2):
    windows = stream.windows(9, epoch)
    assert sorted(sum(windows, [])) == list(range(7))
    for members in windows:
      # By the definition: the pieces one after another, cut into blocks.
      flat = np.concatenate([stream.pieces[m] for m in members])
      blocks = {
        tuple(flat[begin : begin + 6]) for begin in range(0, len(flat) - 5, 5)
      }
      found = rows[position : position + len(blocks)]
      wanted = {block for block in blocks}
      assert len(found) < len(blocks) or {tuple(r) for r in found} == wanted
      assert {tuple(r) for r in found} <= wanted
      position += len(blocks)
  assert position > 90 > len(ends)
  assert stream.windows(9, 0) != stream.windows(9, 1)
  assert stream.windows(9, 0) != stream.windows(8, 0)


def test_an_epoch_visits_every_block_once():
  stream = counted(50, 1, 0, 23, 27)
  rows = [
    row
    for step in range(5)
    for row in packing.batch(stream, step, rows=4, length=10, overlap=1, seed=3)
  ]
  first, second = rows[:10], rows[10:]
  for epoch in (first, second):
    assert sorted(row[0] for row in epoch) == list(range(0, 100, 10))
  assert [row[0] for row in first] != [row[0] for row in second]
  for row in rows:
    np.testing.assert_array_equal(row, np.arange(row[0], row[0] + 11))


def test_batches_are_a_function_of_seed_and_step():
  def batch(step, seed):
    return packing.batch(
      counted(1000), step, rows=4, length=10, overlap=0, seed=seed
    )

  late = batch(70, 0)
  batch(0, 0)
  np.testing.assert_array_equal(batch(70, 0), late)
  assert (batch(70, 1) != late).any()


def test_a_corpus_shorter_than_a_row_is_refused():
  with pytest.raises(ValueError, match='10 tokens, a row needs 11'):
    packing.batch(counted(4, 6), 0, rows=1, length=10, overlap=1, seed=0)
