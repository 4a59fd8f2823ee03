"""The `select` benchmark: choosing among neighbours, beside the plain form.

Pools are made up: documents of a few topics, some of them near-copies of each
other. SIFT and Frank-Wolfe choose from all of them, and the rival, which keeps
whole covariances, from the same; it must come to the same picks.
"""

import dataclasses
import os
import pathlib
import time

import numpy as np

from tttnn import files
from tttnn.benchmarks import bench
from tttnn.benchmarks import rival as rival_lib
from tttnn.methods import select

RIVAL = 'SIFT, whole covariances'
_REST = 0.2  # Seconds.
WAYS = {'sift': 'SIFT', 'frank_wolfe': 'Frank-Wolfe'}


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of what is measured.

  Attributes:
    queries: that are chosen for at once.
    pool: candidates of each.
    dim: of a vector.
    picks: of each query.
    topics: that the candidates of a query are of.
    copies: of them, near-copies of others.
  """

  queries: int
  pool: int
  dim: int
  picks: int
  topics: int
  copies: int


SHAPES = {
  'full': Shape(64, 200, 1024, 50, 8, 40),
  'mini': Shape(8, 40, 32, 10, 3, 8),
}


def measure(config, workdir: str) -> dict:
  """Seconds of each way, as plain numbers.

  Raises:
    ValueError: for an unknown shape, or a rival with other picks.
  """
  if not workdir:
    raise ValueError('benchmark needs --workdir, where the made-up pools go')
  shape = bench.parse_one('select', config.benchmark.shapes, SHAPES)
  queries_QxD, vectors_QxMxD = make_pools(shape, config.seed)
  distances = np.linalg.norm(vectors_QxMxD - queries_QxD[:, None], axis=2)
  lambda_ = config.selection['lambda']
  picks, calls = {}, {}
  for name, label in WAYS.items():
    settings = select.Settings(name, shape.pool, lambda_)
    calls[label] = lambda settings=settings: select.choose(
      settings,
      shape.picks,
      distances,
      queries_QxD,
      vectors_QxMxD,
      range(shape.queries),
    )
    picks[name] = calls[label]()
  found = {
    'shape': dataclasses.asdict(shape),
    'lambda': lambda_,
    'cores': len(os.sched_getaffinity(0)),
    'different': {
      name: float(np.mean([len({*one.indices}) for one in picks[name]]))
      for name in WAYS
    },
  }
  repeats = config.benchmark.repeats
  if not config.benchmark.rival:
    return found | {'seconds': _timed(calls, repeats)}
  rival_lib.check(config.benchmark.rival)
  with rival_lib.start(
    config.benchmark.rival, config.benchmark.python, rival_lib.Setting((), {})
  ) as rival:
    directory = pathlib.Path(workdir) / 'select'
    paths = save(directory, queries=queries_QxD, vectors=vectors_QxMxD)
    found['rival'] = rival.ask(call='load', **paths)
    request = {'call': 'run', 'lambda': lambda_, 'count': shape.picks}
    check(picks['sift'], rival.ask(**request)['picks'])
    calls[RIVAL] = lambda: rival.ask(**request)
    return found | {'seconds': _timed(calls, repeats)}


def _timed(calls, repeats: int) -> dict[str, list[float]]:
  """Seconds of each way, in turns, with a rest before each.

  The threads of a BLAS spin for some 20 ms after its last product, and would
  take a core from the next way.
  """
  seconds = {way: [] for way in calls}
  for turn in range(3 * repeats):
    for way in bench.rotated(list(calls), turn):
      time.sleep(_REST)
      begin = time.perf_counter()
      calls[way]()
      seconds[way].append(time.perf_counter() - begin)
  return seconds


def cost(config) -> dict:
  """What `estimate.show` prints."""
  shape = bench.parse_one('select', config.benchmark.shapes, SHAPES)
  vectors = shape.queries * shape.pool * shape.dim
  return {
    'documents': shape.queries,
    'steps': shape.queries * shape.picks,
    'memory': 16 * vectors,
    'seconds': 10 + 3 * config.benchmark.repeats * vectors * 1e-7,
  }


def make_pools(shape: Shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Queries [Q, D], and the candidates [Q, M, D] of each, nearest first.

  float32. A query is of the first of its topics; copies differ from what they
  are copies of by a thousandth of its length, or down to a millionth.
  """
  rng = np.random.default_rng(seed)
  queries, pools = [], []
  for _ in range(shape.queries):
    topics_CxD = rng.standard_normal((shape.topics, shape.dim))
    # All texts have something in common, and those of a topic more.
    topics_CxD += 2 * rng.standard_normal(shape.dim)
    query_D = topics_CxD[0] + rng.standard_normal(shape.dim)
    own = rng.integers(shape.topics, size=shape.pool)
    vectors_MxD = topics_CxD[own] + rng.standard_normal((shape.pool, shape.dim))
    copied = rng.choice(shape.pool, (2, shape.copies), replace=False)
    sizes = 10.0 ** -rng.integers(3, 7, size=(shape.copies, 1))
    noise = sizes * rng.standard_normal((shape.copies, shape.dim))
    vectors_MxD[copied[0]] = vectors_MxD[copied[1]] + noise
    order = np.argsort(np.linalg.norm(vectors_MxD - query_D, axis=1))
    queries.append(query_D)
    pools.append(vectors_MxD[order])
  return np.float32(queries), np.float32(pools)


def save(directory: pathlib.Path, **arrays: np.ndarray) -> dict[str, str]:
  """Paths, by name, of the .npy files that it writes."""
  directory.mkdir(parents=True, exist_ok=True)
  paths = {name: os.fspath(directory / f'{name}.npy') for name in arrays}
  for name, array in arrays.items():
    with files.atomic(paths[name]) as file:
      np.save(file, array, allow_pickle=False)
  return paths


def check(picks: list[select.Picks], others: list[list[int]]) -> None:
  """Raises `ValueError` where the rival picked something else."""
  for number, (one, other) in enumerate(zip(picks, others, strict=True)):
    if one.indices != other:
      raise ValueError(
        f'query {number}: {bench.ENGINE} picks {one.indices}, the rival {other}'
      )
