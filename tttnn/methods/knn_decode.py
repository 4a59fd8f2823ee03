"""Neighbours at each step of a text that is being written.

For `decode.compile_decoder`: the model's distribution of the next token, mixed
with that of the neighbours of each row's key as `knn_lm` has it. With an
encoder-decoder this is kNN-MT (Khandelwal et al., "Nearest Neighbor Machine
Translation", ICLR 2021, arXiv 2010.00710). Most searches can be left out where
neighbours point at those of the next token, as in `retomaton`.
"""

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.datastore import metric as metric_lib
from tttnn.methods import decode
from tttnn.methods import knn_lm
from tttnn.methods import retomaton

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
    live_R = _live(keys_RxD, beams)
    shape = len(live_R), self._settings.neighbors
    distances_Rxk = np.full(shape, np.inf, np.float32)
    ids_Rxk = np.full(shape, -1)
    if live_R.any():
      found = self._search(keys_RxD[live_R])
      distances_Rxk[live_R], ids_Rxk[live_R] = _checked(found, live_R, shape[1])
    return _mixed(
      logits_RxV,
      distances_Rxk,
      self._values(ids_Rxk),
      ~beams.finished_R & ~live_R,
      self._settings,
      self._metric,
    )


class Retomaton:
  """The hook `adjust` that searches only where too few pointers are left.

  Pointers stay with the texts, whatever rows those move to. At step 0 all rows
  begin a sequence: texts that are written one after another may be of any
  number of rows.

  Attributes:
    steps: of all texts so far, each row that is not finished counting one.
    searches: in how many of them a row searched.
  """

  def __init__(
    self,
    new_walk: Callable[[int], retomaton.Walk],
    search: Search,
    values: Values,
    settings: knn_lm.Settings,
    *,
    metric: str,
  ):
    """Arguments but the first, and errors, as of `Knn`.

    Args:
      new_walk: (rows) -> as many at the beginning of a sequence, with
        `settings.neighbors` of a search.
      search: see there.
      values: likewise.
      settings: likewise.
      metric: likewise.
    """
    metric_lib.check(metric)
    self._new_walk, self._walk = new_walk, None
    self._search, self._values = search, values
    self._settings, self._metric = settings, metric
    self.steps = self.searches = 0

  @property
  def saved(self) -> float:
    """Steps without a search / all steps so far (FoSS); NaN of none."""
    return 1 - self.searches / self.steps if self.steps else math.nan

  def __call__(
    self, logits_RxV: jax.Array, keys_RxD: jax.Array, beams: decode.Beams
  ) -> jax.Array:
    """As of `Knn`, of what was searched or pointed at."""
    keys_RxD = np.asarray(keys_RxD, np.float32)
    live_R = _live(keys_RxD, beams)
    if beams.step:
      self._walk.regather(beams.rows_R)
      self._walk.advance(beams.tokens_R)
    else:
      self._walk = self._new_walk(len(live_R))
    need_R = self._walk.ask(live_R)
    found = self._search(keys_RxD[need_R]) if need_R.any() else (None, None)
    distances_RxM, ids_RxM = self._walk.candidates(keys_RxD, *found)
    self.steps += int(live_R.sum())
    self.searches += int(need_R.sum())
    return _mixed(
      logits_RxV,
      distances_RxM,
      self._values(ids_RxM),
      ~beams.finished_R & ~live_R,
      self._settings,
      self._metric,
    )


def _live(keys_RxD: np.ndarray, beams: decode.Beams) -> np.ndarray:
  """Which rows have something to search for, bool [R]."""
  return ~beams.finished_R & np.isfinite(keys_RxD).all(axis=1)


def _mixed(
  logits_RxV: jax.Array,
  distances_RxM: np.ndarray,
  values_RxM: np.ndarray,
  bad_R: np.ndarray,
  settings: knn_lm.Settings,
  metric: str,
) -> jax.Array:
  """Log of the mixture, float32 [R, V]; NaN in bad rows."""
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
