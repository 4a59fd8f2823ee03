"""Perplexities and bits per byte of a run, a domain and neighbour count.

Every figure is micro: sums over documents first, one division last, so long
documents weigh more (Hardt & Sun, "Test-Time Training on Nearest Neighbors for
Large Language Models", ICLR 2024; the metrics are those of the LM evaluation
harness):

  word_perplexity = exp(-sum log-likelihood / sum words)
  byte_perplexity = exp(-sum log-likelihood / sum bytes)
  bits_per_byte   = -sum log-likelihood / (sum bytes * ln 2)
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from tttnn.corpus import tasks

# Domain -> percent of the Pile's bytes.
PILE_WEIGHTS = {task.domain: task.weight for task in tasks.TASKS}

# Distances below this are those of the same text, but for rounding (Hardt &
# Sun 2024, section 3).
NEAR_EXACT = 1e-4


@dataclasses.dataclass(frozen=True)
class Score:
  """Micro averages over some documents, NaN where they are not defined.

  Attributes:
    documents: how many.
    bits_per_byte: of the adapted model.
    base_bits_per_byte: of the SAME documents at 0 neighbours.
    byte_perplexity: of the adapted model.
    word_perplexity: of the adapted model.
  """

  documents: int
  bits_per_byte: float
  base_bits_per_byte: float
  byte_perplexity: float
  word_perplexity: float

  @property
  def change(self) -> float:
    """Relative change of the bits per byte; -0.1 is ten percent fewer."""
    if not self.base_bits_per_byte:
      return math.nan
    return self.bits_per_byte / self.base_bits_per_byte - 1


@dataclasses.dataclass(frozen=True)
class Curve:
  """One domain's scores.

  Attributes:
    by_count: neighbour count -> score of the documents scored at it. Documents
      with fewer neighbours are not among those of the larger counts.
    last: every document at the largest count it was scored at.
    last_counts: the smallest and the largest of those counts.
  """

  by_count: dict[int, Score]
  last: Score
  last_counts: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Table:
  """The scores of a run.

  Attributes:
    tasks: domain -> its curve, by name.
    all: the curve of all documents together.
    pile_all: the domains' bits per byte weighted by PILE_WEIGHTS, where the
      domains are exactly the Pile's; no perplexities. None elsewhere.
  """

  tasks: dict[str, Curve]
  all: Curve
  pile_all: Curve | None

  def totals(self) -> list[tuple[str, Curve]]:
    """(label, curve) of what sums the domains up, if there are several."""
    totals = [('all', self.all)] if len(self.tasks) > 1 else []
    return totals + ([('pile_all', self.pile_all)] if self.pile_all else [])

  def lines(self) -> list[tuple[str, Curve]]:
    """(label, curve) as tables list them: the domains, then the totals."""
    return list(self.tasks.items()) + self.totals()


def aggregate(rows: Iterable[Mapping]) -> Table:
  """Aggregates rows of results.jsonl; their order does not matter.

  Args:
    rows: each with task, num_bytes, num_words, at (neighbour counts) and
      log_likelihood (nats, one a count; None is NaN, and every sum it enters
      is NaN).

  Raises:
    ValueError: without rows, or if a row is without counts or has another
      number of log-likelihoods.
  """
  documents = [_document(row) for row in rows]
  if not documents:
    raise ValueError('there are no rows to aggregate')
  tasks = {}
  for document in documents:
    tasks.setdefault(document.task, []).append(document)
  curves = {task: _curve(tasks[task]) for task in sorted(tasks)}
  return Table(curves, _curve(documents), _pile_all(curves))


def has_near_duplicate(row: Mapping, share: float) -> bool:
  """Whether a neighbour that a document was given is nearly the document.

  Args:
    row: with neighbors, each with a distance and, where known, an overlap: the
      share of the document's word n-grams that it has.
    share: an overlap from which on it is. A distance below 1e-4, which an
      embedding of the same text may have by rounding, always is.
  """
  return any(
    neighbor['distance'] < NEAR_EXACT or neighbor.get('overlap', 0) >= share
    for neighbor in row['neighbors']
  )


def bits_per_byte(log_likelihood: float | None, num_bytes: int) -> float:
  """Bits per byte of `num_bytes` bytes with this log-likelihood in nats."""
  if log_likelihood is None or not num_bytes:
    return math.nan
  return -log_likelihood / (num_bytes * math.log(2))


def to_json(table: Table) -> dict:
  """The table as plain JSON values; what is not finite becomes None.

  {'all': curve, 'pile_all': curve or None, 'tasks': {domain: curve}}, a curve
  being {'last': {'at': [smallest, largest], ...}, 'by_count': [{'at', ...}]}
  with the attributes of Score.
  """
  return {
    'all': _curve_json(table.all),
    'pile_all': _curve_json(table.pile_all) if table.pile_all else None,
    'tasks': {name: _curve_json(c) for name, c in table.tasks.items()},
  }


@dataclasses.dataclass(frozen=True)
class _Document:
  task: str
  num_bytes: int
  num_words: int
  nats: dict[int, float]  # Neighbour count -> log-likelihood.


def _document(row: Mapping) -> _Document:
  at, values = row['at'], row['log_likelihood']
  if not at or len(at) != len(values):
    raise ValueError(
      f'document {row.get("doc_id")!r}: {len(values)} log-likelihoods at '
      f'{len(at)} neighbour counts'
    )
  nats = [math.nan if value is None else value for value in values]
  return _Document(
    row['task'],
    row['num_bytes'],
    row['num_words'],
    dict(zip(at, nats, strict=True)),
  )


def _curve(documents: Sequence[_Document]) -> Curve:
  by_count = {}
  for count in sorted({count for d in documents for count in d.nats}):
    reached = [(d, count) for d in documents if count in d.nats]
    by_count[count] = _score(reached)
  last = [(d, max(d.nats)) for d in documents]
  counts = [count for _, count in last]
  return Curve(by_count, _score(last), (min(counts), max(counts)))


def _score(scored: Sequence[tuple[_Document, int]]) -> Score:
  # fsum is exact, so the order in which documents finish changes no digit.
  nats = math.fsum(d.nats[count] for d, count in scored)
  base = math.fsum(d.nats.get(0, math.nan) for d, _ in scored)
  num_bytes = sum(d.num_bytes for d, _ in scored)
  num_words = sum(d.num_words for d, _ in scored)
  return Score(
    documents=len(scored),
    bits_per_byte=bits_per_byte(nats, num_bytes),
    base_bits_per_byte=bits_per_byte(base, num_bytes),
    byte_perplexity=_perplexity(nats, num_bytes),
    word_perplexity=_perplexity(nats, num_words),
  )


def _perplexity(log_likelihood: float, pieces: int) -> float:
  if not pieces:
    return math.nan
  with np.errstate(over='ignore'):  # One word can be a megabyte: infinity.
    return float(np.exp(-log_likelihood / pieces))


def weighted(curves: Mapping[str, Curve]) -> Curve | None:
  """The domains' bits per byte summed with PILE_WEIGHTS, at common counts.

  Weights of domains that are not there are not made up for. None without
  domains.
  """
  if not curves:
    return None
  counts = set.intersection(*(set(c.by_count) for c in curves.values()))
  smallest, largest = zip(
    *(c.last_counts for c in curves.values()), strict=True
  )
  return Curve(
    {
      count: _weighted({t: c.by_count[count] for t, c in curves.items()})
      for count in sorted(counts)
    },
    _weighted({t: c.last for t, c in curves.items()}),
    (min(smallest), max(largest)),
  )


def _pile_all(curves: Mapping[str, Curve]) -> Curve | None:
  return weighted(curves) if curves.keys() == PILE_WEIGHTS.keys() else None


def _weighted(scores: Mapping[str, Score]) -> Score:
  def mean(value):
    return math.fsum(
      PILE_WEIGHTS[task] / 100 * value(score) for task, score in scores.items()
    )

  return Score(
    documents=sum(score.documents for score in scores.values()),
    bits_per_byte=mean(lambda score: score.bits_per_byte),
    base_bits_per_byte=mean(lambda score: score.base_bits_per_byte),
    byte_perplexity=math.nan,
    word_perplexity=math.nan,
  )


def _curve_json(curve: Curve) -> dict:
  return {
    'last': _score_json(list(curve.last_counts), curve.last),
    'by_count': [_score_json(at, s) for at, s in curve.by_count.items()],
  }


def _score_json(at: int | list[int], score: Score) -> dict:
  values = {'at': at} | dataclasses.asdict(score)
  return {
    name: None if isinstance(v, float) and not math.isfinite(v) else v
    for name, v in values.items()
  }
