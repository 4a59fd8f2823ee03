"""HullFT: a query as a mean of texts, each with its number of repetitions.

Khamis & Maalouf, 2026 (arXiv 2605.30337). Frank-Wolfe finds a sparse convex
combination of the candidates near the query, both of length 1; its weights
become whole numbers of training steps. With the products of candidates at hand
an iteration takes O(M), a unit of weight O(m) for m candidates with weight.
"""

from collections.abc import Sequence
import math

import numpy as np

from tttnn.methods import gram

_ITERATIONS = 250
_RESIDUAL = 1e-5  # Where the combination is this near, it is the query.
_SQUARED_STEP = 1e-12
_PASSES = 2
_DECREASE = 1e-14  # Of the squared distance, that a swap must be worth.


def choose(
  queries_QxD: np.ndarray, vectors: Sequence[np.ndarray], *, count: int
) -> list[tuple[list[int], float]]:
  """Picks of each query, and how far their mean is from it.

  The candidate of largest weight comes first, repetitions come together. An
  empty pool has no picks, and all of the query is left.

  Args:
    queries_QxD: see `gram.each`.
    vectors: likewise.
    count: N, picks with repetitions.

  Raises:
    ValueError: as `gram.each`.
  """

  def one(of):
    if not len(of.cosines_M):
      return [], 1.0
    weights_M = weights(of.cosines_M, of.gram_MxM, of.distinct_M, count)
    places = np.argsort(-weights_M, kind='stable')
    places = places[: np.count_nonzero(weights_M)]
    b_m, gram_mxm = of.cosines_M[places], of.gram_MxM[np.ix_(places, places)]
    c_m = integers(weights_M[places], b_m, gram_mxm, count)
    square = 1 - 2 * c_m @ b_m / count + c_m @ gram_mxm @ c_m / count**2
    return np.repeat(places, c_m).tolist(), math.sqrt(max(square, 0.0))

  return gram.each(lambda some: [*map(one, some)], queries_QxD, vectors)


def weights(
  cosines_M: np.ndarray,
  gram_MxM: np.ndarray,
  allowed_M: np.ndarray,
  count: int,
) -> np.ndarray:
  """Weights [M] of a convex combination z of at most `count` candidates.

  Each iteration goes towards the candidate x_s with the largest product with
  what is left, q - z, as far as is best. Candidates whose weight has become 0
  do not count; with `count` 1 it is the nearest alone.
  """
  out_M = np.where(allowed_M, 0.0, -np.inf)
  s = np.argmax(cosines_M + out_M)
  w_M = np.zeros(len(cosines_M))
  w_M[s] = 1.0
  zx_M = gram_MxM[s].copy()  # Products with z.
  for _ in range(_ITERATIONS):
    zz = w_M @ zx_M
    left_M = cosines_M - zx_M  # Products with q - z.
    close = 1 - 2 * w_M @ cosines_M + zz < _RESIDUAL**2
    if close or np.count_nonzero(w_M) >= count:
      break
    s = np.argmax(left_M + out_M)
    squared_step = gram_MxM[s, s] - 2 * zx_M[s] + zz  # |x_s - z|^2
    gain = left_M[s] - w_M @ left_M
    if squared_step < _SQUARED_STEP or gain <= 0:  # There is nothing better.
      break
    step = min(gain / squared_step, 1.0)
    w_M *= 1 - step
    w_M[s] += step
    zx_M = (1 - step) * zx_M + step * gram_MxM[s]
  return w_M


def integers(
  weights_m: np.ndarray, b_m: np.ndarray, gram_mxm: np.ndarray, count: int
) -> np.ndarray:
  """Counts c [m], whole numbers whose sum N is `count`, from weights.

  They make E(c) = |q - sum_i c_i x_i / N|^2 small: first all are rounded down,
  then what is missing is added unit by unit where E falls most, then units are
  moved from one to another where E falls.

  Args:
    weights_m: positive, with the sum 1.
    b_m: products of the candidates with the query.
    gram_mxm: products among them.
    count: N.
  """
  c_m = np.floor(count * weights_m).astype(np.int64)
  u_m = gram_mxm @ c_m
  squares_m = np.diagonal(gram_mxm)
  for _ in range(count - c_m.sum()):
    i = np.argmin(2 * u_m - 2 * count * b_m + squares_m)
    c_m[i] += 1
    u_m += gram_mxm[i]
  for _ in range(_PASSES):
    before_m = c_m.copy()
    for i in range(len(c_m)):
      j = -1
      while c_m[i]:  # Each move may take the last one.
        # N^2 E after a move from i to each, less what it is now.
        rise_m = (
          2 * (u_m - u_m[i])
          - 2 * count * (b_m - b_m[i])
          + squares_m
          + squares_m[i]
          - 2 * gram_mxm[i]
        )
        better = np.flatnonzero(rise_m[j + 1 :] < -_DECREASE * count**2)
        if not better.size:
          break
        j += 1 + better[0]
        c_m[i] -= 1
        c_m[j] += 1
        u_m += gram_mxm[j] - gram_mxm[i]
    if np.array_equal(c_m, before_m):
      break
  return c_m
