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


def choose(
  queries_QxD: np.ndarray,
  vectors: Sequence[np.ndarray],
  *,
  lambda_: float,
  count: int,
  pool: int,
) -> list[tuple[list[int], list[float]]]:
  """Picks of each query, and the variance after each.

  A query is a program of its own: it gets the same bits in any company, and
  one program serves all, whatever their number.

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

  def one(cosines_M, gram_MxM, allowed_M):
    if not len(cosines_M):
      return [], []
    if more := pool - len(cosines_M):
      cosines_M = np.pad(cosines_M, (0, more))
      gram_MxM = np.pad(gram_MxM, (0, more))
      allowed_M = np.pad(allowed_M, (0, more))
    with jax.enable_x64(True), jax.default_device(cpu):
      picks_N, variances_N = jax.device_get(
        posterior(cosines_M, gram_MxM, allowed_M, lambda_=lambda_, count=count)
      )
    return picks_N.tolist(), variances_N.tolist()

  return gram.each(one, queries_QxD, vectors)


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
