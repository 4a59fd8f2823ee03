"""How far a vector is from a query, under each metric of a store.

    l2       |q - x|
    ip       -qx, so that the nearest come first here too
    cosine   1 - qx of vectors of length 1, which building and searching make

Distances are computed in float64 from the two vectors, row by row, and rounded
to float32: they do not depend on the batch, the index or the threads. Scans
compare scores in float32, `|x|^2 / 2 - qx` or `-qx`, which order rows as
distances do but for rounding; `limit` says how far that may reach.
"""

import numpy as np

METRICS = ('l2', 'ip', 'cosine')
_TINY = float(np.finfo(np.float32).tiny)


def check(metric: str) -> None:
  """Raises `ValueError` unless it is one of METRICS."""
  if metric not in METRICS:
    raise ValueError(
      f'store.metric={metric!r} is not one of {", ".join(METRICS)}'
    )


def prepared(metric: str, vectors_NxD: np.ndarray) -> np.ndarray:
  """What is stored, or searched with, in place of vectors, float32 [N, D].

  For cosine they get length 1; one of length 0 becomes NaN, as it has no
  direction.
  """
  vectors_NxD = np.ascontiguousarray(vectors_NxD, np.float32)
  if metric != 'cosine':
    return vectors_NxD
  wide_NxD = vectors_NxD.astype(np.float64)
  norms_Nx1 = np.sqrt(np.square(wide_NxD).sum(axis=1, keepdims=True))
  with np.errstate(divide='ignore', invalid='ignore'):
    return (wide_NxD / norms_Nx1).astype(np.float32)


def check_queries(queries: np.ndarray, k: int, dim: int, count: int) -> None:
  """Raises `ValueError` for queries or a k that no search can answer."""
  if queries.ndim != 2 or queries.shape[1] != dim:
    raise ValueError(
      f'queries of shape {list(queries.shape)} for a store of dim {dim}'
    )
  if not 1 <= k <= count:
    raise ValueError(
      f'{k} neighbours asked of a store with {count} searchable vectors'
    )
  bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
  if bad.size:
    raise ValueError(f'query {bad[0]} of {len(queries)} is not finite')


def prepared_queries(
  metric: str, queries_QxD: np.ndarray, k: int, dim: int, count: int
) -> np.ndarray:
  """What to search with, float32 [Q, D].

  Raises:
    ValueError: as `check_queries`, or a query without direction.
  """
  queries_QxD = np.ascontiguousarray(queries_QxD, np.float32)
  check_queries(queries_QxD, k, dim, count)
  queries_QxD = prepared(metric, queries_QxD)
  bad = np.flatnonzero(~np.isfinite(queries_QxD).all(axis=1))
  if bad.size:
    raise ValueError(
      f'query {bad[0]} of {len(queries_QxD)} has no direction: its length is 0'
    )
  return queries_QxD


def distances(
  metric: str, query_D: np.ndarray, vectors_NxD: np.ndarray
) -> np.ndarray:
  """Distances [N] in float32 of prepared vectors.

  A query for all of them [D], or one for each [N, D].
  """
  query_D = query_D.astype(np.float64)
  if metric == 'l2':
    difference_NxD = vectors_NxD - query_D
    squares_NxD = np.square(difference_NxD, out=difference_NxD)
    return np.sqrt(squares_NxD.sum(axis=1)).astype(np.float32)
  # Not a product of matrices, in which a row's sum depends on the others.
  products_N = (vectors_NxD * query_D).sum(axis=1)
  return ((metric == 'cosine') - products_N).astype(np.float32)


def of_scores(metric: str, scores: np.ndarray) -> np.ndarray:
  """Distances of what faiss gives: squares for l2, else products."""
  if metric == 'l2':  # Which may come out below 0 by rounding.
    return np.sqrt(np.maximum(scores, 0))
  return ((metric == 'cosine') - scores).astype(np.float32)


def overflows(query_D: np.ndarray, largest: float) -> bool | np.ndarray:
  """Whether a score of some row, of norm up to `largest`, may be infinite.

  Of queries [Q, D]: [Q].
  """
  return (_norm(query_D) + largest) ** 2 >= float(np.finfo(np.float32).max)


def limit(
  metric: str,
  query_D: np.ndarray,
  distance: np.float32 | np.ndarray,
  largest: float,
  *,
  narrowing: float = 0.0,
  flushed: float = 0.0,
) -> np.float32 | np.ndarray:
  """The highest score in float32 that a row within `distance` can have.

  A sum of n products in float32, whatever their order, is off by at most
  nu / (1 - nu) of the sum of their sizes, u = 2^-24 (Higham, "Accuracy and
  Stability of Numerical Algorithms", 2nd ed., section 3.1), and that is at most
  |q| |x|. n is a little more than D: for |x|^2 / 2 and the difference, for the
  parts that a TPU leaves out of its float32 products, and for the float64 here.
  What is below the smallest normal number may count as 0.

  Args:
    metric: of the store.
    query_D: prepared, such that nothing overflows; or queries [Q, D].
    distance: of the furthest row that counts, ties included; or [Q].
    largest: norm that no row exceeds.
    narrowing: scores are of x' with |x - x'| <= narrowing |x| + flushed.
    flushed: likewise.
  """
  norm = _norm(query_D)
  # Ties included.
  d = np.nextafter(distance, np.float32(np.inf)).astype(np.float64)
  longest = largest  # Norm of a row within the distance.
  if metric == 'l2':
    longest = np.minimum(largest, norm + d)
  moved = narrowing * longest + flushed
  dim = query_D.shape[-1]
  nu = (dim + 8) * 2.0**-24
  sizes = norm * (longest + moved)
  score = d - (metric == 'cosine')
  if metric == 'l2':
    sizes += longest**2 / 2
    score = (d**2 - norm**2) / 2 + 2.0**-50 * (d**2 + norm**2)
  score += norm * moved + nu / (1 - nu) * sizes
  score += 4 * dim * _TINY * (1 + norm + longest)
  return np.nextafter(np.float32(score), np.float32(np.inf))


def _norm(query_D: np.ndarray) -> np.float64 | np.ndarray:
  return np.linalg.norm(query_D.astype(np.float64), axis=-1)
