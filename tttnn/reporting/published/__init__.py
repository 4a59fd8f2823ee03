"""Figures that others published, beside which one's own may stand.

A set is a CSV file of tidy figures, a line a run, task, metric and count;
`sources.csv` says of each run what it was and where its figures come from.

`hardt_sun_2024`: Hardt & Sun, "Test-Time Training on Nearest Neighbors for
Large Language Models", ICLR 2024, tables and released result files, of the
Pile's test set. Its training cost is in seconds a neighbour on an A100, scoring
the document once included.
"""

from collections.abc import Mapping
import csv
import dataclasses
from importlib import resources
import math

from tttnn.corpus import tasks
from tttnn.scoring import metrics

_WEIGHTS = {task.name: task.weight / 100 for task in tasks.TASKS}
_DOMAINS = {task.name: task.domain for task in tasks.TASKS}


@dataclasses.dataclass(frozen=True)
class Run:
  """A published run on the Pile's 22 tasks.

  Attributes:
    name: in its set.
    model: that was adapted.
    method: what was done.
    protocol: split or whole.
    source: where the figures come from.
    values: (task, metric, count) -> figure. Tasks are as in `eval.tasks`;
      `pile_all` is the total that was published.
  """

  name: str
  model: str
  method: str
  protocol: str
  source: str
  values: Mapping[tuple[str, str, int], float]

  @property
  def label(self) -> str:
    """For tables and legends."""
    return f'{self.model}, {self.method}, {self.protocol} (published)'

  @property
  def counts(self) -> list[int]:
    """Neighbours (passes of dynamic_eval) at which bits per byte are known."""
    return sorted({n for _, metric, n in self.values if metric == _BITS})

  def by_domain(self, count: int, metric: str = 'bits_per_byte') -> dict:
    """The Pile's domain -> figure, of the tasks that have it."""
    found = {}
    for task, domain in _DOMAINS.items():
      value = self.values.get((task, metric, count))
      if value is not None:
        found[domain] = value
    return found

  def total(self, count: int, metric: str = 'bits_per_byte') -> float:
    """The sum over the tasks with their weights in the Pile.

    Computed from the tasks' figures, not read; NaN where one is missing.
    """
    return math.fsum(
      weight * self.values.get((task, metric, count), math.nan)
      for task, weight in _WEIGHTS.items()
    )


_BITS = 'bits_per_byte'


def names() -> list[str]:
  """The sets there are."""
  return sorted({line['set'] for line in _lines('sources')})


def load(name: str) -> list[Run]:
  """The runs of a set.

  Raises:
    ValueError: if there is no such set.
  """
  if name not in names():
    raise ValueError(
      f'report.published={name!r} is none of {", ".join(names())}'
    )
  values = {}
  for line in _lines(name):
    key = (line['task'], line['metric'], int(line['neighbors']))
    values.setdefault(line['run'], {})[key] = float(line['value'])
  return [
    Run(
      line['run'],
      line['model'],
      line['method'],
      line['protocol'],
      line['source'],
      values[line['run']],
    )
    for line in _lines('sources')
    if line['set'] == name
  ]


def is_pile(table: metrics.Table) -> bool:
  """Whether one's own figures are of all 22 domains, as the published are.

  By the original's rules of aggregation there is a `pile_all` of some, too.
  """
  return table.tasks.keys() == metrics.PILE_WEIGHTS.keys()


def _lines(name: str) -> list[dict[str, str]]:
  path = resources.files(__package__) / f'{name}.csv'
  return list(csv.DictReader(path.read_text('utf-8').splitlines()))
