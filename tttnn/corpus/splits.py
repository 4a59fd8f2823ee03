"""Train, validation and test of a corpus, so that none holds another's text.

Whole units (a module, a book, a site) go to one split, and what overlaps
held-out text all the same is left out: a test document's neighbours are then
like it, but never it. Lee et al., "Deduplicating training data makes language
models better" (ACL 2022), measure what it costs not to.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import hashlib
import itertools
import math
import operator
import re
from typing import Any

SPLITS = ('train', 'validation', 'test')

# Validation and test take this share of a domain's units each, but _UNITS of
# them, so that a small domain is tested on several, up to _MOST_SHARE.
_SHARE, _UNITS, _MOST_SHARE = 0.05, 12, 0.15
# Documents of a domain that validation and test keep whatever max_bytes is.
_DOCUMENTS = 12

# Two texts overlap where _RUN words in a row agree, however they are wrapped or
# marked up. Looking at every _STEP-th run of one and all runs of the other
# finds each common run of _RUN + _STEP - 1 words.
_RUN, _STEP = 24, 8

_TEXT = operator.attrgetter('text')


@dataclasses.dataclass(frozen=True)
class Document:
  """A piece of text.

  Attributes:
    text: the text.
    domain: what kind of text it is.
    source: where it is from, for people: a file or name, and which part of it.
    unit: what goes to one split as a whole. Domains share units: a module's
      source, docstrings and tests are one.
  """

  text: str
  domain: str
  source: str
  unit: str

  @property
  def num_bytes(self) -> int:
    return len(self.text.encode())


def drop_small_domains(
  documents: Iterable[Document], left_out: collections.Counter
) -> list[Document]:
  """Leaves out the domains of fewer than 12 units: too few to split.

  Args:
    documents: all of them.
    left_out: counts what is left out.
  """
  documents = list(documents)
  pairs = {(document.domain, document.unit) for document in documents}
  units = collections.Counter(domain for domain, _ in pairs)
  kept = [doc for doc in documents if units[doc.domain] >= _UNITS]
  left_out['domain of few units'] += len(documents) - len(kept)
  return kept


def assign(documents: Iterable[Document], seed: int) -> dict[str, str]:
  """Decides which split each unit goes to.

  In the order of a hash, a domain's first units go to test, its next ones to
  validation. A unit held out for one domain is held out in all.

  Returns:
    {unit: split}.
  """
  units = collections.defaultdict(set)
  for document in documents:
    units[document.domain].add(document.unit)
  sides = {}
  for side in ('test', 'validation'):
    for domain in sorted(units):
      size = len(units[domain])
      wanted = max(_SHARE * size, min(_UNITS, _MOST_SHARE * size))
      wanted -= sum(sides.get(unit) == side for unit in units[domain])
      free = _shuffled(units[domain] - sides.keys(), seed)
      for unit in free[: max(0, math.ceil(wanted))]:
        sides[unit] = side
  train = dict.fromkeys(set().union(*units.values()), 'train')
  return train | sides


def separate(
  documents: Iterable[Document],
  sides: dict[str, str],
  left_out: collections.Counter,
) -> dict[str, list[Document]]:
  """Parts the documents by split, leaving out what they have in common.

  No text comes twice, white space aside, and no document of validation or test
  has 31 words in a row in common with any other document. Test keeps what two
  have, then validation.

  Args:
    documents: all of them.
    sides: the split of every unit.
    left_out: counts what is left out.

  Returns:
    {split: documents}.
  """
  parts = {side: [] for side in SPLITS}
  for document in documents:
    parts[sides[document.unit]].append(document)
  texts, held_out = set(), set()
  for side in reversed(SPLITS):
    kept = []
    for document in parts[side]:
      text = ''.join(document.text.split())
      if text in texts:
        left_out['duplicate'] += 1
      elif not held_out.isdisjoint(_runs(document.text, _STEP)):
        left_out['overlaps held-out text'] += 1
      else:
        kept.append(document)
        texts.add(text)
        if side != 'train':
          held_out |= _runs(document.text)
    parts[side] = kept
  return parts


def _runs(text: str, step: int = 1) -> set[int]:
  """Hashes of the runs of _RUN words, from every step-th word on."""
  words = re.findall(r'\w+', text)
  begins = range(0, len(words) - _RUN + 1, step)
  return {hash(tuple(words[begin : begin + _RUN])) for begin in begins}


def limit(
  parts: dict[str, list[Document]], max_bytes: int, seed: int
) -> dict[str, list[Document]]:
  """Takes equal parts of the domains, and puts the documents into order.

  Args:
    parts: {split: documents}.
    max_bytes: at most so much UTF-8 text in train, of whole units and in about
      equal parts from the domains; validation and test shrink alike, but keep
      12 documents a domain. 0 = everything.
    seed: orders units, and documents inside them.

  Returns:
    {split: documents}: train shuffled; the others in turn from all domains, so
    that their first few documents are some of each.

  Raises:
    ValueError: max_bytes is too small for a unit of each domain.
  """
  limited = {}
  for side in SPLITS:
    train = side == 'train'
    take = _whole_units if train else _some_documents
    total = max_bytes if train else math.ceil(_SHARE * max_bytes)
    taken = []
    for domain, budget in _budgets(parts[side], total).items():
      own = [document for document in parts[side] if document.domain == domain]
      taken.append(list(take(_by_unit(own, seed), budget)))
      if not taken[-1]:
        raise ValueError(
          f'max_bytes is {max_bytes}, which gives {domain!r} {budget}: none of '
          'its units is so small'
        )
    limited[side] = list(_in_turn(taken))
  limited['train'] = _shuffled(limited['train'], seed, _TEXT)
  return limited


def _by_unit(documents: list[Document], seed: int) -> list[list[Document]]:
  """One list a unit; the units, and the documents of each, in hash order."""
  units = collections.defaultdict(list)
  for document in _shuffled(documents, seed, _TEXT):
    units[document.unit].append(document)
  return [units[unit] for unit in _shuffled(units, seed)]


def _budgets(documents: list[Document], total: int) -> dict[str, int]:
  """Each domain's part of the bytes; what one has not goes to the others."""
  sizes = collections.Counter()
  for document in documents:
    sizes[document.domain] += document.num_bytes
  total = total or sizes.total()
  budgets = {}
  for domain in sorted(sizes, key=lambda domain: (sizes[domain], domain)):
    budgets[domain] = min(sizes[domain], total // (len(sizes) - len(budgets)))
    total -= budgets[domain]
  return budgets


def _whole_units(
  units: list[list[Document]], budget: int
) -> Iterator[Document]:
  """The documents of the units that fit, first come first served."""
  for documents in units:
    size = sum(document.num_bytes for document in documents)
    if size <= budget:
      budget -= size
      yield from documents


def _some_documents(
  units: list[list[Document]], budget: int
) -> Iterator[Document]:
  """Documents from all units in turn, while they fit or are too few."""
  for count, document in enumerate(_in_turn(units)):
    budget -= document.num_bytes
    if budget < 0 and count >= _DOCUMENTS:
      return
    yield document


def _in_turn(lists: Iterable[list[Document]]) -> Iterator[Document]:
  return filter(None, itertools.chain(*itertools.zip_longest(*lists)))


def _shuffled(
  items: Iterable[Any], seed: int, name: Callable[[Any], str] = str
) -> list[Any]:
  """The items in the order of a hash of their names."""

  def digest(item: Any) -> bytes:
    return hashlib.sha256(f'{seed}:{name(item)}'.encode()).digest()

  return sorted(items, key=digest)
