"""Which points of a sweep can replay the neighbours of one search."""

from collections.abc import Sequence
import dataclasses
import json
import os

from tttnn import settings
from tttnn.jobs import neighbors
from tttnn.jobs import points as points_lib
from tttnn.jobs import retrieve
from tttnn.methods import select

# What a search depends on is everything but these: what is done with the
# candidates, of which a run takes the first it wants, and filters, which come
# after the search.
_FREE_SECTIONS = (
  'ttt',
  'dynamic_eval',
  'in_context',
  'interpolation',
  'selection',
)
_FREE_KEYS = (
  'method',
  'seed',
  'model.dtype',
  'model.remat',
  'retrieval.neighbors',
  'retrieval.save',
  'retrieval.min_distance',
  'retrieval.max_distance',
  'retrieval.max_overlap',
  'retrieval.overlap_words',
  'eval.at',
  'eval.window',
  'eval.stride',
  'eval.near_duplicate',
  'eval.save_tokens',
  'eval.checkpoint_every',
  'eval.validation',
)


@dataclasses.dataclass(frozen=True)
class Search:
  """A run of `retrieve` that several points replay.

  Attributes:
    name: of its directory.
    most: neighbours of a document.
    point: one of those that ask it.
  """

  name: str
  most: int
  point: points_lib.Point

  def overrides(self) -> dict[str, object]:
    """Of the config of `point`, that make it this search."""
    return {
      'job': 'retrieve',
      'method': 'ttt',
      'selection.name': 'knn',
      'selection.alpha': 0.0,
      'retrieval.neighbors': self.most,
      'retrieval.save': '',
    }

  def path(self, workdir: str) -> str:
    """The file of neighbours."""
    return os.path.join(self.directory(workdir), f'{retrieve.NAME}.jsonl')

  def directory(self, workdir: str) -> str:
    """Of the run."""
    return os.path.join(workdir, 'neighbors', self.name)


def searches(
  points: Sequence[points_lib.Point], workdir: str
) -> dict[str, Search]:
  """The search that each point replays, by the point's name.

  Points are left out that look nothing up, or do so themselves: because no
  other point asks the same, or because their method has to.

  Args:
    points: of the sweep.
    workdir: of the sweep. A point that has begun there goes on with the
      neighbours that it began with; what was looked up there is used again.
  """
  groups = {}
  for point in points:
    if point.config.job == 'evaluate' and _can_replay(point.config):
      groups.setdefault(_asked(point, workdir), []).append(point)
  found = {}
  for asked, group in groups.items():
    found |= _of_group(points_lib.digest(asked), group, workdir)
  return found


def describe(
  points: Sequence[points_lib.Point], found: dict[str, Search]
) -> str:
  """In a line, which points replay neighbours and which look them up."""
  alone = [
    point
    for point in points
    if point.name not in found
    and point.config.job == 'evaluate'
    and point.config.method not in neighbors.WITHOUT
    and not point.config.retrieval.replay
  ]
  parts = []
  if found:
    times = len({search.name for search in found.values()})
    often = 'once' if times == 1 else f'{times} times'
    parts.append(f'neighbours are looked up {often} for {len(found)} points')
  if alone:
    keys = [key for key in points[0].values if not _is_free(key)]
    why = f', as {", ".join(keys)} differs' if keys else ''
    parts.append(
      f'{len(alone)} points look their neighbours up themselves{why}'
    )
  return '; '.join(parts) or 'no neighbours are looked up'


def _can_replay(config) -> bool:
  """Whether a run can do with neighbours of its documents from a file."""
  if config.method in neighbors.WITHOUT or config.retrieval.replay:
    return False
  if (
    config.method == 'interpolation'
    and config.interpolation.alpha == 'validation'
  ):
    return False  # Looks neighbours of eval.validation up, too.
  # Vectors of a store on other hosts come with a search alone.
  chosen = select.Settings.create(config.selection)
  return not (config.store.search == 'cluster' and chosen.needs_vectors)


def _is_free(key: str) -> bool:
  return key in _FREE_KEYS or key.split('.')[0] in _FREE_SECTIONS


def _asked(point: points_lib.Point, workdir: str) -> str:
  """What the search of a point depends on, but for how many it finds."""
  config = settings.expand(point.config, os.path.join(workdir, point.name))
  flat = {k: v for k, v in settings.flatten(config).items() if not _is_free(k)}
  if config.eval.protocol == 'whole':  # Whose query needs no tokenizer.
    del flat['model.path'], flat['model.revision']
  return json.dumps(flat, sort_keys=True)


def _of_group(
  key: str, group: Sequence[points_lib.Point], workdir: str
) -> dict[str, Search]:
  """Of points that ask the same."""
  there = _there(key, workdir)
  found, new, most = {}, [], 0
  for point in group:
    wanted = neighbors.candidates(point.config)
    begun = _replayed(os.path.join(workdir, point.name))
    name = os.path.basename(os.path.dirname(begun or ''))
    if there.get(name, 0) >= wanted:
      found[point.name] = Search(name, there[name], point)
    elif begun != '':
      new.append(point)
      most = max(most, wanted)
  enough = [name for name, count in there.items() if count >= most]
  if enough:
    name = min(enough, key=there.get)
    most = there[name]
  elif len(new) > 1:
    name = f'{key}-{most}'
  else:
    return found
  return found | {point.name: Search(name, most, point) for point in new}


def _there(key: str, workdir: str) -> dict[str, int]:
  """How many neighbours the finished searches of this kind found, by name."""
  directory, found = os.path.join(workdir, 'neighbors'), {}
  if os.path.isdir(directory):
    for name in os.listdir(directory):
      path = os.path.join(directory, name, 'summary.json')
      if name.startswith(f'{key}-') and os.path.exists(path):
        found[name] = int(name.removeprefix(f'{key}-'))
  return found


def _replayed(directory: str) -> str | None:
  """What a run there replays; '' for nothing, None if there is none."""
  path = os.path.join(directory, 'config.json')
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as file:
    return json.load(file)['retrieval']['replay']
