"""What a run cost, as tables: seconds a neighbour, and seconds a stage."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics

import numpy as np

from tttnn.reporting import tables

STAGES = ('retrieve', 'select', 'adapt', 'score')


def per_neighbor(rows: Sequence[Mapping]) -> dict[str, list[float]]:
  """Domain -> seconds of adapting to a neighbour, each the mean of a document.

  Documents that did not adapt are left out; so are rows of before these seconds
  were kept.
  """
  found = {}
  for row in rows:
    seconds = row.get('adapt_seconds') or []
    if seconds:
      mean = sum(seconds) / len(seconds)
      found.setdefault(row['task'], []).append(mean)
  return {task: found[task] for task in sorted(found)}


def cost_table(rows: Sequence[Mapping], unit: str) -> tables.Cells:
  """A line a domain: what a neighbour costs. Without lines if none adapts."""
  one = {'passes': 'a pass'}.get(unit, 'a neighbour')
  head = ['domain', f'seconds {one}, mean', 'median', '90 %', f'steps {one}']
  cells = [[*head, 'documents']]
  found = per_neighbor(rows)
  lines = list(found.items())
  if len(found) > 1:
    lines.append(('all', [v for values in found.values() for v in values]))
  steps = {task: _steps(rows, task) for task, _ in lines}
  for task, values in lines:
    cells.append(
      [
        task,
        tables.number(statistics.fmean(values), 3),
        tables.number(statistics.median(values), 3),
        tables.number(float(np.quantile(values, 0.9)), 3),
        tables.number(steps[task], 2),
        f'{len(values):,}',
      ]
    )
  return cells


def seconds_table(rows: Sequence[Mapping]) -> tables.Cells:
  """A line a stage: seconds a document, retrieval and selection among them."""
  cells = [['stage', 'seconds a document, mean', 'median', '90 %', 'share']]
  values = {
    stage: np.array([row['seconds'].get(stage, 0.0) for row in rows])
    for stage in STAGES
  }
  total = sum(values.values())
  for stage, seconds in (values | {'total': total}).items():
    share = seconds.sum() / total.sum() if total.sum() else np.nan
    cells.append(
      [
        stage,
        tables.number(float(seconds.mean()), 3),
        tables.number(float(np.median(seconds)), 3),
        tables.number(float(np.quantile(seconds, 0.9)), 3),
        '-' if np.isnan(share) else f'{share:.0%}',
      ]
    )
  return cells


def _steps(rows: Sequence[Mapping], task: str) -> float:
  """Mean gradient steps a neighbour."""
  lists = [
    row['steps']
    for row in rows
    if row.get('steps') and (task == 'all' or row['task'] == task)
  ]
  steps = [number for steps in lists for number in steps]
  return sum(steps) / len(steps) if steps else float('nan')
