"""How far the nearest neighbours are in growing fractions of a store.

Between two fractions lies a group of documents (see `fractions`). One pass over
the vectors keeps, for each query, the distances of the nearest in each group;
those of a fraction are the smallest of its groups.

The pass takes chunks of rows, so a store may be larger than memory, and it is
exact: a product in float32 says which rows could be as near as the k nearest so
far (`metric.limit` bounds its rounding), and the distances of these are
computed in float64 as differences (`metric.distances`). |q|^2 + |x|^2 - 2qx
itself would be off by far more than what tells a copy from a near one.
"""

from collections.abc import Iterator
from concurrent import futures
import dataclasses

import numpy as np
import threadpoolctl

from tttnn import prefetch
from tttnn.datastore import fractions as fractions_lib
from tttnn.datastore import metric as metric_lib
from tttnn.datastore import store as store_lib

_CHUNK_BYTES = 1 << 26
_CHUNK_ROWS = 1 << 16  # At most.
_BLOCK_SCORES = 1 << 16  # Of a product: they stay in cache.
_MOST_QUERIES = 256  # Of a product.
_PAIR_NUMBERS = 1 << 18  # Of vectors that are compared at once.
METRICS = ('l2', 'cosine')  # Of products, no value stands for a copy.
# What is closer than this to a query is a copy of it, but for the rounding of
# the two embeddings (Q16).
NEAR = 1e-4


def nearest(
  store: store_lib.Store,
  queries_QxD: np.ndarray,
  k: int,
  fractions: fractions_lib.Fractions,
  *,
  excluded: np.ndarray,
  threads: int = 1,
  rows: int = 0,
  progress: fractions_lib.Progress | None = None,
) -> np.ndarray:
  """Distances to the k nearest documents of each fraction.

  Args:
    store: opened, all shards, with vectors on this host.
    queries_QxD: finite; prepared here for the metric.
    k: number of neighbours.
    fractions: of this store.
    excluded: (id, query) [n, 2] that do not count, as of
      `fractions.copies`.
    threads: of the pass.
    rows: stop after about so many, to see how long it takes; 0: all.
    progress: gets the documents passed, and how many there are.

  Returns:
    float32 [F, Q, k], ascending along k. Those of the fraction 1 are, to the
    bit, what an exact search finds.

  Raises:
    ValueError: a store whose metric is not one of METRICS or whose vectors are
      not here, queries that do not fit, or that could overflow, or a fraction
      with fewer than k documents for some query.
  """
  manifest = store.manifest
  check_metric(manifest.metric)
  queries_QxD = metric_lib.prepared_queries(
    manifest.metric, queries_QxD, k, manifest.dim, manifest.searchable
  )
  fractions_lib.check_enough(fractions, k, excluded, len(queries_QxD))
  shape = len(fractions.values), len(queries_QxD), k
  best_FxQxk = np.full(shape, np.inf, np.float32)
  size = min(_MOST_QUERIES, -(-len(queries_QxD) // threads))
  parts = [
    _Queries(manifest.metric, queries_QxD, best_FxQxk, begin, size)
    for begin in range(0, len(queries_QxD), size)
  ]
  # The next chunk is read while this one is compared. Each thread has queries
  # of its own and a BLAS without threads, which would wait for each other.
  chunks = _chunks(store, fractions, excluded, len(queries_QxD))
  with (
    futures.ThreadPoolExecutor(threads) as pool,
    threadpoolctl.threadpool_limits(limits=1, user_api='blas'),
  ):
    for chunk in prefetch.prefetch(chunks, 1):
      if metric_lib.overflows(queries_QxD, chunk.largest).any():
        raise ValueError(
          f'a vector of length {chunk.largest:.3g}, before document '
          f'{chunk.end}: products with the queries could overflow float32'
        )
      list(pool.map(lambda part, chunk=chunk: part.see(chunk), parts))
      if progress:
        progress(chunk.end, manifest.rows)
      if 0 < rows <= chunk.end:
        break
  _from_groups(best_FxQxk)
  return best_FxQxk


def _from_groups(best_FxQxk: np.ndarray) -> None:
  """Makes the nearest of each fraction of those of each group, in place."""
  k = best_FxQxk.shape[2]
  for smaller_Qxk, best_Qxk in zip(best_FxQxk, best_FxQxk[1:], strict=False):
    both_QxM = np.concatenate([smaller_Qxk, best_Qxk], axis=1)
    best_Qxk[:] = np.partition(both_QxM, k - 1, axis=1)[:, :k]
  best_FxQxk.sort(axis=2)


def random_pairs(
  metric: str, queries_QxD: np.ndarray, count: int, seed: int
) -> np.ndarray:
  """Distances between the two queries of random pairs, float32 [count].

  Drawn with replacement; a pair of a query with itself is never drawn, as its
  distance says nothing.

  Raises:
    ValueError: fewer than 2 queries, or no pair asked for.
  """
  number = len(queries_QxD)
  if number < 2 or count < 1:
    raise ValueError(f'{count} random pairs of {number} queries')
  rng = np.random.default_rng(seed)
  one = rng.integers(number, size=count)
  other = (one + rng.integers(1, number, size=count)) % number
  queries_QxD = metric_lib.prepared(metric, queries_QxD)
  return _distances(metric, queries_QxD, one, queries_QxD, other)


def check_metric(metric: str) -> None:
  """Raises `ValueError` unless it is one of METRICS."""
  if metric not in METRICS:
    raise ValueError(
      f'the store has metric {metric!r}: distances are studied for '
      f'{" and ".join(METRICS)}, where that of a copy is 0'
    )


@dataclasses.dataclass(frozen=True)
class Study:
  """What the distances of queries to a store are.

  Attributes:
    metric: of the store.
    fractions: of the store, ascending, [F].
    documents: of each, [F].
    distances_FxQxk: as of `nearest`.
    random: of pairs of queries, see `random_pairs`.
  """

  metric: str
  fractions: np.ndarray
  documents: np.ndarray
  distances_FxQxk: np.ndarray
  random: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """Rows of the store, group by group.

  Attributes:
    vectors_NxD: float32.
    halves_N: |x|^2 / 2, or 0 for cosine; float32.
    largest: norm that no row exceeds.
    begins: row at which each group begins, and the end, [F + 1].
    excluded: row * Q + query of pairs that do not count.
    end: documents passed with this chunk.
  """

  vectors_NxD: np.ndarray
  halves_N: np.ndarray
  largest: float
  begins: np.ndarray
  excluded: np.ndarray
  end: int


def _chunks(
  store: store_lib.Store,
  fractions: fractions_lib.Fractions,
  excluded,
  queries: int,
) -> Iterator[_Chunk]:
  """All documents of the fractions, in chunks of consecutive ones."""
  squares = store.manifest.metric == 'l2'
  for begin, vectors_NxD in _blocks(store):
    end = begin + len(vectors_NxD)
    group = fractions.group[begin:end]
    order = np.argsort(group, kind='stable')
    begins = np.searchsorted(
      group[order], np.arange(len(fractions.values) + 1, dtype=group.dtype)
    )
    order = order[: begins[-1]]
    vectors_NxD = vectors_NxD[order].astype(np.float32, copy=False)
    squares_N = np.einsum(
      'nd,nd->n', vectors_NxD, vectors_NxD, dtype=np.float64
    )
    first, last = np.searchsorted(excluded[:, 0], [begin, end])
    here = excluded[first:last]
    places = np.empty(len(group), np.int64)
    places[order] = np.arange(len(order))
    with np.errstate(over='ignore'):  # `metric.overflows` tells.
      halves_N = (squares * squares_N / 2).astype(np.float32)
    yield _Chunk(
      vectors_NxD,
      halves_N,
      float(np.sqrt(squares_N.max(initial=0.0))),
      begins,
      places[here[:, 0] - begin] * queries + here[:, 1],
      end,
    )


def _blocks(store: store_lib.Store) -> Iterator[tuple[int, np.ndarray]]:
  """(first id, vectors as stored): several of the store's blocks at once."""
  most = min(_CHUNK_ROWS, _CHUNK_BYTES // (4 * store.manifest.dim))
  first = 0
  for number, shard in enumerate(store.manifest.shards):
    held, count, end = [], 0, 0
    for begin, block_BxD in store.mapped_vectors(number).blocks():
      held.append(block_BxD)
      count, end = count + len(block_BxD), begin + len(block_BxD)
      if count >= most or end == shard.rows:
        yield first + end - count, np.concatenate(held)
        held, count = [], 0
    first += shard.rows


class _Queries:
  """Some queries, and the distances of their nearest so far in each group.

  Args:
    metric: of the store.
    queries_QxD: all of them, prepared.
    best_FxQxk: of all; those of these are written.
    begin: the first of these.
    count: how many there are, at most.
  """

  def __init__(self, metric, queries_QxD, best_FxQxk, begin: int, count: int):
    self._metric = metric
    self._all = len(queries_QxD)
    self._begin = begin
    self._queries_QxD = queries_QxD[begin : begin + count]
    self._best_FxQxk = best_FxQxk[:, begin : begin + count]
    self._seen = [0] * len(best_FxQxk)  # Rows of each group.

  def see(self, chunk: _Chunk) -> None:
    """Takes the rows of a chunk into account."""
    for group, best_Qxk in enumerate(self._best_FxQxk):
      begin, stop = chunk.begins[group : group + 2]
      while begin < stop:
        # Of as many rows as there were before, about k are near enough.
        step = max(best_Qxk.shape[1], self._seen[group])
        end = min(begin + step, stop)
        self._see(chunk, range(begin, end), best_Qxk)
        self._seen[group] += end - begin
        begin = end

  def _see(self, chunk: _Chunk, rows: range, best_Qxk: np.ndarray) -> None:
    limits_Q = metric_lib.limit(
      self._metric, self._queries_QxD, best_Qxk.max(axis=1), chunk.largest
    )
    hits, queries = self._within(chunk, rows, limits_Q)
    if chunk.excluded.size:
      pairs = hits * self._all + self._begin + queries
      counts = ~np.isin(pairs, chunk.excluded)
      hits, queries = hits[counts], queries[counts]
    _merge(
      best_Qxk,
      queries,
      _distances(
        self._metric, chunk.vectors_NxD, hits, self._queries_QxD, queries
      ),
    )

  def _within(self, chunk: _Chunk, rows: range, limits_Q):
    """(row, query) of all scores up to the limits."""
    count = len(limits_Q)
    step = max(1, _BLOCK_SCORES // count)
    room_BxQ = np.empty((min(step, len(rows)), count), np.float32)
    hits, queries = [], []
    for begin in range(rows.start, rows.stop, step):
      block = slice(begin, min(begin + step, rows.stop))
      scores_BxQ = room_BxQ[: block.stop - begin]
      np.matmul(chunk.vectors_NxD[block], self._queries_QxD.T, out=scores_BxQ)
      np.subtract(chunk.halves_N[block, None], scores_BxQ, out=scores_BxQ)
      flat = np.flatnonzero(scores_BxQ <= limits_Q)
      hits.append(begin + flat // count)
      queries.append(flat % count)
    return np.concatenate(hits), np.concatenate(queries)


def _distances(metric, vectors_NxD, rows, queries_QxD, queries) -> np.ndarray:
  """Distances [n] of pairs of a row and a query."""
  result = np.empty(len(rows), np.float32)
  step = max(1, _PAIR_NUMBERS // vectors_NxD.shape[1])
  for begin in range(0, len(rows), step):
    part = slice(begin, begin + step)
    result[part] = metric_lib.distances(
      metric, queries_QxD[queries[part]], vectors_NxD[rows[part]]
    )
  return result


def _merge(best_Qxk: np.ndarray, queries: np.ndarray, distances) -> None:
  """Puts distances of queries among the k best of each, in place."""
  if not len(queries):
    return
  order = np.argsort(queries, kind='stable')
  queries, begins, counts = np.unique(
    queries[order], return_index=True, return_counts=True
  )
  k = best_Qxk.shape[1]
  both_QxM = np.full((len(queries), k + counts.max()), np.inf, np.float32)
  both_QxM[:, :k] = best_Qxk[queries]
  lines = np.repeat(np.arange(len(queries)), counts)
  columns = k + np.arange(len(order)) - np.repeat(begins, counts)
  both_QxM[lines, columns] = distances[order]
  best_Qxk[queries] = np.partition(both_QxM, k - 1, axis=1)[:, :k]
