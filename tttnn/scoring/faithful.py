"""Aggregation by the rules of Hardt & Sun's own processing of results.

A document counts if it was scored as often as the median document of its task.
A task counts in `pile_all` if its number of counts is the median of the tasks,
and the weights of those that do not count are not made up for. Error bars of
`pile_all` are weighted means of the tasks' own (their code, `process_results`).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import statistics

from tttnn.scoring import metrics


def kept(rows: Sequence[Mapping]) -> list[Mapping]:
  """The rows with as many scores as the median of their task.

  Of an even number of rows the median may lie between two numbers of scores,
  which no document has: then none of the task is kept.

  Raises:
    ValueError: if none is left at all.
  """
  lengths = {}
  for row in rows:
    lengths.setdefault(row['task'], []).append(len(row['at']))
  medians = {task: statistics.median(l) for task, l in lengths.items()}
  found = [row for row in rows if len(row['at']) == medians[row['task']]]
  if not found:
    raise ValueError(
      'report.aggregation=faithful keeps documents with the median number of '
      f'scores of their task, of which there are none: {medians}'
    )
  return found


def aggregate(rows: Sequence[Mapping]) -> metrics.Table:
  """The table of rows that are `kept`.

  `pile_all` is there where all domains are the Pile's, even if some of the
  Pile's are missing.
  """
  table = metrics.aggregate(rows)
  if not set(table.tasks) <= set(metrics.PILE_WEIGHTS):
    return table
  return dataclasses.replace(table, pile_all=metrics.weighted(counting(table)))


def counting(table: metrics.Table) -> dict[str, metrics.Curve]:
  """The tasks that count in `pile_all`."""
  lengths = {task: len(c.by_count) for task, c in table.tasks.items()}
  median = statistics.median(lengths.values())
  return {t: c for t, c in table.tasks.items() if lengths[t] == median}
