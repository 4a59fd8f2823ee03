"""Packed rows: every block once an epoch, a function of seed and step."""

import gzip

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


def counted(n):
  return packing.Stream(np.arange(n, dtype=np.int32), 1, '')


def test_stream_is_the_documents_with_separators(tmp_path, tokenizer):
  texts = tiny.documents(300)
  spec = tiny.write_jsonl(tmp_path / 'a.jsonl', texts)
  stream = packing.pack(tokenizer, 0, spec, str(tmp_path / 'tokens' / 'train'))
  expected = []
  for text in texts:
    expected += [*tokenizer_lib.encode(tokenizer, [text])[0], 0]
  np.testing.assert_array_equal(stream.tokens, expected)
  assert stream.documents == 300


def test_compressed_and_malformed_corpora(tmp_path, tokenizer):
  texts = ['one two', 'three', 'four']
  spec = tiny.write_jsonl(tmp_path / 'a.jsonl', texts)
  plain = packing.pack(tokenizer, 0, spec, str(tmp_path / 'tokens' / 'plain'))
  with open(spec, 'rb') as file:
    lines = file.readlines()
  lines.insert(1, b'{"text": 1}\n')
  packed = str(tmp_path / 'b.jsonl.gz')
  with gzip.open(packed, 'wb') as file:
    file.writelines(lines)
  path = str(tmp_path / 'tokens' / 'packed')
  with pytest.raises(ValueError, match=r'b\.jsonl\.gz:2: "text" must be'):
    packing.pack(tokenizer, 0, packed, path)
  found = packing.pack(tokenizer, 0, packed, path, on_error='skip')
  assert (found.digest, found.documents) == (plain.digest, 3)
  with gzip.open(packed, 'wb') as file:
    file.writelines(lines[1:2])
  with pytest.raises(ValueError, match=r'corpus is empty: .*b\.jsonl\.gz'):
    packing.pack(tokenizer, 0, packed, path, on_error='skip')


def test_stream_is_kept_until_the_corpus_changes(tmp_path, tokenizer):
  path = str(tmp_path / 'tokens' / 'train')
  spec = tiny.write_jsonl(tmp_path / 'a.jsonl', ['one two', 'three'])
  first = packing.pack(tokenizer, 0, spec, path)
  before = (tmp_path / 'tokens' / 'train.tokens').stat().st_mtime_ns
  packing.pack(tokenizer, 0, spec, path)
  assert (tmp_path / 'tokens' / 'train.tokens').stat().st_mtime_ns == before
  tiny.write_jsonl(tmp_path / 'a.jsonl', ['one two', 'three', 'four'])
  assert packing.pack(tokenizer, 0, spec, path).digest != first.digest


def test_an_epoch_visits_every_block_once():
  stream = counted(101)
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
    packing.batch(counted(10), 0, rows=1, length=10, overlap=1, seed=0)
