"""Intervals of a run's figures: what other documents might have given.

The middle 80 %, from the 10 % to the 90 % quantile, as Hardt & Sun draw them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from tttnn.scoring import bootstrap
from tttnn.scoring import faithful
from tttnn.scoring import metrics

LEVEL = 0.8

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Intervals:
  """(low, high) of one line of a table.

  Attributes:
    before: bits per byte at 0.
    after: at each document's last count.
    change: relative, paired: from the same draws of documents.
  """

  before: Interval
  after: Interval
  change: Interval


def of_table(
  rows: Sequence[Mapping],
  table: metrics.Table,
  *,
  as_published: bool = False,
  resamples: int = 1000,
) -> dict[str, Intervals]:
  """Intervals of all lines of `table`, by their label.

  Args:
    rows: what `table` aggregates.
    table: of them.
    as_published: intervals of `pile_all` are the weighted means of the tasks'
      quantiles, as in the original; not: every task is drawn anew, then
      weighted, whose intervals are narrower.
    resamples: draws of as many documents as there are.
  """
  nats_Bx2 = np.array([_ends(row) for row in rows], np.float64)
  bytes_B = np.array([row['num_bytes'] for row in rows])
  task_B = np.array([row['task'] for row in rows])

  def drawn(groups):
    bits_Rx2 = bootstrap.bits_per_byte(nats_Bx2, bytes_B, groups, resamples)
    with np.errstate(invalid='ignore', divide='ignore'):
      change_R = bits_Rx2[:, 1] / bits_Rx2[:, 0] - 1
    low_3, high_3 = bootstrap.interval(
      np.column_stack([bits_Rx2, change_R]), LEVEL
    )
    return np.stack([low_3, high_3], 1)

  documents = {task: np.flatnonzero(task_B == task) for task in table.tasks}
  found = {task: drawn([(1.0, own)]) for task, own in documents.items()}
  for label, _ in table.totals():
    if label == 'all':
      found[label] = drawn([(1.0, np.arange(len(rows)))])
      continue
    counting = faithful.counting(table) if as_published else table.tasks
    weights = {task: metrics.PILE_WEIGHTS[task] / 100 for task in counting}
    if as_published:
      found[label] = sum(w * found[task] for task, w in weights.items())
    else:
      found[label] = drawn([(w, documents[t]) for t, w in weights.items()])
  return {
    label: Intervals(*(tuple(pair) for pair in of_3x2.tolist()))
    for label, of_3x2 in found.items()
  }


def _ends(row: Mapping) -> tuple[float | None, float | None]:
  """Log-likelihood at 0 and at the last count; None, as NaN, if unknown."""
  nats = dict(zip(row['at'], row['log_likelihood'], strict=True))
  return nats.get(0), nats[max(nats)]
