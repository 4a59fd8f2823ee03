"""What each method gains and what it costs: points, intervals, tables.

A run is its rows of results.jsonl; its gain is over the bits per byte of the
unadapted model on the same documents, its cost the seconds a document. Both
depend on the number of neighbours, so a run is a line through its counts.
"""

import bisect
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from tttnn.reporting import tables
from tttnn.scoring import bootstrap
from tttnn.scoring import paired

STAGES = ('retrieve', 'select', 'adapt', 'score')
_LEVEL = 0.9

Weights = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Point:
  """A run at a count.

  Attributes:
    label: of the run.
    count: neighbours, or what `unit` says.
    unit: what the count counts.
    documents: how many.
    reached: those of them with so many neighbours; the others are at their
      last count.
    bits_per_byte: of the adapted model.
    base_bits_per_byte: of the same documents, not adapted.
    interval: of the change, from the 5 % to the 95 % quantile.
    seconds: mean a document of each of STAGES.
  """

  label: str
  count: int
  unit: str
  documents: int
  reached: int
  bits_per_byte: float
  base_bits_per_byte: float
  interval: tuple[float, float]
  seconds: Mapping[str, float]

  @property
  def change(self) -> float:
    """Relative change of the bits per byte; -0.1 is ten percent fewer."""
    if not self.base_bits_per_byte:
      return math.nan
    return self.bits_per_byte / self.base_bits_per_byte - 1

  @property
  def total_seconds(self) -> float:
    """Mean a document, of all stages."""
    return math.fsum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Difference:
  """Bits per byte of a run at a count less those of a reference at its own.

  Attributes:
    label: of the run.
    count: its count.
    reference: label of the other.
    reference_count: its count.
    bits_per_byte: the difference; below 0 the run is better.
    interval: of the difference, from the 5 % to the 95 % quantile.
  """

  label: str
  count: int
  reference: str
  reference_count: int
  bits_per_byte: float
  interval: tuple[float, float]


def check(runs: Mapping[str, paired.Rows]) -> None:
  """Refuses runs (label -> rows) that do not belong into one table.

  Raises:
    ValueError: showing the two, if protocols, documents, their scored bytes or
      the unadapted model's log-likelihoods of a document differ.
  """
  named = list(runs.items())
  paired.check_protocols(
    [(label, paired.protocol(rows[0])) for label, rows in named]
  )
  paired.check_documents(named)
  paired.check_models(named)


def points(
  label: str,
  rows: paired.Rows,
  weights: Weights | None = None,
  seed: int = 0,
) -> list[Point]:
  """A run's points, one a count that it was scored at but 0.

  Every point is over all documents: one with fewer neighbours stays at its
  last count. The counts are those of the document that got furthest. A run
  that was scored at 0 only is one point, at 0.

  The seconds are those of stopping at the count: all of retrieval and
  selection, the training on so many neighbours, and scoring once.

  Args:
    label: of the run.
    rows: a document each, in any order, with `adapt_seconds` (one a neighbour;
      none where nothing is trained) and `score_seconds` (one a count).
    weights: domain -> percent that its bits per byte weigh, as
      metrics.PILE_WEIGHTS has them; None: the micro average of all documents.
      Seconds are not weighted.
    seed: of the resampling; with the same, runs over the same documents are
      resampled alike.

  Raises:
    ValueError: for rows without the count 0 or without those seconds; weights
      of other domains.
  """
  rows = sorted(rows, key=paired.by_id)
  for row in rows:
    _check_row(label, row)
  counts = _counts(rows)
  nats_BxC, num_bytes_B = _nats(rows, [0, *counts]), _num_bytes(rows)
  groups = _groups(rows, weights)
  base, *bits = bootstrap.measured(nats_BxC, num_bytes_B, groups).tolist()
  drawn_RxC = bootstrap.bits_per_byte(nats_BxC, num_bytes_B, groups, seed=seed)
  with np.errstate(invalid='ignore', divide='ignore'):
    changes_RxC = drawn_RxC[:, 1:] / drawn_RxC[:, :1] - 1
  intervals = _intervals(changes_RxC)
  return [
    Point(
      label=label,
      count=count,
      unit=_unit(rows),
      documents=len(rows),
      reached=sum(row['at'][-1] >= count for row in rows),
      bits_per_byte=bits[c],
      base_bits_per_byte=base,
      interval=intervals[c],
      seconds=_seconds(rows, count),
    )
    for c, count in enumerate(counts)
  ]


def against(
  reference: str,
  runs: Mapping[str, paired.Rows],
  weights: Weights | None = None,
  seed: int = 0,
) -> list[Difference]:
  """Every other run against one of them, paired over documents.

  At the counts that both have; where there are none, or they count different
  things, each at its last.

  Args:
    reference: its label.
    runs: label -> rows.
    weights: as of `points`.
    seed: as of `points`.

  Raises:
    ValueError: as `check`; if there is no such label.
  """
  if reference not in runs:
    raise ValueError(f'no run {reference!r} among {sorted(runs)}')
  check(runs)
  runs = {k: sorted(rows, key=paired.by_id) for k, rows in runs.items()}
  theirs = runs.pop(reference)
  found = []
  for label, rows in runs.items():
    pairs = _pairs(rows, theirs)
    ours_C, theirs_C = zip(*pairs, strict=True)
    data = (
      np.hstack([_nats(rows, ours_C), _nats(theirs, theirs_C)]),
      _num_bytes(rows),
      _groups(rows, weights),
    )
    bits = _less(bootstrap.measured(*data)[None])[0]
    drawn_RxC = _less(bootstrap.bits_per_byte(*data, seed=seed))
    intervals = _intervals(drawn_RxC)
    for pair, value, interval in zip(pairs, bits, intervals, strict=True):
      found.append(
        Difference(label, pair[0], reference, pair[1], float(value), interval)
      )
  return found


def ordered(found: Sequence[Point]) -> dict[str, list[Point]]:
  """Label -> its points by count; labels in the order they come in."""
  lines = {}
  for point in found:
    lines.setdefault(point.label, []).append(point)
  return {
    label: sorted(line, key=lambda point: point.count)
    for label, line in lines.items()
  }


def table(found: Sequence[Point]) -> tables.Cells:
  """A line a point, run by run."""
  head = ['method', 'N', 'bits per byte', 'change', '90 % interval']
  cells = [head + [f'{stage} s' for stage in STAGES] + ['total s']]
  for line in ordered(found).values():
    for point in line:
      seconds = [*point.seconds.values(), point.total_seconds]
      cells.append(
        [
          point.label,
          f'{point.count:,}',
          tables.number(point.bits_per_byte),
          tables.percent(point.change),
          _range(point.interval, tables.percent),
          *(tables.number(value, 3) for value in seconds),
        ]
      )
  return cells


def title(found: Sequence[Point], weights: Weights | None = None) -> str:
  """What `table` shows, in a few sentences."""
  first = found[0]
  documents = f'{first.documents:,} document' + 's' * (first.documents != 1)
  base = tables.number(first.base_bits_per_byte)
  said = [
    f'Bits per byte over {documents}'
    + (', domains weighted' if weights else '')
    + f', and their change from {base}, not adapted, with its 90 % interval '
    '(paired bootstrap over documents).',
    'Seconds are means a document.',
  ]
  others = {}
  for point in found:
    if point.unit != 'neighbours':
      others.setdefault(point.unit, set()).add(point.label)
  counted = ', '.join(
    f'{unit} for {", ".join(sorted(labels))}'
    for unit, labels in sorted(others.items(), reverse=True)
  )
  said.append(f'N counts neighbours{"; " if counted else ""}{counted}.')
  if any(point.reached < point.documents for point in found):
    few = max(point.documents - point.reached for point in found)
    said.append(
      f'A document with fewer neighbours stays at its last (at most {few:,} '
      'do).'
    )
  return ' '.join(said)


def differences_table(found: Sequence[Difference]) -> tables.Cells:
  """A line a difference."""
  head = ['method', 'N', 'reference', 'its N', 'difference', '90 % interval']
  return [head] + [
    [
      difference.label,
      f'{difference.count:,}',
      difference.reference,
      f'{difference.reference_count:,}',
      _signed(difference.bits_per_byte),
      _range(difference.interval, _signed),
    ]
    for difference in found
  ]


def differences_title(found: Sequence[Difference]) -> str:
  """What `differences_table` shows, in a sentence."""
  return (
    f'Bits per byte less those of {found[0].reference}, with the 90 % interval '
    '(paired bootstrap over documents); below 0 is better.'
  )


def _check_row(label: str, row: Mapping) -> None:
  paired.base(label, row)
  for key in ('adapt_seconds', 'score_seconds'):
    if key not in row:
      raise ValueError(
        f'{label!r}: document {row["doc_id"]!r} has no {key}, which only newer '
        'runs write: run it again'
      )
  scored, trained = len(row['score_seconds']), len(row['adapt_seconds'])
  if scored != len(row['at']) or 0 < trained < row['at'][-1]:
    raise ValueError(
      f'{label!r}: document {row["doc_id"]!r} has {scored} score_seconds and '
      f'{trained} adapt_seconds, scored at {row["at"]}'
    )


def _unit(rows: paired.Rows) -> str:
  return tables.count_unit(rows[0]['method'])


def _counts(rows: paired.Rows) -> list[int]:
  furthest = max(rows, key=lambda row: (row['at'][-1], len(row['at'])))
  return [count for count in furthest['at'] if count] or [0]


def _place(row: Mapping, count: int) -> int:
  """Where in `at` the last count is that the document reached, up to this."""
  return bisect.bisect_right(row['at'], count) - 1


def _nats(rows: paired.Rows, counts: Sequence[int]) -> np.ndarray:
  """nats_BxC, each document at the last count that it reached."""
  return np.array(
    [
      [row['log_likelihood'][_place(row, count)] for count in counts]
      for row in rows
    ],
    dtype=np.float64,  # None becomes NaN.
  )


def _num_bytes(rows: paired.Rows) -> np.ndarray:
  return np.array([row['num_bytes'] for row in rows])


def _groups(rows: paired.Rows, weights: Weights | None) -> bootstrap.Groups:
  if weights is None:
    return [(1.0, np.arange(len(rows)))]
  tasks = np.array([row['task'] for row in rows])
  if set(tasks) != set(weights):
    raise ValueError(
      f'weights of {sorted(weights)}, documents of {sorted(set(tasks))}'
    )
  return [
    (weight / 100, np.flatnonzero(tasks == task))
    for task, weight in sorted(weights.items())
  ]


def _seconds(rows: paired.Rows, count: int) -> dict[str, float]:
  """Mean a document of each stage, had the run stopped at the count."""

  def of(row):
    place = _place(row, count)
    return (
      row['seconds']['retrieve'],
      row['seconds']['select'],
      math.fsum(row['adapt_seconds'][: row['at'][place]]),
      row['score_seconds'][place],
    )

  means = np.mean([of(row) for row in rows], axis=0).tolist()
  return dict(zip(STAGES, means, strict=True))


def _pairs(ours: paired.Rows, theirs: paired.Rows) -> list[tuple[int, int]]:
  """The counts to compare two runs at."""
  mine, other = _counts(ours), _counts(theirs)
  shared = [count for count in mine if count in other]
  if shared and _unit(ours) == _unit(theirs):
    return [(count, count) for count in shared]
  return [(mine[-1], other[-1])]


def _intervals(values_RxC: np.ndarray) -> list[tuple[float, float]]:
  low, high = bootstrap.interval(values_RxC, _LEVEL)
  return list(zip(low.tolist(), high.tolist(), strict=True))


def _less(bits_Rx2C: np.ndarray) -> np.ndarray:
  """The first half of the columns less the second."""
  first, second = np.split(bits_Rx2C, 2, axis=1)
  return first - second


def _signed(value: float) -> str:
  return f'{value:+z.4f}' if math.isfinite(value) else '-'


def _range(interval: tuple[float, float], show) -> str:
  if not all(map(math.isfinite, interval)):
    return '-'
  return ' to '.join(map(show, interval))
