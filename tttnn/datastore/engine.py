"""Nearest neighbours over the shards of a store, in this process.

Flat is exact, with ties in id order, whatever the batch and the threads: what a
scan in float32 finds are only candidates. Their distances are computed again in
float64 from the vectors themselves, and a bound on the rounding of the scan
says whether another row could still belong to the k nearest. If one could, a
second scan takes every row within that bound.

All other indexes are approximate: their candidates are ranked by the exact
distances, but a row that the index does not propose is not found. Who asks for
it gets what they say themselves (`raw`), which needs no vectors.
"""

from collections.abc import Sequence
from concurrent import futures
import functools

import faiss
import numpy as np

from tttnn.datastore import index as index_lib
from tttnn.datastore import metric as metric_lib
from tttnn.datastore import reconstruct
from tttnn.datastore import scan as scan_lib
from tttnn.datastore import store as store_lib

_GATHER_ROWS = 1 << 14


class Engine:
  """Search over the shards of a store that are here.

  Args:
    store: an opened store, with its index.
    threads: of a search, see `index.set_threads`.
    gpu: whether faiss searches on this machine's GPUs.

  Attributes:
    exact: whether every answer is.
    in_memory: names of index files that faiss cannot map, so that they take
      anonymous memory.
    count: searchable vectors.

  Raises:
    ValueError: an index file that is not of this store, or GPUs that are not
      there.
  """

  def __init__(
    self, store: store_lib.Store, *, threads: int, gpu: bool = False
  ):
    threads = index_lib.set_threads(threads)
    pool = futures.ThreadPoolExecutor(threads)
    manifest = store.manifest
    self._metric, self._dim = manifest.metric, manifest.dim
    self._spec = store.index.spec
    first_ids = np.cumsum([0] + [shard.rows for shard in manifest.shards])
    self._shards = [
      _Shard(store, i, first_ids[i], threads, pool, gpu)
      for i in store.here
      if manifest.shards[i].searchable
    ]
    self.count = sum(shard.count for shard in self._shards)
    self.exact = all(shard.exact for shard in self._shards)
    self.in_memory = [shard.name for shard in self._shards if not shard.mapped]

  def check(self, queries: np.ndarray, k: int) -> None:
    """Raises the `ValueError` that `search` would, but for too few found."""
    metric_lib.check_queries(queries, k, self._dim, self.count)

  def search(
    self, queries_QxD: np.ndarray, k: int, raw: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query.

    Args:
      queries_QxD: finite, cast to float32; prepared here for the metric.
      k: number of neighbours.
      raw: whether they are the k nearest by the distances that the index gives,
        with these distances. Those of Flat are exact all the same.

    Returns:
      distances_Qxk: float32, ascending, see `metric`; ids_Qxk: int64, ascending
      where distances are equal.

    Raises:
      ValueError: another dim, a query that is not finite, k below 1 or above
        the number of searchable rows, or an approximate index that found less.
    """
    queries_QxD = metric_lib.prepared_queries(
      self._metric, queries_QxD, k, self._dim, self.count
    )
    found = [shard.search(queries_QxD, k, raw) for shard in self._shards]
    return merge(found, len(queries_QxD), k, self._spec)

  def measure(self, queries_QxD: np.ndarray, ids_QxM: np.ndarray) -> np.ndarray:
    """Distances as a raw search has them, to rows that nobody searched.

    Args:
      queries_QxD: as of `search`.
      ids_QxM: rows for each query; -1: none.

    Returns:
      distances_QxM: float32; inf for an id of -1.

    Raises:
      ValueError: another dim, a query that is not finite, a row that is not in
        an index here, or an index that has no such distances, see
        `reconstruct`.
    """
    queries_QxD = metric_lib.prepared_queries(
      self._metric, queries_QxD, 1, self._dim, self.count
    )
    ids_QxM = np.asarray(ids_QxM, np.int64)
    if ids_QxM.ndim != 2 or len(ids_QxM) != len(queries_QxD):
      raise ValueError(
        f'ids of shape {list(ids_QxM.shape)} for {len(queries_QxD)} queries'
      )
    distances_QxM = np.full(ids_QxM.shape, np.inf, np.float32)
    known_QxM = ids_QxM == -1
    for shard in self._shards:
      here_QxM = shard.holds(ids_QxM)
      known_QxM |= here_QxM
      for q in np.flatnonzero(here_QxM.any(axis=1)).tolist():
        distances_QxM[q, here_QxM[q]] = shard.measure(
          queries_QxD[q], ids_QxM[q, here_QxM[q]]
        )
    if not known_QxM.all():
      raise ValueError(f'row {ids_QxM[~known_QxM][0]} is in no index here')
    return distances_QxM

  def nearest(
    self, queries_QxD: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the shards here have to say to a search of the whole store.

    Args:
      queries_QxD: as of `search`.
      k: number of neighbours; the shards here may have fewer rows.

    Returns:
      As `search`, but n = min(k, count) a query; an approximate index that
      found less leaves inf and -1 at the end.

    Raises:
      ValueError: another dim, a query that is not finite, or k below 1.
    """
    n = min(k, self.count)
    queries_QxD = metric_lib.prepared_queries(
      self._metric, queries_QxD, n, self._dim, self.count
    )
    found = [shard.search(queries_QxD, n) for shard in self._shards]
    distances_Qxn = np.full((len(queries_QxD), n), np.inf, np.float32)
    ids_Qxn = np.full(distances_Qxn.shape, -1, np.int64)
    for q, parts in enumerate(zip(*found, strict=True)):
      distances, ids = _first(parts, n)
      distances_Qxn[q, : len(ids)], ids_Qxn[q, : len(ids)] = distances, ids
    return distances_Qxn, ids_Qxn


def merge(
  found: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
  queries: int,
  k: int,
  spec: str,
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest of what each shard found for each query.

  Args:
    found: a shard's (distances, ids) of every query.
    queries: how many there are.
    k: number of neighbours.
    spec: of the index, for the error.

  Returns:
    As `Engine.search`.

  Raises:
    ValueError: all together are less than k.
  """
  distances_Qxk = np.empty((queries, k), np.float32)
  ids_Qxk = np.empty((queries, k), np.int64)
  for q, parts in enumerate(zip(*found, strict=True)):
    distances, ids = _first(parts, k)
    if len(ids) < k:
      raise ValueError(
        f'index {spec!r} found {len(ids)} of {k} neighbours: search more of it '
        '(such as IVF64,Flat;nprobe=16)'
      )
    distances_Qxk[q], ids_Qxk[q] = distances, ids
  return distances_Qxk, ids_Qxk


def _first(parts, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest of one query's (distances, ids), or all if there are less."""
  distances, ids = map(np.concatenate, zip(*parts, strict=True))
  order = np.lexsort((ids, distances))[:k]
  return distances[order], ids[order]


class _Shard:
  """The index of one shard: candidates, ranked exactly."""

  def __init__(
    self,
    store: store_lib.Store,
    number: int,
    first_id: int,
    threads: int,
    pool: futures.Executor,
    gpu: bool,
  ):
    manifest = store.manifest
    shard = manifest.shards[number]
    path = store.index_path(number)
    self.index = index_lib.load(path, store.index.spec)
    self.name = path.name
    whole = manifest.imported and store.index.is_flat
    rows = shard.rows if whole else shard.searchable
    if (self.index.ntotal, self.index.d) != (rows, manifest.dim):
      raise ValueError(
        f'{path} holds {self.index.ntotal} vectors of dim {self.index.d}, the '
        f'manifest {rows} of dim {manifest.dim}'
      )
    self.count = shard.searchable
    self._metric = manifest.metric
    if self.index.metric_type != index_lib.METRICS[self._metric]:
      raise ValueError(
        f'{path} is of faiss metric {self.index.metric_type}, the store of '
        f'{self._metric}, {index_lib.METRICS[self._metric]} there'
      )
    self.mapped = index_lib.is_mapped(self.index)
    self._first_id, self._count = first_id, shard.rows
    self._left_out = np.array(() if whole else shard.left_out, np.int64)
    self._rows = (lambda rows: rows) if whole else shard.searchable_row
    self._flat = isinstance(self.index, faiss.IndexFlat)
    # What a GPU multiplies with may round more than the bound allows for.
    self.exact = self._flat and not gpu
    self._store, self._number = store, number
    self._on_host = self.index
    if self.exact:
      self._flat_NxD = index_lib.flat_vectors(self.index)
      squares = self._metric == 'l2'
      self._scan = scan_lib.Scan(self._flat_NxD, squares, threads, pool)
    if gpu:
      self.index = index_lib.on_gpu(self.index)

  @functools.cached_property
  def _vectors(self):
    return self._store.vectors(self._number)

  @functools.cached_property
  def _reconstruction(self) -> reconstruct.Reconstruction:
    return reconstruct.Reconstruction(self._on_host, self._metric)

  def search(self, queries_QxD: np.ndarray, k: int, raw: bool = False):
    """(float32 distances, int64 ids) for every query, nearest first.

    Exact: at least the min(k, count) nearest. Otherwise what the index found,
    ranked exactly, or as it is.
    """
    k = min(k, self.count)
    if raw and not self._flat:
      return self._search_raw(queries_QxD, k)
    width = min(k + max(k // 4, 16) if self.exact else 2 * k + 16, self.count)
    if self.exact:
      scores_QxW, positions_QxW = self._scan.nearest(queries_QxD, width)
    else:
      scores_QxW, positions_QxW = self.index.search(queries_QxD, width)
    results = []
    for query_D, scores, positions in zip(
      queries_QxD, scores_QxW, positions_QxW, strict=True
    ):
      positions = positions[positions >= 0]
      if self.exact:
        largest = self._scan.largest_norm
        if metric_lib.overflows(query_D, largest):
          positions = self._scan.finite_rows()
      distances = self._distances(query_D, positions)
      if self.exact and len(positions) < self.count:
        kth = np.partition(distances, k - 1)[k - 1]
        limit = metric_lib.limit(self._metric, query_D, kth, largest)
        if scores.max() <= limit:
          positions = self._scan.within(query_D, limit)
          distances = self._distances(query_D, positions)
      ids = self._rows(positions) + self._first_id
      order = np.lexsort((ids, distances))[:k]
      results.append((distances[order], ids[order]))
    return results

  def _search_raw(self, queries_QxD: np.ndarray, k: int):
    results = []
    for scores, positions in zip(
      *self.index.search(queries_QxD, k), strict=True
    ):
      there = positions >= 0
      distances = metric_lib.of_scores(self._metric, scores[there])
      ids = self._rows(positions[there]) + self._first_id
      order = np.lexsort((ids, distances))
      results.append((distances[order], ids[order]))
    return results

  def holds(self, ids: np.ndarray) -> np.ndarray:
    """Which of some ids are of this shard and in its index, as bool."""
    rows = ids - self._first_id
    inside = (rows >= 0) & (rows < self._count)
    return inside & ~np.isin(rows, self._left_out)

  def measure(self, query_D: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Float32 distances as the index has them, to ids that it holds."""
    rows = ids - self._first_id
    positions = rows - np.searchsorted(self._left_out, rows)
    if self._flat:
      return self._distances(query_D, positions)
    return self._reconstruction.distances(query_D, positions)

  def _distances(self, query_D, positions: np.ndarray) -> np.ndarray:
    result = np.empty(len(positions), np.float32)
    for begin in range(0, len(positions), _GATHER_ROWS):
      part = positions[begin : begin + _GATHER_ROWS]
      if self.exact:
        vectors_NxD = self._flat_NxD[part]
      else:
        vectors_NxD = self._vectors.gather(self._rows(part))
      result[begin : begin + len(part)] = metric_lib.distances(
        self._metric, query_D, vectors_NxD
      )
    return result
