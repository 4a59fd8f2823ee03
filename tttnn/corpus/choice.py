"""Which of the documents are evaluated, in which order, by which process.

Tasks of the Pile are drawn as in the code of Hardt & Sun (2024); everything
else goes in file order.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fnmatch
import functools
import math
import random
from typing import Any
from typing import Self

from tttnn.corpus import tasks as tasks_lib

_SEED = 1216  # The original's (Q26).


@dataclasses.dataclass(frozen=True)
class Choice:
  """A choice of documents; the fields are the keys `eval.*`.

  Attributes:
    tasks: comma-separated. What begins with `pile_` is pile_all, the name of a
      task or a glob over names; anything else is a glob over domains. '' is
      every document.
    portion: share of each pile_ task's documents.
    limit: the first so many of what is chosen, for all processes together; 0
      is all.
    rank: of this process, counted from 0.
    world_size: how many processes share the documents.
    missing_tasks: of pile_ tasks without a document: error | allow.

  Raises:
    ValueError: for a task that does not exist, a value out of its range, or a
      portion without pile_ tasks.
  """

  tasks: str = ''
  portion: float = 1.0
  limit: int = 0
  rank: int = 0
  world_size: int = 1
  missing_tasks: str = 'error'

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `eval` of the config, which has more than this."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: section[name] for name in names})

  def __post_init__(self):
    if not 0 < self.portion <= 1:
      raise ValueError(f'eval.portion={self.portion} is not in (0, 1]')
    if not self.pile and self.portion != 1:
      raise ValueError(
        f'eval.portion={self.portion} goes with pile_ tasks only, '
        f'eval.tasks={self.tasks!r} has none'
      )
    if self.limit < 0:
      raise ValueError(f'eval.limit={self.limit} is negative')
    if not 0 <= self.rank < self.world_size:
      raise ValueError(
        f'eval.rank={self.rank} is not in 0..{self.world_size - 1}, as '
        f'eval.world_size={self.world_size} wants'
      )
    if self.missing_tasks not in ('error', 'allow'):
      raise ValueError(
        f'eval.missing_tasks={self.missing_tasks!r} is neither error nor allow'
      )

  @functools.cached_property
  def pile(self) -> dict[tasks_lib.Task, bool]:
    """The pile_ tasks in order; whether they are named, not by a glob alone."""
    named = {}
    for item in self._items:
      if item.startswith(tasks_lib.PREFIX):
        for task in tasks_lib.find(item):
          named[task] = named.get(task, False) or not _is_glob(item)
    return {task: named[task] for task in tasks_lib.TASKS if task in named}

  @functools.cached_property
  def globs(self) -> list[str]:
    """The globs over domains."""
    if not self._items:
      return ['*']
    return [
      item if _is_glob(item) else tasks_lib.canonical(item)
      for item in self._items
      if not item.startswith(tasks_lib.PREFIX)
    ]

  @property
  def most(self) -> float:
    """No more of the documents that are `wanted` count than the first so many.

    Infinity where they are shuffled, or not limited.
    """
    return math.inf if self.pile or not self.limit else self.limit

  def wants(self, domain: str) -> bool:
    """Whether documents of this domain can be chosen."""
    return any(domain == task.domain for task in self.pile) or any(
      fnmatch.fnmatchcase(domain, glob) for glob in self.globs
    )

  @property
  def _items(self) -> list[str]:
    return [item.strip() for item in self.tasks.split(',') if item.strip()]


ALL = Choice()


def choose(choice: Choice, domains: Sequence[str]) -> list[int]:
  """The positions of the chosen documents, in the order of evaluation.

  First the pile_ tasks, by name: each a shuffle of its documents, of which the
  first int(portion * documents) stay. Then, in file order, what the globs over
  domains match and no pile_ task is of. Each process takes every
  `world_size`-th of a task, and of the rest.

  Args:
    choice: what is wanted.
    domains: of the documents in file order, by their canonical names.

  Raises:
    ValueError: unless missing tasks are allowed, for a task that is named and
      of which there is no document, or of which the portion leaves none.
  """
  places = {task.domain: [] for task in choice.pile}
  rest = []
  for place, domain in enumerate(domains):
    if domain in places:
      places[domain].append(place)
    elif choice.wants(domain):
      rest.append(place)
  if choice.missing_tasks == 'error':
    _check_missing(choice, places)
  groups = [_draw(group, choice.portion) for group in places.values()]
  left = choice.limit or len(domains)
  chosen = []
  for group in [*groups, rest]:
    group = group[:left]
    left -= len(group)
    chosen += group[choice.rank :: choice.world_size]
  return chosen


def _draw(places: list[int], portion: float) -> list[int]:
  """The original's choice of a task's documents (Q26)."""
  places = list(places)
  random.Random(_SEED).shuffle(places)
  return places[: int(portion * len(places))]


def _check_missing(choice: Choice, places: dict[str, list[int]]) -> None:
  missing, few = [], []
  for task, named in choice.pile.items():
    count = len(places[task.domain])
    if count and not int(choice.portion * count):
      few.append(f'{task.name} ({count} documents)')
    elif named and not count:
      missing.append(f'{task.name} ({task.domain})')
  problems = []
  if missing:
    problems.append(f'there is no document of {", ".join(missing)}')
  if few:
    problems.append(
      f'eval.portion={choice.portion} leaves nothing of {", ".join(few)}'
    )
  if problems:
    raise ValueError(
      f'eval.tasks={choice.tasks!r}: {"; ".join(problems)}; '
      'eval.missing_tasks=allow goes on without'
    )


def _is_glob(item: str) -> bool:
  return any(c in item for c in '*?[')
