"""Nearest neighbours over the shards of a store, by faiss.

Flat is exact, with ties in id order, whatever the batch and the threads: what
faiss finds in float32 are only candidates. Their distances are computed again
in float64 from the vectors themselves, and a bound on the rounding of faiss's
distances says whether another row could still belong to the k nearest. If one
could, a second search takes every row within that bound.

All other indexes are approximate: their candidates are ranked by the exact
distances, but a row that the index does not propose is not found.
"""

from collections.abc import Mapping
import os

import faiss
import numpy as np

from tttnn.datastore import store as store_lib

_GATHER_ROWS = 1 << 14


def create(dim: int, spec: str) -> faiss.Index:
  """An empty L2 index of a faiss factory string.

  Args:
    dim: width of the vectors.
    spec: such as 'Flat' or 'SQfp16', or 'IVF64,Flat;nprobe=8' with parameters.

  Raises:
    ValueError: faiss does not know the string, or not with this width.
  """
  factory, _, parameters = spec.partition(';')
  try:
    index = faiss.index_factory(dim, factory, faiss.METRIC_L2)
    if parameters:
      faiss.ParameterSpace().set_index_parameters(index, parameters)
  except RuntimeError as e:
    raise ValueError(f'index {spec!r} with dim {dim}: {e}') from e
  return index


def load(path, spec: str) -> faiss.Index:
  """Opens an index file memory-mapped where faiss can.

  faiss maps inverted lists by one flag and flat codes (Flat, SQ, PQ, also as
  the storage of HNSW) by another; each flag leaves the other family in memory.
  """
  flag = faiss.IO_FLAG_MMAP if 'IVF' in spec else faiss.IO_FLAG_MMAP_IFC
  try:
    return faiss.read_index(str(path), flag)
  except RuntimeError as e:
    raise ValueError(f'{path} cannot be read as index {spec!r}: {e}') from e


def is_mapped(index: faiss.Index) -> bool:
  """Whether an index's vectors or codes are mapped, not held in memory."""
  index = faiss.downcast_index(index)
  ivf = faiss.try_extract_index_ivf(index)
  if ivf is not None:
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    return isinstance(lists, faiss.OnDiskInvertedLists)
  for inner in ('index', 'base_index', 'storage'):
    if hasattr(index, inner):
      return is_mapped(getattr(index, inner))
  return hasattr(index, 'codes') and not index.codes.is_owned


def set_threads(threads: int) -> None:
  """Sets the threads of this process's searches; 0 = every core it may use."""
  if threads < 0:
    raise ValueError(f'{threads} threads; 0 stands for every core')
  faiss.omp_set_num_threads(threads or len(os.sched_getaffinity(0)))


class _Shard:
  """The index of one shard: squared-distance candidates, ranked exactly."""

  def __init__(self, store: store_lib.Store, number: int, first_id: int):
    manifest = store.manifest
    shard = manifest.shards[number]
    path = store.index_path(number)
    self.index = load(path, manifest.index)
    self.count = shard.searchable
    if (self.index.ntotal, self.index.d) != (self.count, manifest.dim):
      raise ValueError(
        f'{path} holds {self.index.ntotal} vectors of dim {self.index.d}, the '
        f'manifest {self.count} of dim {manifest.dim}'
      )
    self._first_id = first_id
    self._vectors = store.vectors(number)
    self._rows = shard.row_of
    self.exact = isinstance(self.index, faiss.IndexFlat)
    if self.exact:
      flat = faiss.rev_swig_ptr(self.index.get_xb(), self.count * manifest.dim)
      self._flat = flat.reshape(self.count, manifest.dim)

  def search(self, queries_QxD: np.ndarray, k: int):
    """(float32 distances, int64 ids) for every query, nearest first.

    Exact: at least the min(k, count) nearest. Otherwise what the index found.
    """
    k = min(k, self.count)
    width = min(2 * k + 16, self.count)
    near_QxK, positions_QxK = self.index.search(queries_QxD, width)
    results = []
    for query_D, near_K, positions in zip(
      queries_QxD, near_QxK, positions_QxK, strict=True
    ):
      positions = positions[positions >= 0]
      distances = self._distances(query_D, positions)
      if self.exact and width < self.count:
        bound = _candidate_bound(query_D, np.partition(distances, k - 1)[k - 1])
        if near_K[-1] <= bound:
          radius = float(np.nextafter(np.float32(bound), np.float32(np.inf)))
          _, _, positions = self.index.range_search(query_D[None], radius)
          distances = self._distances(query_D, positions)
      ids = self._rows(positions) + self._first_id
      order = np.lexsort((ids, distances))[:k]
      results.append((distances[order], ids[order]))
    return results

  def _distances(self, query_D, positions: np.ndarray) -> np.ndarray:
    """Float32 of the L2 distances, computed as differences in float64."""
    result = np.empty(len(positions), np.float32)
    query_D = query_D.astype(np.float64)
    for begin in range(0, len(positions), _GATHER_ROWS):
      part = positions[begin : begin + _GATHER_ROWS]
      if self.exact:
        vectors = self._flat[part]
      else:
        vectors = self._vectors.gather(self._rows(part))
      difference = vectors - query_D
      squares = np.square(difference, out=difference).sum(axis=1)
      result[begin : begin + len(part)] = np.sqrt(squares)
    return result


def _candidate_bound(query_D: np.ndarray, distance: np.float32) -> float:
  """The most that faiss may report, squared, for a row within `distance`.

  |q - x|^2 as |q|^2 + |x|^2 - 2qx in float32 is off by at most
  g (|q| + |x|)^2 with g = nu / (1 - nu), n = dim + 3 and u = 2^-24, whatever
  the order of summation (Higham, "Accuracy and Stability of Numerical
  Algorithms", 2nd ed., sections 3.1 and 3.5); the difference form by less.
  A row within the distance has |x| <= |q| + distance.
  """
  nu = (len(query_D) + 3) * 2.0**-24
  norm = float(np.linalg.norm(query_D.astype(np.float64)))
  distance = float(np.nextafter(distance, np.float32(np.inf)))  # Ties included.
  return distance**2 + nu / (1 - nu) * (2 * norm + distance) ** 2


class Engine:
  """Search over all shards of a store, in this process.

  Args:
    store: an opened store.
    threads: of a search, see `set_threads`.
  """

  def __init__(self, store: store_lib.Store, *, threads: int):
    set_threads(threads)
    self._dim = store.manifest.dim
    self._spec = store.manifest.index
    shards = store.manifest.shards
    first_ids = np.cumsum([0] + [shard.rows for shard in shards])
    self._shards = [
      _Shard(store, i, first_ids[i])
      for i, shard in enumerate(shards)
      if shard.searchable
    ]
    self.count = store.manifest.searchable
    self.exact = all(shard.exact for shard in self._shards)
    self.mapped = all(is_mapped(shard.index) for shard in self._shards)

  def check(self, queries: np.ndarray, k: int) -> None:
    """Raises the `ValueError` that `search` would, but for too few found."""
    if queries.ndim != 2 or queries.shape[1] != self._dim:
      raise ValueError(
        f'queries of shape {list(queries.shape)} for a store of dim {self._dim}'
      )
    if not 1 <= k <= self.count:
      raise ValueError(
        f'{k} neighbours asked of a store with {self.count} searchable vectors'
      )
    bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if bad.size:
      raise ValueError(f'query {bad[0]} of {len(queries)} is not finite')

  def search(
    self, queries_QxD: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query.

    Args:
      queries_QxD: finite, cast to float32.
      k: number of neighbours.

    Returns:
      distances_Qxk: float32, L2 (not squared), ascending; ids_Qxk: int64,
      ascending where distances are equal.

    Raises:
      ValueError: another dim, a query that is not finite, k below 1 or above
        the number of searchable rows, or an approximate index that found less.
    """
    queries_QxD = np.ascontiguousarray(queries_QxD, np.float32)
    self.check(queries_QxD, k)
    distances_Qxk = np.empty((len(queries_QxD), k), np.float32)
    ids_Qxk = np.empty((len(queries_QxD), k), np.int64)
    found = [shard.search(queries_QxD, k) for shard in self._shards]
    for q, parts in enumerate(zip(*found, strict=True)):
      distances, ids = map(np.concatenate, zip(*parts, strict=True))
      if len(ids) < k:
        raise ValueError(
          f'index {self._spec!r} found {len(ids)} of {k} neighbours: search '
          'more of it (such as IVF64,Flat;nprobe=16)'
        )
      order = np.lexsort((ids, distances))[:k]
      distances_Qxk[q], ids_Qxk[q] = distances[order], ids[order]
    return distances_Qxk, ids_Qxk


def sample(
  store: store_lib.Store, count: int, rng: np.random.Generator
) -> np.ndarray:
  """At most `count` different searchable vectors, in id order, as float32."""
  shards = store.manifest.shards
  total = store.manifest.searchable
  picked = np.sort(rng.choice(total, min(count, total), replace=False))
  ends = np.cumsum([shard.searchable for shard in shards])
  parts = np.split(picked, np.searchsorted(picked, ends[:-1]))
  begins = np.concatenate([[0], ends[:-1]])
  vectors = [
    store.vectors(i).gather(shards[i].row_of(part - begins[i]))
    for i, part in enumerate(parts)
  ]
  return np.concatenate(vectors).astype(np.float32)


def self_check(
  store: store_lib.Store,
  *,
  threads: int,
  queries: int = 100,
  k: int = 10,
  seed: int = 0,
) -> Mapping[str, float]:
  """Compares searches for stored vectors with brute force over the vectors.

  Returns:
    'queries' and 'k' as used; 'recall', the part of the answers that are as
    near as the true k-th neighbour; 'max_distance_error', the largest
    |d - a| / (|q| + a) over the answers, where d is the distance in the answer
    and a that between the query q and the stored vector of the answer's id
    (not small where files are mixed up or ids are shifted).
  """
  queries_QxD = sample(store, queries, np.random.default_rng(seed))
  k = min(k, store.manifest.searchable)
  engine = Engine(store, threads=threads)
  distances_Qxk, ids_Qxk = engine.search(queries_QxD, k)
  queries_QxD = queries_QxD.astype(np.float64)
  norms_Qx1 = np.linalg.norm(queries_QxD, axis=1, keepdims=True)
  actual_Qxk = np.empty((len(queries_QxD), k))
  nearest_Qxk = np.full((len(queries_QxD), k), np.inf)
  first_id = 0
  for i, shard in enumerate(store.manifest.shards):
    vectors = store.vectors(i)
    here_Qxk = (first_id <= ids_Qxk) & (ids_Qxk < first_id + shard.rows)
    answers = vectors.gather(ids_Qxk[here_Qxk] - first_id).astype(np.float64)
    differences = queries_QxD[np.nonzero(here_Qxk)[0]] - answers
    actual_Qxk[here_Qxk] = np.linalg.norm(differences, axis=1)
    for _, block_BxD in vectors.blocks():
      block_BxD = block_BxD[np.isfinite(block_BxD).all(axis=1)]
      near_QxB = _pairwise(queries_QxD, block_BxD.astype(np.float64))
      nearest_Qxk = np.concatenate([nearest_Qxk, near_QxB], axis=1)
      nearest_Qxk = np.partition(nearest_Qxk, k - 1, axis=1)[:, :k]
    first_id += shard.rows
  limit_Qx1 = nearest_Qxk.max(axis=1, keepdims=True) + 1e-6 * norms_Qx1
  scale = norms_Qx1 + actual_Qxk + np.finfo(np.float64).tiny
  error_Qxk = np.abs(distances_Qxk - actual_Qxk) / scale
  return {
    'queries': len(queries_QxD),
    'k': k,
    'recall': float(np.mean(actual_Qxk <= limit_Qx1)),
    'max_distance_error': float(error_Qxk.max()),
  }


def _pairwise(queries_QxD: np.ndarray, vectors_BxD: np.ndarray) -> np.ndarray:
  """L2 distances [Q, B] in expanded form; float64 in and out."""
  squares_QxB = (
    np.square(queries_QxD).sum(axis=1)[:, None]
    + np.square(vectors_BxD).sum(axis=1)
    - 2 * queries_QxD @ vectors_BxD.T
  )
  return np.sqrt(np.maximum(squares_QxB, 0))
