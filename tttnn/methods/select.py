"""Which of the retrieved neighbours a document is adapted to."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Self

import numpy as np

from tttnn.methods import frank_wolfe
from tttnn.methods import sift

NAMES = ('knn', 'sift', 'frank_wolfe', 'random', 'farthest_first')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How neighbours are chosen; fields as `selection` of `configs/base.py`."""

  name: str = 'knn'
  pool: int = 200
  lambda_: float = 0.01
  alpha: float = 0.0
  group_repeats: bool = False

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `selection` of the config."""
    values = dict(section)
    return cls(lambda_=values.pop('lambda'), **values)

  @property
  def needs_vectors(self) -> bool:
    """Whether it looks at embeddings, of the query and of its candidates."""
    return self.name in ('sift', 'frank_wolfe')

  def candidates(self, count: int) -> int:
    """How many are to be looked up, for `count` to be chosen.

    Raises:
      ValueError: if the pool is too small for so many without repeats.
    """
    if self.name in ('knn', 'farthest_first'):
      return count
    if self.name == 'random' and count > self.pool:
      raise ValueError(
        f'selection.pool={self.pool} has no {count} to draw without repeats: '
        'retrieval.neighbors must be at most as large'
      )
    return self.pool

  def __post_init__(self):
    if self.name not in NAMES:
      raise ValueError(
        f'selection.name={self.name!r} is not one of {", ".join(NAMES)}'
      )
    if self.pool < 1:
      raise ValueError(f'selection.pool={self.pool} is not 1 or more')
    if not 0 < self.lambda_ < math.inf:
      raise ValueError(f'selection.lambda={self.lambda_} is not above 0')
    if not 0 <= self.alpha < math.inf:
      raise ValueError(f'selection.alpha={self.alpha} is not 0 or more')
    if self.alpha and self.name != 'sift':
      raise ValueError(
        f'selection.alpha={self.alpha} stops sift; '
        f'selection.name={self.name!r} has nothing to stop by'
      )


@dataclasses.dataclass(frozen=True)
class Picks:
  """What was chosen from one pool.

  Attributes:
    indices: places in the pool, in the order of training, one for each
      repetition.
    remaining: what of the query is not accounted for. Of sift, the variance
      sigma_n^2 after each pick, in the order they were picked; of frank_wolfe
      one number, how far the mean of the picks is from the query, all of length
      1; of others nothing.
  """

  indices: list[int]
  remaining: list[float]


def choose(
  settings: Settings,
  count: int,
  distances: Sequence[np.ndarray],
  queries_QxD: np.ndarray | None,
  vectors: Sequence[np.ndarray] | None,
  seeds: Sequence[int | Sequence[int]],
) -> list[Picks]:
  """Chooses from the pool of each query, by itself.

    knn             the nearest
    sift            see `sift`
    frank_wolfe     see `frank_wolfe`
    random          any, none twice, in the order they were drawn
    farthest_first  the nearest, the farthest of them first (Hardt & Sun 2024
                    found it worse)

  Args:
    settings: how.
    count: N, how many picks; of sift with alpha, and of a pool without repeats,
      there may be fewer. An empty pool has none.
    distances: of the candidates of each query [M_q].
    queries_QxD: embeddings, float32; None where they are not needed.
    vectors: of the candidates of each query, float32 [M_q, D], M_q at most
      settings.pool, or None. Of equal gains the first one is picked.
    seeds: of each query, as `numpy.random.default_rng` takes them.

  Raises:
    ValueError: for a count below 1, or vectors that `gram.each` refuses.
  """
  if count < 1:
    raise ValueError(f'{count} picks are asked for, not 1 or more')
  if settings.needs_vectors:
    _check(settings, distances, vectors)
  match settings.name:
    case 'sift':
      picks = _sift(settings, count, queries_QxD, vectors)
    case 'frank_wolfe':
      found = frank_wolfe.choose(queries_QxD, vectors, count=count)
      picks = [Picks(indices, [distance]) for indices, distance in found]
    case 'random':
      picks = [
        Picks(_drawn(len(distances_M), count, seed), [])
        for distances_M, seed in zip(distances, seeds, strict=True)
      ]
    case 'knn':
      picks = [Picks(_nearest(d_M, count), []) for d_M in distances]
    case 'farthest_first':
      picks = [Picks(_nearest(d_M, count)[::-1], []) for d_M in distances]
  if settings.group_repeats:
    return [Picks(grouped(one.indices), one.remaining) for one in picks]
  return picks


def grouped(indices: Sequence[int]) -> list[int]:
  """Repetitions together, in the order of their first ones."""
  times = {}
  for i in indices:
    times[i] = times.get(i, 0) + 1
  return [i for i, many in times.items() for _ in range(many)]


def _check(settings: Settings, distances, vectors) -> None:
  for number, (distances_M, vectors_MxD) in enumerate(
    zip(distances, vectors, strict=True)
  ):
    if len(distances_M) != len(vectors_MxD):
      raise ValueError(
        f'query {number} has {len(distances_M)} distances and '
        f'{len(vectors_MxD)} vectors'
      )
    if len(vectors_MxD) > settings.pool:
      raise ValueError(
        f'query {number} has {len(vectors_MxD)} candidates, '
        f'selection.pool={settings.pool}'
      )


def _sift(settings: Settings, count: int, queries_QxD, vectors) -> list[Picks]:
  found = sift.choose(
    queries_QxD,
    vectors,
    lambda_=settings.lambda_,
    count=count,
    pool=settings.pool,
  )
  picks = []
  for indices, variances in found:
    kept = sift.stop(variances, settings.alpha)
    picks.append(Picks(indices[:kept], variances[:kept]))
  return picks


def _nearest(distances_M: np.ndarray, count: int) -> list[int]:
  return np.argsort(distances_M, kind='stable')[:count].tolist()


def _drawn(size: int, count: int, seed) -> list[int]:
  # By the bare numbers of the generator: what numpy makes of them, such as a
  # permutation, may differ from one version or machine to another.
  order = np.argsort(np.random.default_rng(seed).random(size), kind='stable')
  return order[:count].tolist()
