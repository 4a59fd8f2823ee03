"""Test documents, and what a protocol lets be queried and scored of them."""

from collections.abc import Iterator
import dataclasses
import re

from tttnn.corpus import choice as choice_lib
from tttnn.corpus import jsonl
from tttnn.corpus import tasks as tasks_lib
from tttnn.corpus import tokenizer as tokenizer_lib

UNLABELLED = 'unlabelled'


@dataclasses.dataclass(frozen=True)
class Document:
  """A test document.

  Attributes:
    doc_id: as given, else the 0-based line number over all files.
    task: its domain, `meta.pile_set_name`; one of the Pile's by its canonical
      name.
    text: all of it.
  """

  doc_id: str | int
  task: str
  text: str


@dataclasses.dataclass(frozen=True)
class Case:
  """A document under a protocol.

  Attributes:
    document: where it comes from.
    query: the text that is embedded and looked up.
    text: the text that is scored.
    tokens: of the scored text, without special tokens.
    num_bytes: UTF-8 bytes of the scored text.
    num_words: pieces of the scored text between runs of white space; blanks at
      either end add an empty piece.
  """

  document: Document
  query: str
  text: str
  tokens: list[int]
  num_bytes: int
  num_words: int


def read(
  spec: str, choice: choice_lib.Choice = choice_lib.ALL
) -> list[Document]:
  """The chosen documents of the files `spec`, in the order of evaluation.

  Raises:
    ValueError: for what `jsonl` refuses, a domain that is not a string, a
      doc_id that comes twice or is not a string or integer, a task that is
      missing, or a choice that leaves nothing.
  """
  wanted, seen = [], {}
  for document, place in _documents(spec):
    if document.doc_id in seen:
      raise ValueError(
        f'{place}: doc_id {document.doc_id!r} was used before, '
        f'at {seen[document.doc_id]}'
      )
    seen[document.doc_id] = place
    if len(wanted) < choice.most and choice.wants(document.task):
      wanted.append(document)
  positions = choice_lib.choose(choice, [d.task for d in wanted])
  if not wanted:
    raise ValueError(
      f'none of the {len(seen)} documents of {spec} is of '
      f'eval.tasks={choice.tasks!r}'
    )
  if not positions:
    raise ValueError(
      f'{spec}: eval.tasks={choice.tasks!r} and eval.portion={choice.portion} '
      f'leave no document for eval.rank={choice.rank} of '
      f'eval.world_size={choice.world_size}'
    )
  return [wanted[i] for i in positions]


def apply_protocol(
  document: Document, tokenizer, *, protocol: str, prefix: int
) -> Case:
  """Decides what is queried and what is scored.

  whole: the document is both. split (Hardt & Sun 2024, section 4): its first
  `prefix` tokens are the query if it has at least twice as many, else its
  first half; the rest is scored, without the query as context. Both parts are
  decoded and encoded again, so bytes and words are those of the decoded text.

  Raises:
    ValueError: for another protocol.
  """
  if protocol == 'whole':
    tokens = tokenizer_lib.encode(tokenizer, [document.text])[0]
    return _case(document, document.text, document.text, tokens)
  if protocol != 'split':
    raise ValueError(f'eval.protocol={protocol!r} is not whole or split')
  tokens = tokenizer_lib.encode(tokenizer, [document.text])[0]
  cut = prefix if len(tokens) >= 2 * prefix else len(tokens) // 2
  query = tokenizer_lib.decode(tokenizer, tokens[:cut])
  scored = tokenizer_lib.decode(tokenizer, tokens[cut:])
  tokens = tokenizer_lib.encode(tokenizer, [scored])[0]
  return _case(document, query, scored, tokens)


def _case(document, query: str, scored: str, tokens: list[int]) -> Case:
  return Case(
    document=document,
    query=query,
    text=scored,
    tokens=tokens,
    num_bytes=len(scored.encode()),
    num_words=len(re.split(r'\s+', scored)),
  )


def _documents(spec: str) -> Iterator[tuple[Document, str]]:
  number = 0
  for path in jsonl.expand(spec):
    for row, record in jsonl.records(path):
      place = f'{path}:{row + 1}'
      doc_id = record.get('doc_id', number)
      if isinstance(doc_id, bool) or not isinstance(doc_id, (str, int)):
        raise ValueError(
          f'{place}: doc_id {doc_id!r} is neither a string nor an integer'
        )
      meta = record.get('meta') or {}
      domain = meta.get('pile_set_name')
      domain = UNLABELLED if domain is None else domain
      if not isinstance(domain, str):
        raise ValueError(
          f'{place}: meta.pile_set_name {domain!r} is not a string'
        )
      task = tasks_lib.canonical(domain)
      yield Document(doc_id, task, record['text']), place
      number += 1
