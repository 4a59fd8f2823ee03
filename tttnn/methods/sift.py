"""SIFT: texts that say most about a query, given those chosen before them.

Huebotter, Bongni, Hakimi & Krause, "Efficiently Learning at Test-Time: Active
Fine-Tuning of LLMs", ICLR 2025 (arXiv 2410.08020). The answer at the query is
the value there of a Gaussian process whose kernel is the cosine of embeddings;
each text trained on is an observation of it with noise lambda. The next text
is the one that leaves least of the variance at the query. A text may come
again.
"""

from collections.abc import Sequence
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.methods import gram

_AT_ONCE = 8  # Queries of a program: starting one takes half of one's time.


@functools.partial(jax.jit, static_argnames='count')
def posterior(
  cosines_M: jax.Array,
  gram_MxM: jax.Array,
  allowed_M: jax.Array,
  *,
  lambda_: float,
  count: int,
) -> tuple[jax.Array, jax.Array]:
  """The picks for one query, by a Cholesky factorisation that goes with them.

  With k_n the kernel after n picks: each pick j has the largest
  k_n(q, j)^2 / (k_n(j, j) + lambda), which is what it takes from k_n(q, q),
  and then k_{n+1}(a, b) = k_n(a, b) - k_n(a, j) k_n(j, b) / (k_n(j, j) +
  lambda). Kept are c = k_n(q, .), v = k_n(., .), s2 = k_n(q, q), and of the
  rest the factors l = k_n(., j) / sqrt(k_n(j, j) + lambda), whose products are
  what k_0 has lost.

  Args:
    cosines_M: k_0 of the query and the candidates.
    gram_MxM: k_0 among the candidates.
    allowed_M: which of them may be picked; of equal gains, the first one is.
    lambda_: variance of the noise.
    count: N, picks.

  Returns:
    Places of the picks [N], and s2 after each [N].
  """

  def pick(state, n):
    c_M, v_M, s2, l_NxM = state
    gain_M = jnp.where(allowed_M, c_M * c_M / (v_M + lambda_), -jnp.inf)
    j = jnp.argmax(gain_M)
    root = jnp.sqrt(v_M[j] + lambda_)
    l_M = (gram_MxM[j] - l_NxM[:, j] @ l_NxM) / root
    l_q = c_M[j] / root
    c_M = c_M - l_M * l_q
    v_M = jnp.maximum(v_M - l_M * l_M, 0)
    s2 = jnp.maximum(s2 - l_q * l_q, 0)
    return (c_M, v_M, s2, l_NxM.at[n].set(l_M)), (j, s2)

  l_NxM = jnp.zeros((count, len(cosines_M)), cosines_M.dtype)
  s2 = jnp.ones((), cosines_M.dtype)
  start = cosines_M, jnp.diagonal(gram_MxM), s2, l_NxM
  return jax.lax.scan(pick, start, jnp.arange(count))[1]


@functools.partial(jax.jit, static_argnames='count')
def _posteriors(cosines_QxM, gram_QxMxM, allowed_QxM, lambda_, count: int):
  """`posterior` of some queries, one after another."""

  def one(query):
    return posterior(*query, lambda_=lambda_, count=count)

  return jax.lax.map(one, (cosines_QxM, gram_QxMxM, allowed_QxM))


def choose(
  queries_QxD: np.ndarray,
  vectors: Sequence[np.ndarray],
  *,
  lambda_: float,
  count: int,
  pool: int,
) -> list[tuple[list[int], list[float]]]:
  """Picks of each query, and the variance after each.

  A few queries at a time are one program, in which each goes by itself: it gets
  the same bits in any company.

  Args:
    queries_QxD: see `gram.each`.
    vectors: likewise. An empty pool has no picks.
    lambda_: variance of the noise.
    count: N.
    pool: M, to which shorter ones are filled up.

  Raises:
    ValueError: as `gram.each`.
  """
  cpu = jax.local_devices(backend='cpu')[0]

  def some(products):
    cosines_QxM = np.zeros((_AT_ONCE, pool))
    gram_QxMxM = np.zeros((_AT_ONCE, pool, pool))
    allowed_QxM = np.zeros((_AT_ONCE, pool), bool)
    sizes = [len(of_query.cosines_M) for of_query in products]
    for i, (size, of_query) in enumerate(zip(sizes, products, strict=True)):
      cosines_QxM[i, :size] = of_query.cosines_M
      gram_QxMxM[i, :size, :size] = of_query.gram_MxM
      allowed_QxM[i, :size] = of_query.distinct_M
    # What is switched on and chosen here is of this thread alone.
    with jax.enable_x64(True), jax.default_device(cpu):
      picks_QxN, variances_QxN = jax.device_get(
        _posteriors(cosines_QxM, gram_QxMxM, allowed_QxM, lambda_, count)
      )
    found = zip(picks_QxN.tolist(), variances_QxN.tolist(), strict=True)
    return [
      of_query if size else ([], [])
      for size, of_query in zip(sizes, found, strict=False)
    ]

  return gram.each(some, queries_QxD, vectors, _AT_ONCE)


def stop(variances: Sequence[float], alpha: float) -> int:
  """How many picks to keep (section 3 of the paper, "adaptive").

  Those before the first whose sigma_n, the root of the variance after n picks,
  exceeds 1 / (alpha n). Where sigma_1 does already, which takes an alpha above
  1, none is left.
  """
  for n, variance in enumerate(variances, 1):
    if math.sqrt(variance) * alpha * n > 1:
      return n - 1
  return len(variances)
