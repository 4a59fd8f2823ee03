"""The `knn_lm` benchmark: evaluation with a store, beside the model alone.

The sides, over the same documents, each compiled and open before it is timed:

    model       method=base
    cached      the model runs, what a search found for its tokens is there
    cache       `knn.cache` as it is: the model does not run either
    INDEX       method=knn_lm, a search host answering for each token
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import itertools
import time

import numpy as np

from tttnn import language_model
from tttnn import prefetch
from tttnn.benchmarks import bench
from tttnn.benchmarks import knn_world
from tttnn.corpus import documents as documents_lib
from tttnn.datastore import store as store_lib
from tttnn.jobs import knn
from tttnn.jobs import works
from tttnn.methods import knn_lm
from tttnn.methods import knn_tuning

MODEL, CACHED, CACHE = 'model alone', 'neighbours cached', 'cache alone'
_SAMPLE = 64  # Queries that brute force answers.
_TOLERANCE = 1e-4  # Of distances and log-likelihoods, relatively.

# Log-likelihoods of the documents by a side: the last of each.
Side = Callable[[], list[float]]


def measure(world: knn_world.World) -> dict:
  """Seconds of each side, in turns, and the recall of each index.

  Raises:
    ValueError: if sides come to different numbers, or the exact search to
      others than brute force.
  """
  documents, model = world.documents, language_model.load(world.config)
  reader = knn.Reader(model, world.config.store.key)
  exact = world.exact(model, reader)
  check_exact(world, model, reader, exact)
  sides = {
    MODEL: _base(world, model, documents),
    CACHED: _cached(world, model, documents, reader, exact),
    CACHE: _cache_alone(world, model, documents),
  }
  check(sides, exact, world.config.knn)
  searches = {}
  with contextlib.ExitStack() as stack:
    for search in (knn_world.EXACT, *world.shape.searches):
      knn_world.say(f'searching {search.name}')
      config = stack.enter_context(world.served(search))
      found = exact
      if search != knn_world.EXACT:
        found = knn_world.found(config, model, reader, documents)
      searches[search.name] = {
        'index': search.factory,
        'recall': recall_of(found, exact),
      }
      score = stack.enter_context(knn.scorer(config, model, reader))
      sides[search.name] = _live(score, documents)
    seconds = {name: [] for name in sides}
    for repeat in range(world.config.benchmark.repeats):
      knn_world.say(f'round {repeat + 1}')
      for name in bench.rotated(list(sides), repeat):
        begin = time.perf_counter()
        sides[name]()
        seconds[name].append(time.perf_counter() - begin)
  return {
    'tokens': len(exact.targets_T),
    'documents': len(documents),
    'searches': searches,
    'seconds': seconds,
  }


def recall_of(found: knn_tuning.Cache, exact: knn_tuning.Cache) -> float:
  """The part of the neighbours that are as near as the true k-th one."""
  return float(np.mean(found.distances_Txk <= exact.distances_Txk[:, -1:]))


def brute_force(
  store: store_lib.Store, queries_QxD: np.ndarray, k: int
) -> np.ndarray:
  """Distances [Q, k] to the nearest stored keys, ascending, in float64."""
  queries_QxD = queries_QxD.astype(np.float64)
  nearest_Qxk = np.full((len(queries_QxD), k), np.inf)
  for shard in range(len(store.manifest.shards)):
    for _, block_BxD in store.vectors(shard).blocks():
      block_BxD = block_BxD.astype(np.float64)
      squares_QxB = (
        np.square(queries_QxD).sum(axis=1)[:, None]
        + np.square(block_BxD).sum(axis=1)
        - 2 * queries_QxD @ block_BxD.T
      )
      both = np.concatenate([nearest_Qxk, squares_QxB], axis=1)
      nearest_Qxk = np.partition(both, k - 1, axis=1)[:, :k]
  return np.sqrt(np.maximum(np.sort(nearest_Qxk, axis=1), 0))


def check_exact(world: knn_world.World, model, reader, exact) -> None:
  """Raises `ValueError` unless some of the exact distances are."""
  queries, documents = [], iter(world.documents)
  while sum(map(len, queries)) < min(_SAMPLE, len(exact.targets_T)):
    queries.append(reader(model.case(next(documents), 'whole', 0)).keys_TxD)
  queries_QxD = np.concatenate(queries)[:_SAMPLE]
  k = exact.ids_Txk.shape[1]
  expected_Qxk = brute_force(world.store(), queries_QxD, k)
  found_Qxk = exact.distances_Txk[: len(queries_QxD)]
  # What is near 0 is off by the rounding of both lengths.
  scale = np.linalg.norm(queries_QxD, axis=1).mean()
  apart = np.abs(found_Qxk - expected_Qxk).max() / scale
  if not apart <= _TOLERANCE:
    raise ValueError(
      f'distances of the exact search are {apart:.1e} of the length of a query '
      f'away from those of brute force, more than {_TOLERANCE:.0e}'
    )


def _base(world, model, documents) -> Side:
  """As `evaluate` runs method=base."""
  config = world.changed(method='base')
  pool = model.pool(model.documents_at_once(config.ttt.batch_documents))

  def find(cases):
    raise AssertionError(
      f'{len(cases)} documents, of which no neighbour counts'
    )

  def run():
    made = works.make(config, model, find, {0}, documents)
    rows = {}
    for work, outcome in pool.run(prefetch.prefetch(made, pool.slots + 1)):
      row = works.row(config, model.tokenizer, work, outcome)
      rows[row['doc_id']] = row['log_likelihood'][-1]
    return [rows[document.doc_id] for document in documents]

  return run


def _cached(
  world,
  model: language_model.LanguageModel,
  documents: Sequence[documents_lib.Document],
  reader: knn.Reader,
  cache: knn_tuning.Cache,
) -> Side:
  """The model runs; neighbours of its tokens are taken from memory."""
  section = world.config.knn

  def run():
    cases = (model.case(document, 'whole', 0) for document in documents)
    scores = []
    for number, one in enumerate(prefetch.prefetch(map(reader, cases), 2)):
      part = slice(*cache.offsets[number : number + 2])
      log_p_knn_T = knn_lm.log_probability(
        cache.distances_Txk[part],
        cache.values_Txk[part],
        one.case.tokens,
        metric=cache.metric,
        temperature=section.temperature,
      )
      mixed_T = knn_lm.interpolate(
        one.log_p_lm_T, log_p_knn_T, section['lambda']
      )
      scores.append(float(mixed_T.sum()))
    return scores

  return run


def _cache_alone(world, model, documents) -> Side:
  config = world.changed(knn__cache=world.cache_path)
  return lambda: [
    row['log_likelihood'][-1] for row in knn.rows(config, model, documents)
  ]


def _live(score, documents) -> Side:
  return lambda: [row['log_likelihood'][-1] for row in score(documents)]


def check(sides: dict[str, Side], exact: knn_tuning.Cache, section) -> None:
  """Runs each, which compiles it, and compares them with what was found.

  Args:
    sides: of MODEL, CACHED and CACHE.
    exact: by a run of kNN-LM.
    section: `knn` of the config.

  Raises:
    ValueError: a log-likelihood is another one.
  """
  log_p_knn_T = knn_lm.log_probability(
    exact.distances_Txk,
    exact.values_Txk,
    exact.targets_T,
    metric=exact.metric,
    temperature=section.temperature,
  )
  mixed_T = knn_lm.interpolate(exact.log_p_lm_T, log_p_knn_T, section['lambda'])
  for name, side in sides.items():
    expected_T = exact.log_p_lm_T if name == MODEL else mixed_T
    expected = [
      float(expected_T[begin:end].sum())
      for begin, end in itertools.pairwise(exact.offsets.tolist())
    ]
    apart = np.abs(np.array(side()) / expected - 1).max()
    if not apart <= _TOLERANCE:
      raise ValueError(
        f'log-likelihoods of {name!r} differ by {apart:.1e} from those of the '
        f'exact search, more than {_TOLERANCE:.0e}'
      )
