"""Neighbours at each step of a text that is being written.

For `decode.compile_decoder`: the model's distribution of the next token, mixed
with that of the neighbours of each row's key as `knn_lm` has it. With an
encoder-decoder this is kNN-MT (Khandelwal et al., "Nearest Neighbor Machine
Translation", ICLR 2021, arXiv 2010.00710).
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.datastore import metric as metric_lib
from tttnn.methods import decode
from tttnn.methods import knn_lm

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Values = Callable[[np.ndarray], np.ndarray]


class Knn:
  """The hook `adjust` that searches for each row at each step."""

  def __init__(
    self,
    search: Search,
    values: Values,
    settings: knn_lm.Settings,
    *,
    metric: str,
  ):
    """Nothing is kept from step to step: one serves any number of texts.

    Args:
      search: (keys_QxD) -> distances and ids [Q, k] of the `settings.neighbors`
        entries next to each; id -1 where there is none.
      values: (ids) -> the tokens of entries, -1 for id -1.
      settings: how neighbours count.
      metric: of the store.

    Raises:
      ValueError: for an unknown metric.
    """
    metric_lib.check(metric)
    self._search, self._values = search, values
    self._settings, self._metric = settings, metric

  def __call__(
    self, logits_RxV: jax.Array, keys_RxD: jax.Array, beams: decode.Beams
  ) -> jax.Array:
    """Log-probabilities of the next token, float32 [R, V].

    Exactly the model's for rows that find no neighbour, with lambda 0, and for
    those that are finished, which are not searched for. NaN for others whose
    key is not finite.

    Raises:
      ValueError: for an answer that is not to the question.
    """
    keys_RxD = np.asarray(keys_RxD, np.float32)
    live_R = ~beams.finished_R & np.isfinite(keys_RxD).all(axis=1)
    shape = len(live_R), self._settings.neighbors
    distances_Rxk = np.full(shape, np.inf, np.float32)
    ids_Rxk = np.full(shape, -1)
    if live_R.any():
      found = self._search(keys_RxD[live_R])
      distances_Rxk[live_R], ids_Rxk[live_R] = _checked(found, live_R, shape[1])
    return mix(
      logits_RxV,
      distances_Rxk,
      self._values(ids_Rxk),
      bad_R=~beams.finished_R & ~live_R,
      settings=self._settings,
      metric=self._metric,
    )


def mix(
  logits_RxV: jax.Array,
  distances_RxM: np.ndarray,
  values_RxM: np.ndarray,
  *,
  bad_R: np.ndarray,
  settings: knn_lm.Settings,
  metric: str,
) -> jax.Array:
  """Log of the mixture, float32 [R, V].

  Args:
    logits_RxV: of the model.
    distances_RxM: of the neighbours, infinite where there is none.
    values_RxM: their tokens; -1 where there is none.
    bad_R: rows that become NaN.
    settings: lambda and temperature.
    metric: of the store.
  """
  # By itself: fused with more it would be rounded in another way.
  log_p_RxV = decode.log_softmax(logits_RxV)
  return _mix(
    log_p_RxV,
    distances_RxM,
    values_RxM,
    bad_R,
    settings.lambda_,
    settings.temperature,
    metric,
  )


@functools.partial(jax.jit, static_argnums=6)
def _mix(
  log_p_RxV, distances_RxM, values_RxM, bad_R, lambda_, temperature, metric
):
  p_RxV = knn_lm.distribution(
    distances_RxM,
    values_RxM,
    vocabulary=log_p_RxV.shape[1],
    metric=metric,
    temperature=temperature,
  )
  mixed_RxV = knn_lm.mixture(log_p_RxV, p_RxV, lambda_)
  return jnp.where(bad_R[:, None], jnp.nan, mixed_RxV)


def _checked(found, asked_R: np.ndarray, k: int):
  """The answer of a search."""
  wanted = (np.count_nonzero(asked_R), k)
  for array in found:
    if array.shape != wanted:
      raise ValueError(
        f'an answer of shape {list(array.shape)} to {wanted[0]} queries for '
        f'{k} neighbours'
      )
  return found
