"""Which documents are read, and what a protocol makes of them."""

import json
import random

import pytest

from tests import tiny
from tttnn.corpus import choice
from tttnn.corpus import documents
from tttnn.corpus import tasks
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
  assert texts_of(spec, tasks='Pile*', limit=2) == ['0', '1']
  assert texts_of(spec, tasks='Other,*A') == ['0', '2', '3']
  with pytest.raises(ValueError, match='none of the 4 documents'):
    texts_of(spec, tasks='pile*')


def texts_of(spec, **fields):
  return [d.text for d in documents.read(spec, choice.Choice(**fields))]


# As the Pile's paper and its mirrors write them, one a task, in order.
SPELLINGS = (
  'arXiv',
  'Book Corpus 2',
  'books3',
  'Math: DM Mathematics',
  'Enron',
  'Europarl',
  'Free Law',
  'GitHub',
  'Project Gutenberg',
  'Hacker News',
  'NIH ExPORTER',
  'Open Subtitles',
  'Open WebText 2',
  'Phil Papers',
  'Pile CC',
  'Pubmed Abstracts',
  'Pubmed Central',
  'Stack Exchange',
  'UbuntuIRC',
  'USPTO',
  'wikipedia (EN)',
  'YouTubeSubtitles',
)


def pile(path, counts):
  """A file of (domain, count): texts 'domain 0', 'domain 1', ..., in turns."""
  return write(
    path,
    *(
      {'text': f'{domain} {i}', 'meta': {'pile_set_name': domain}}
      for i in range(max(n for _, n in counts))
      for domain, n in counts
      if i < n
    ),
  )


@pytest.mark.parametrize('first', [0, 1])
def test_tasks_of_the_pile_are_drawn_under_either_spelling(tmp_path, first):
  own = [task.domain for task in tasks.TASKS]
  mixed = [
    ((own[i], SPELLINGS[i])[(i + first) % 2], 5 + i) for i in range(len(own))
  ]
  spec = pile(tmp_path / 'a.jsonl', [('Ours', 9), *reversed(mixed)])
  found = documents.read(spec, choice.Choice('pile_all', portion=0.2))
  expected = []
  for domain, n in mixed:
    texts = [f'{domain} {i}' for i in range(n)]
    random.Random(1216).shuffle(texts)
    expected += texts[: int(0.2 * n)]
  assert [d.text for d in found] == expected
  assert list(dict.fromkeys(d.task for d in found)) == own
  # The id is the line, which is where the text stands.
  with open(spec, encoding='utf-8') as file:
    lines = file.readlines()
  for document in found:
    assert json.loads(lines[document.doc_id])['text'] == document.text


def test_a_domain_is_found_as_its_file_writes_it(tmp_path):
  spec = pile(tmp_path / 'a.jsonl', [('GitHub', 2), ('StackExchange', 1)])
  assert texts_of(spec, tasks='GitHub') == ['GitHub 0', 'GitHub 1']
  assert texts_of(spec, tasks='Github') == ['GitHub 0', 'GitHub 1']
  assert texts_of(spec, tasks='Stack Exchange') == ['StackExchange 0']
  assert texts_of(spec, tasks='Git*', limit=1) == ['GitHub 0']


def test_processes_share_the_documents(tmp_path):
  spec = pile(tmp_path / 'a.jsonl', [('ArXiv', 7), ('Ours', 5)])
  for fields in ({}, {'tasks': 'pile_arxiv,Ours'}, {'limit': 6}):
    everything = texts_of(spec, **fields)
    parts = [
      texts_of(spec, rank=rank, world_size=3, **fields) for rank in range(3)
    ]
    assert sorted(sum(parts, [])) == sorted(everything)
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
  with pytest.raises(ValueError, match='eval.rank=12 of eval.world_size=13'):
    texts_of(spec, rank=12, world_size=13)


def test_missing_tasks_are_named_with_their_domain(tmp_path):
  spec = pile(tmp_path / 'a.jsonl', [('ArXiv', 7), ('Enron', 4)])
  with pytest.raises(
    ValueError, match=r'no document of pile_books3 \(Books3\), pile_uspto \(US'
  ):
    texts_of(spec, tasks='pile_arxiv,pile_books3,pile_upsto')
  with pytest.raises(ValueError, match=r'0.2 leaves .* pile_enron \(4 doc'):
    texts_of(spec, tasks='pile_*', portion=0.2)
  allowed = {'missing_tasks': 'allow', 'portion': 0.2}
  assert texts_of(spec, tasks='pile_all', **allowed) == ['ArXiv 2']
  with pytest.raises(ValueError, match='eval.portion=0.2 leave no document'):
    texts_of(spec, tasks='pile_enron', **allowed)
  with pytest.raises(ValueError, match='none of the 11 documents'):
    texts_of(spec, tasks='pile_books3', missing_tasks='allow')


def test_a_domain_is_a_string_or_absent(tmp_path):
  spec = write(tmp_path / 'a.jsonl', {'text': 'a', 'meta': None})
  assert documents.read(spec)[0].task == documents.UNLABELLED
  meta = {'pile_set_name': None}
  spec = write(tmp_path / 'a.jsonl', {'text': 'a', 'meta': meta})
  assert documents.read(spec)[0].task == documents.UNLABELLED
  meta = {'pile_set_name': ['a']}
  spec = write(tmp_path / 'a.jsonl', {'text': 'a', 'meta': meta})
  with pytest.raises(
    ValueError, match=r"a.jsonl:1: meta.pile_set_name \['a'\]"
  ):
    documents.read(spec)


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
