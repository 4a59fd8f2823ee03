"""The table of a sweep: a line a point, the best first."""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import io
import json
import math
import os

from tttnn.reporting import tables

# What points can be ranked by, the default first; less is better.
METRICS = {
  'evaluate': ('bits_per_byte', 'byte_perplexity', 'word_perplexity'),
  'train': (
    'validation_loss',
    'validation_perplexity',
    'best_loss',
    'train_loss',
  ),
}
METRICS['pipeline'] = METRICS['evaluate']


@dataclasses.dataclass(frozen=True)
class Line:
  """A point.

  Attributes:
    name: of its directory.
    values: of the keys that are swept, as text.
    figures: what `read` found; {} for a point that has not come to its end.
  """

  name: str
  values: Mapping[str, str]
  figures: Mapping[str, float]


def read(workdir: str) -> dict[str, float]:
  """The figures of a `summary.json`; {} where there is none.

  Of an evaluation those of all documents, each at its last count, and seconds a
  document.
  """
  path = os.path.join(workdir, 'summary.json')
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as file:
    summary = json.load(file)
  figures = summary
  if 'all' in summary:
    missing = 'documents_with_missing_neighbors'
    seconds = sum(summary['seconds_per_document'].values())
    figures = summary['all']['last'] | {
      missing: summary[missing],
      'seconds_per_document': seconds,
    }
  return {
    name: math.nan if value is None else value
    for name, value in figures.items()
    if value is None or isinstance(value, (int, float))
  }


def ranked(lines: Sequence[Line], metric: str) -> list[Line]:
  """The smallest first; behind them those without a number, as they came."""

  def key(line):
    value = line.figures.get(metric, math.nan)
    return (0, value) if math.isfinite(value) else (1, 0.0)

  return sorted(lines, key=key)


def table(lines: Sequence[Line], metric: str) -> tables.Cells:
  """The swept keys, the metric, and what else one wants to see beside it."""
  names = [metric]
  if metric == 'bits_per_byte':
    names += ['base_bits_per_byte', 'documents']
  cells = [[*lines[0].values, *names]]
  for line in ranked(lines, metric):
    numbers = [
      tables.number(line.figures.get(name, math.nan), _digits(name))
      for name in names
    ]
    cells.append([*line.values.values(), *numbers])
  return cells


def _digits(name: str) -> int:
  return 0 if name == 'documents' else 4


def as_csv(lines: Sequence[Line], metric: str) -> str:
  """All figures, in the same order; an empty field where there is none."""
  figures = list(dict.fromkeys(name for line in lines for name in line.figures))
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['point', *lines[0].values, *figures])
  for line in ranked(lines, metric):
    numbers = [line.figures.get(name, '') for name in figures]
    writer.writerow([line.name, *line.values.values(), *numbers])
  return text.getvalue()
