"""What a kNN-LM is tuned by, on documents that are not the scored ones.

What a search found for each token of an evaluation set is kept once; then
temperatures, ks and lambdas are array operations. lambda may also go by how
near the nearest neighbour is (Drozdov et al., "You can't pick your neighbors,
or can you? When and how to rely on retrieval in the kNN-LM", Findings of EMNLP
2022, arXiv 2210.15859).
"""

from collections.abc import Sequence
import dataclasses
from typing import Self

import numpy as np

from tttnn import files
from tttnn.methods import knn_lm

_ROWS = 1 << 14  # Tokens whose log-likelihoods are there at once.


@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
  """The T tokens of an evaluation set, document after document.

  A large set may be kept in parts, as what `sweep` says of them adds up.

  Attributes:
    metric: of the store.
    ids_Txk: of the neighbours, nearest first, -1 where there is none.
    distances_Txk: see `knn_lm`; exact ones or those of codes, not both.
    values_Txk: the tokens that followed, -1 where there is none.
    log_p_lm_T: of the targets by the model, nats.
    targets_T: token ids.
    offsets: [documents + 1], where each document begins, and T.
    weights_Txk: entries that each neighbour stands for; None: all 1.
  """

  metric: str
  ids_Txk: np.ndarray
  distances_Txk: np.ndarray
  values_Txk: np.ndarray
  log_p_lm_T: np.ndarray
  targets_T: np.ndarray
  offsets: np.ndarray
  weights_Txk: np.ndarray | None = None

  def __post_init__(self):
    shape = self.distances_Txk.shape
    for field in dataclasses.fields(self):
      found = getattr(self, field.name)
      wanted = shape if field.name.endswith('_Txk') else shape[:1]
      if field.name in ('metric', 'offsets') or found is None:
        continue
      if found.shape != wanted:
        raise ValueError(
          f'{field.name} has shape {list(found.shape)}, distances_Txk '
          f'{list(shape)}'
        )
    begins = self.offsets
    if begins[0] or begins[-1] != shape[0] or (np.diff(begins) < 0).any():
      raise ValueError(
        f'offsets from {begins[0]} to {begins[-1]} of {shape[0]} tokens must '
        f'ascend from 0 to {shape[0]}'
      )

  def save(self, path: str) -> None:
    """Writes an .npz as a whole."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    with files.atomic(path) as file:
      np.savez(file, **{k: v for k, v in fields.items() if v is not None})

  @classmethod
  def load(cls, path: str) -> Self:
    """What `save` wrote.

    Raises:
      ValueError: for a file that is something else.
    """
    with np.load(path, allow_pickle=False) as held:
      try:
        return cls(**{**held, 'metric': str(held['metric'])})
      except (KeyError, TypeError) as e:
        raise ValueError(f'{path} holds {list(held)}: {e}') from e


def sweep(
  cache: Cache,
  lambdas: Sequence[float],
  temperatures: Sequence[float],
  ks: Sequence[int],
) -> np.ndarray:
  """Total log-likelihoods in nats, [lambdas, temperatures, ks].

  p_kNN is computed once for each temperature and k; lambdas cost little.

  Raises:
    ValueError: for settings that `knn_lm.Settings` refuses, and as
      `knn_lm.log_probabilities`.
  """
  for values, name in (
    (lambdas, 'lambda_'),
    (temperatures, 'temperature'),
    (ks, 'neighbors'),
  ):
    for value in values:
      knn_lm.Settings(**{name: value})
  lambdas_L = np.asarray(lambdas, np.float64)[:, None]
  total = np.zeros((len(lambdas), len(temperatures), len(ks)))
  for begin in range(0, len(cache.targets_T), _ROWS):
    rows = slice(begin, begin + _ROWS)
    weights_Txk = cache.weights_Txk
    if weights_Txk is not None:
      weights_Txk = weights_Txk[rows]
    log_p_knn = knn_lm.log_probabilities(
      cache.distances_Txk[rows],
      cache.values_Txk[rows],
      cache.targets_T[rows],
      metric=cache.metric,
      temperatures=temperatures,
      ks=ks,
      weights_Txk=weights_Txk,
    )
    log_p_lm_T = cache.log_p_lm_T[rows]
    for place in np.ndindex(total.shape[1:]):
      mixed_LxT = knn_lm.interpolate(
        log_p_lm_T, log_p_knn[:, *place], lambdas_L
      )
      total[:, *place] += mixed_LxT.sum(axis=1)
  return total


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
  """lambda by the distance of the nearest neighbour.

  Attributes:
    edges: between bins, ascending; an edge belongs to the bin above it.
    lambdas: one a bin, so one more.
  """

  edges: np.ndarray
  lambdas: np.ndarray

  def lambda_of(self, nearest_T: np.ndarray) -> np.ndarray:
    """lambda of tokens, [T]; 0 without a neighbour, whose distance is inf."""
    bins_T = np.searchsorted(self.edges, nearest_T, side='right')
    return np.where(np.isfinite(nearest_T), self.lambdas[bins_T], 0.0)


def fit_bins(
  nearest_T: np.ndarray,
  log_p_lm_T: np.ndarray,
  log_p_knn_T: np.ndarray,
  *,
  bins: int,
  lambdas: Sequence[float],
) -> Bins:
  """Bins of about equally many tokens, each with the lambda that is best there.

  Of equal ones the smallest. Where many tokens share a distance there are fewer
  bins; tokens without a neighbour are in none.

  Args:
    nearest_T: distance of each token's nearest neighbour; inf: it has none.
    log_p_lm_T: nats.
    log_p_knn_T: as `knn_lm.log_probability` gives it.
    bins: how many.
    lambdas: to choose from.

  Raises:
    ValueError: without bins, lambdas, or tokens that have a neighbour.
  """
  if bins < 1 or not len(lambdas):
    raise ValueError(f'{bins} bins and {len(lambdas)} lambdas; 1 of either')
  found_T = np.isfinite(nearest_T)
  if not found_T.any():
    raise ValueError(f'none of {len(found_T)} tokens has a neighbour')
  nearest = np.asarray(nearest_T)[found_T]
  # Distances that are there, so that no bin is empty.
  shares = np.arange(1, bins) / bins
  edges = np.unique(np.quantile(nearest, shares, method='higher'))
  edges = edges[edges > nearest.min()]
  bin_of = np.searchsorted(edges, nearest, side='right')
  log_p_lm, log_p_knn = log_p_lm_T[found_T], log_p_knn_T[found_T]
  lambdas = np.sort(np.asarray(lambdas, np.float64))
  totals = [  # One a bin for each lambda.
    np.bincount(bin_of, knn_lm.interpolate(log_p_lm, log_p_knn, lambda_))
    for lambda_ in lambdas
  ]
  return Bins(edges, lambdas[np.argmax(totals, axis=0)])
