"""kNN-LM: the model's distribution mixed with what followed like contexts.

Khandelwal et al., "Generalization through Memorization: Nearest Neighbor
Language Models", ICLR 2020 (arXiv 1911.00172). An entry of the store is a
context's vector, the key, and the token that followed it, the value. With the
entries i next to the context's own key q,

  p_kNN(y) = sum_{i: v_i = y} w_i exp(s_i) / sum_i w_i exp(s_i)
  s_i = -|q - x_i|^2 / T for l2, q x_i / T for ip and cosine
  log p(y) = logaddexp(log(1 - lambda) + log p_LM(y), log lambda + log p_kNN(y))

with w_i = 1, or the number of entries that i stands for. Distances are those of
`datastore.metric`, what a search gives: for l2 NOT squared, which is done here,
and for the others the smaller the nearer, too.

Where a search finds less than it was asked for, an id is -1, a value -1, or a
distance infinite; such a neighbour does not count. A context for which none is
left has no p_kNN, and the model alone counts.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.datastore import metric as metric_lib

_BLOCK = 1 << 15  # Neighbours whose scores are there at once: 256 KiB.


@dataclasses.dataclass(frozen=True)
class Settings:
  """How neighbours count; fields as `knn` of `configs/base.py`."""

  neighbors: int = 1024
  lambda_: float = 0.25
  temperature: float = 1.0

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `knn` of the config, which may have more than this."""
    return cls(
      neighbors=section['neighbors'],
      lambda_=section['lambda'],
      temperature=section['temperature'],
    )

  def __post_init__(self):
    if self.neighbors < 1:
      raise ValueError(f'knn.neighbors={self.neighbors} is not 1 or more')
    if not 0 <= self.lambda_ <= 1:
      raise ValueError(f'knn.lambda={self.lambda_} is not from 0 to 1')
    if not 0 < self.temperature < math.inf:
      raise ValueError(f'knn.temperature={self.temperature} is not above 0')


def look_up(values_N: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """The values of entries in int32, of the ids' shape; -1 for id -1."""
  ids = np.asarray(ids)
  found = values_N[np.maximum(ids, 0)].astype(np.int32)
  return np.where(ids >= 0, found, np.int32(-1))


def drop_self(
  own_T: np.ndarray, distances_TxM: np.ndarray, ids_TxM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Neighbours without the entry that is the query itself.

  By id, as another entry may lie as near.

  Args:
    own_T: the id of each query's own entry; -1 where it has none.
    distances_TxM: of k + 1 neighbours, nearest first.
    ids_TxM: likewise, none twice.

  Returns:
    distances_Txk, ids_Txk: of the others, the k nearest where all are others.
  """
  own_TxM = (ids_TxM == np.asarray(own_T)[:, None]) & (ids_TxM >= 0)
  order_Txk = np.argsort(own_TxM, axis=1, kind='stable')[:, :-1]
  return (
    np.take_along_axis(distances_TxM, order_Txk, axis=1),
    np.take_along_axis(ids_TxM, order_Txk, axis=1),
  )


def log_probability(
  distances_Txk: np.ndarray,
  values_Txk: np.ndarray,
  targets_T: np.ndarray,
  *,
  metric: str,
  temperature: float,
  weights_Txk: np.ndarray | None = None,
) -> np.ndarray:
  """log p_kNN of each target, float64 [T]; see `log_probabilities`.

  Neighbours may stand in any order.
  """
  log_p_Txtxk = log_probabilities(
    distances_Txk,
    values_Txk,
    targets_T,
    metric=metric,
    temperatures=[temperature],
    ks=[np.shape(distances_Txk)[-1]],
    weights_Txk=weights_Txk,
  )
  return log_p_Txtxk[:, 0, 0]


def log_probabilities(
  distances_Txk: np.ndarray,
  values_Txk: np.ndarray,
  targets_T: np.ndarray,
  *,
  metric: str,
  temperatures: Sequence[float],
  ks: Sequence[int],
  weights_Txk: np.ndarray | None = None,
) -> np.ndarray:
  """log p_kNN of the targets alone, [T, temperatures, ks].

  -inf where neighbours are there and none has the target as value, NaN where
  there is no p_kNN. No array [T, V] is made. In float64, since float32 of a
  squared distance is off by as much as a thousandth where that is 10^4.

  Args:
    distances_Txk: as a search gives them, nearest first where there are several
      ks.
    values_Txk: of the neighbours.
    targets_T: token ids.
    metric: of the store.
    temperatures: T, each above 0.
    ks: how many of the neighbours count.
    weights_Txk: w, above 0; None: all 1.

  Raises:
    ValueError: for an unknown metric, arrays of different shapes, a k that is
      not there, a distance that is NaN or -inf, or neighbours out of order.
  """
  metric_lib.check(metric)
  _check_shapes(distances_Txk, values_Txk, weights_Txk, targets_T)
  tokens, most = np.shape(distances_Txk)
  ks, of_ks = np.unique(np.asarray(ks, np.int64), return_inverse=True)
  if not most:  # Nobody has asked for neighbours, or nobody has any.
    return np.full((tokens, len(temperatures), len(of_ks)), np.nan)
  if not 1 <= ks[0] <= ks[-1] <= most:
    raise ValueError(f'k of {ks.tolist()}, but there are {most} neighbours')
  log_p = np.empty((tokens, len(temperatures), len(ks)))
  size = max(1, _BLOCK // int(ks[-1]))
  for begin in range(0, tokens, size):
    rows = slice(begin, begin + size)
    part = rows, slice(0, ks[-1])
    # As integers of one kind: targets may be signed where values are not.
    values_Rxk = values_Txk[part].astype(np.int64)
    distances_Rxk = distances_Txk[part].astype(np.float64)
    distances_Rxk[values_Rxk < 0] = np.inf
    _check_distances(distances_Rxk, begin, len(ks) > 1)
    costs_Rxk = distances_Rxk**2 if metric == 'l2' else distances_Rxk
    hits_Rxk = values_Rxk == np.asarray(targets_T[rows], np.int64)[:, None]
    hits = np.nonzero(hits_Rxk & (distances_Rxk < np.inf))
    for place, temperature in enumerate(temperatures):
      scores_Rxk = costs_Rxk / -temperature
      if weights_Txk is not None:
        scores_Rxk += np.log(weights_Txk[part], dtype=np.float64)
      log_p[rows, place] = _of_block(scores_Rxk, hits, ks)
  return log_p[..., of_ks]


def _of_block(
  scores_Rxk: np.ndarray, hits: tuple[np.ndarray, np.ndarray], ks: np.ndarray
) -> np.ndarray:
  """log p_kNN by the first k scores, for each of the ascending ks, [R, ks].

  Args:
    scores_Rxk: log of the entries' shares; -inf where there is none.
    hits: rows and columns of those that have the target as value.
    ks: ascending.
  """
  rows, columns = hits
  most_R = scores_Rxk.max(axis=1)
  most_R[most_R == -np.inf] = 0
  shares_Rxk = np.exp(scores_Rxk - most_R[:, None])
  all_RxK = np.add.reduceat(shares_Rxk, np.r_[0, ks[:-1]], axis=1)
  # Those that have the target get a maximum of their own, or they would be
  # nothing beside others that are far nearer.
  scores = scores_Rxk[rows, columns]
  best_R = np.full(len(most_R), -np.inf)
  np.maximum.at(best_R, rows, scores)
  places = rows * len(ks) + np.searchsorted(ks, columns, side='right')
  shares = np.exp(scores - best_R[rows])
  hit_RxK = np.bincount(places, shares, all_RxK.size).reshape(all_RxK.shape)
  with np.errstate(divide='ignore', invalid='ignore'):
    log_ratio_RxK = np.log(np.cumsum(hit_RxK, 1) / np.cumsum(all_RxK, 1))
  return (best_R - most_R)[:, None] + log_ratio_RxK


def shares(
  distances_Rxk: np.ndarray,
  values_Rxk: np.ndarray,
  *,
  metric: str,
  temperature: float,
) -> np.ndarray:
  """What each neighbour has of its row's p_kNN, float64 [R, k].

  All 0 in a row that has none. Arguments and errors as of `log_probability`.
  """
  metric_lib.check(metric)
  _check_shapes(distances_Rxk, values_Rxk, None, np.empty(len(distances_Rxk)))
  distances_Rxk = np.where(values_Rxk < 0, np.inf, np.float64(distances_Rxk))
  _check_distances(distances_Rxk, 0, False)
  costs_Rxk = distances_Rxk**2 if metric == 'l2' else distances_Rxk
  least_Rx1 = costs_Rxk.min(axis=1, keepdims=True)
  least_Rx1[least_Rx1 == np.inf] = 0
  shares_Rxk = np.exp((least_Rx1 - costs_Rxk) / temperature)
  total_Rx1 = shares_Rxk.sum(axis=1, keepdims=True)
  return shares_Rxk / np.where(total_Rx1 == 0, 1, total_Rx1)


def interpolate(
  log_p_lm: np.ndarray, log_p_knn: np.ndarray, lambda_: float | np.ndarray
) -> np.ndarray:
  """Log of the mixture, float64; the arguments broadcast.

  With lambda 0, or a NaN as log p_kNN, exactly the model's.

  Args:
    log_p_lm: of tokens by the model, nats.
    log_p_knn: of the same, as `log_probability` gives it.
    lambda_: weight of p_kNN, from 0 to 1.
  """
  nothing = np.isnan(log_p_knn)
  lambda_ = np.where(nothing, 0.0, lambda_)
  log_p_knn = np.where(nothing, -np.inf, log_p_knn)
  with np.errstate(divide='ignore'):  # Of 0, at both ends.
    return np.logaddexp(
      np.log1p(-lambda_) + np.asarray(log_p_lm, np.float64),
      np.log(lambda_) + log_p_knn,
    )


def distribution(
  distances_Rxk: jax.Array,
  values_Rxk: jax.Array,
  *,
  vocabulary: int,
  metric: str,
  temperature: float | jax.Array,
  weights_Rxk: jax.Array | None = None,
) -> jax.Array:
  """p_kNN of all tokens, float32 [R, V], to be compiled by the caller.

  All 0 in a row that has none.

  Args:
    distances_Rxk: as of `log_probability`; a NaN makes its row NaN.
    values_Rxk: below V.
    vocabulary: V.
    metric: of the store.
    temperature: T.
    weights_Rxk: as of `log_probability`.

  Raises:
    ValueError: for an unknown metric.
  """
  metric_lib.check(metric)
  distances_Rxk = jnp.asarray(distances_Rxk, jnp.float32)
  found_Rxk = (values_Rxk >= 0) & ~jnp.isposinf(distances_Rxk)
  distances_Rxk = jnp.where(found_Rxk, distances_Rxk, jnp.inf)
  nearest_Rx1 = jnp.min(distances_Rxk, axis=1, keepdims=True, initial=jnp.inf)
  # Of squares the difference from the least is exact to more digits so.
  away_Rxk = distances_Rxk - nearest_Rx1
  if metric == 'l2':
    away_Rxk *= distances_Rxk + nearest_Rx1
  shares_Rxk = jnp.exp(-away_Rxk / temperature)
  if weights_Rxk is not None:
    shares_Rxk *= weights_Rxk
  shares_Rxk = jnp.where(found_Rxk, shares_Rxk, 0)
  total_Rx1 = jnp.sum(shares_Rxk, axis=1, keepdims=True)
  shares_Rxk /= jnp.where(total_Rx1 == 0, 1, total_Rx1)
  rows = len(shares_Rxk)
  # Out of bounds, where nothing is added; -1 would be the last token.
  places_Rxk = jnp.where(found_Rxk, values_Rxk, vocabulary)
  p_RxV = jnp.zeros((rows, vocabulary), jnp.float32)
  return p_RxV.at[jnp.arange(rows)[:, None], places_Rxk].add(
    shares_Rxk, mode='drop'
  )


def mixture(
  log_p_lm_RxV: jax.Array, p_knn_RxV: jax.Array, lambda_: float | jax.Array
) -> jax.Array:
  """Log of the mixture of whole distributions, [R, V].

  Exactly the model's with lambda 0, and in rows where p_kNN is 0 everywhere.

  Args:
    log_p_lm_RxV: of the model, nats.
    p_knn_RxV: from `distribution`.
    lambda_: weight of p_kNN, from 0 to 1, or one a row [R].
  """
  nothing_R = jnp.sum(p_knn_RxV, axis=1) == 0
  lambda_Rx1 = jnp.where(nothing_R, 0.0, lambda_)[:, None]
  return jnp.logaddexp(
    jnp.log1p(-lambda_Rx1) + log_p_lm_RxV,
    jnp.log(lambda_Rx1) + jnp.log(p_knn_RxV),
  )


def _check_distances(
  distances_Rxk: np.ndarray, begin: int, ordered: bool
) -> None:
  bad = np.flatnonzero(~(distances_Rxk > -np.inf).all(axis=1))
  if bad.size:
    raise ValueError(
      f'token {begin + bad[0]} has a neighbour whose distance is NaN or -inf'
    )
  if not ordered:
    return
  bad = (distances_Rxk[:, 1:] < distances_Rxk[:, :-1]).any(axis=1)
  if bad.any():
    raise ValueError(
      f'neighbours of token {begin + bad.argmax()} do not come nearest first: '
      'they cannot be cut to the k nearest'
    )


def _check_shapes(distances_Txk, values_Txk, weights_Txk, targets_T) -> None:
  shape = np.shape(distances_Txk)
  for other, wanted in (
    (values_Txk, shape),
    (weights_Txk, shape),
    (targets_T, shape[:1]),
  ):
    if other is not None and np.shape(other) != wanted:
      raise ValueError(
        f'an array of shape {list(np.shape(other))} for distances of shape '
        f'{list(shape)}'
      )
