"""Which documents are read, and what a protocol makes of them."""

import json

import pytest

from tests import tiny
from tttnn.corpus import documents
from tttnn.corpus import tokenizer as tokenizer_lib


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokenizer_lib.train(
    tiny.documents(100),
    str(tmp_path_factory.mktemp('tokenizer')),
    vocab_size=300,
    kind='gpt2',
  )


def write(path, *records):
  path.write_text(
    ''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8'
  )
  return str(path)


def split(tokenizer, text, prefix):
  document = documents.Document('x', 'prose', text)
  return documents.apply_protocol(
    document, tokenizer, protocol='split', prefix=prefix
  )


def test_ids_tasks_and_order_are_kept(tmp_path):
  spec = write(
    tmp_path / 'a.jsonl',
    {'text': 'one', 'meta': {'pile_set_name': 'A'}},
    {'text': 'two', 'doc_id': 'second'},
    {'text': 'three', 'doc_id': 7, 'meta': {'pile_set_name': 'B'}},
  )
  found = documents.read(spec)
  assert [d.doc_id for d in found] == [0, 'second', 7]
  assert [d.task for d in found] == ['A', documents.UNLABELLED, 'B']


def test_tasks_and_limit_choose(tmp_path):
  records = [
    {'text': str(i), 'meta': {'pile_set_name': name}}
    for i, name in enumerate(['Pile A', 'Pile B', 'Other', 'Pile A'])
  ]
  spec = write(tmp_path / 'a.jsonl', *records)
  texts = [d.text for d in documents.read(spec, tasks='Pile*', limit=2)]
  assert texts == ['0', '1']
  texts = [d.text for d in documents.read(spec, tasks='Other,*A')]
  assert texts == ['0', '2', '3']
  with pytest.raises(ValueError, match='none of the 4 documents'):
    documents.read(spec, tasks='pile*')


@pytest.mark.parametrize(
  ('records', 'message'),
  [
    ([{'text': 'a', 'doc_id': 1}, {'text': 'b'}], r'a.jsonl:2: doc_id 1 .*:1'),
    ([{'text': 'a', 'doc_id': [1]}], r'a.jsonl:1: doc_id \[1\]'),
    ([{'text': 'a', 'doc_id': True}], r'a.jsonl:1: doc_id True'),
  ],
)
def test_bad_ids_are_refused_with_their_line(tmp_path, records, message):
  with pytest.raises(ValueError, match=message):
    documents.read(write(tmp_path / 'a.jsonl', *records))


def test_whole_queries_and_scores_the_document(tokenizer):
  text = ' quick brown  fox\n'
  document = documents.Document(0, 'prose', text)
  case = documents.apply_protocol(
    document, tokenizer, protocol='whole', prefix=8
  )
  assert case.query == text
  assert tokenizer_lib.decode(tokenizer, case.tokens) == text
  assert case.num_bytes == len(text)
  assert case.num_words == 5  # Blanks at both ends add empty pieces.


@pytest.mark.parametrize('prefix', [4, 16])
def test_split_cuts_at_the_prefix_or_in_the_middle(tokenizer, prefix):
  text = tiny.documents(1)[0]
  tokens = tokenizer_lib.encode(tokenizer, [text])[0]
  for n in (2 * prefix - 1, 2 * prefix, 2 * prefix + 5):
    part = tokenizer_lib.decode(tokenizer, tokens[:n])
    count = len(tokenizer_lib.encode(tokenizer, [part])[0])
    case = split(tokenizer, part, prefix)
    cut = prefix if count >= 2 * prefix else count // 2
    expected = tokenizer_lib.encode(tokenizer, [part])[0][:cut]
    assert case.query == tokenizer_lib.decode(tokenizer, expected)
    assert case.query + tokenizer_lib.decode(tokenizer, case.tokens) == part
    assert len(case.query.encode()) + case.num_bytes == len(part.encode())


def test_split_of_next_to_nothing(tokenizer):
  empty = split(tokenizer, '', 4)
  assert (empty.query, empty.tokens, empty.num_bytes) == ('', [], 0)
  assert empty.num_words == 1
  one = split(tokenizer, 'a', 4)
  assert (one.query, len(one.tokens), one.num_bytes) == ('', 1, 1)


def test_unknown_protocol_is_refused(tokenizer):
  document = documents.Document(0, 'prose', 'text')
  with pytest.raises(ValueError, match="'half'"):
    documents.apply_protocol(document, tokenizer, protocol='half', prefix=4)
