"""What a kNN-LM is tuned by, on documents that are not the scored ones.

What a search found for each token of an evaluation set is kept once; then
temperatures, ks and lambdas are array operations. lambda may also go by how
near the nearest neighbour is (Drozdov et al., "You can't pick your neighbors,
or can you? When and how to rely on retrieval in the kNN-LM", Findings of EMNLP
2022, arXiv 2210.15859).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Self

import numpy as np

from tttnn import files
from tttnn.methods import knn_lm

_ROWS = 1 << 14  # Tokens whose log-likelihoods are there at once.


@dataclasses.dataclass(frozen=True)
class Grid:
  """What is tried, each with each; ascending, none twice.

  Attributes:
    lambdas: from 0 to 1.
    temperatures: above 0.
    ks: 1 or more.

  Raises:
    ValueError: for none of one of them, or what `knn_lm.Settings` refuses.
  """

  lambdas: tuple[float, ...]
  temperatures: tuple[float, ...]
  ks: tuple[int, ...]

  def __post_init__(self):
    _check(self.lambdas, self.temperatures, self.ks)
    for field in dataclasses.fields(self):
      values = getattr(self, field.name)
      if not values:
        raise ValueError(f'there are no {field.name} to choose from')
      object.__setattr__(self, field.name, tuple(sorted(set(values))))

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `knn` of the config; '' is the one value that it has.

    Raises:
      ValueError: likewise, and for what is no list of numbers.
    """
    return cls(
      _numbers(section, 'lambdas', float) or (section['lambda'],),
      _numbers(section, 'temperatures', float) or (section['temperature'],),
      _numbers(section, 'ks', int) or (section['neighbors'],),
    )

  def best(self, log_likelihood_LxtxK: np.ndarray) -> knn_lm.Settings:
    """The settings with the largest log-likelihood, as `sweep` gives them.

    Of equal ones the smallest lambda, then temperature, then k. NaN counts as
    minus infinity.
    """
    filled = np.nan_to_num(
      log_likelihood_LxtxK, nan=-np.inf, posinf=np.inf, neginf=-np.inf
    )
    lambda_, temperature, k = np.unravel_index(filled.argmax(), filled.shape)
    return knn_lm.Settings(
      neighbors=self.ks[k],
      lambda_=self.lambdas[lambda_],
      temperature=self.temperatures[temperature],
    )


def _numbers(section: Mapping[str, Any], key: str, kind: type) -> tuple:
  """Those of a comma-separated text."""
  parts = [part for part in section[key].split(',') if part.strip()]
  try:
    return tuple(map(kind, parts))
  except ValueError as e:
    raise ValueError(
      f'knn.{key}={section[key]!r} is no list of numbers: {e}'
    ) from e


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


def join(parts: Sequence[Cache]) -> Cache:
  """The documents of one or more, in their order, all without weights."""
  offsets = [np.zeros(1, int)]
  for part in parts:
    offsets.append(part.offsets[1:] + offsets[-1][-1])
  names = ('ids_Txk', 'distances_Txk', 'values_Txk', 'log_p_lm_T', 'targets_T')
  return Cache(
    metric=parts[0].metric,
    offsets=np.concatenate(offsets),
    **{
      name: np.concatenate([getattr(part, name) for part in parts])
      for name in names
    },
  )


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
  _check(lambdas, temperatures, ks)
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


def _check(lambdas, temperatures, ks) -> None:
  for values, name in (
    (lambdas, 'lambda_'),
    (temperatures, 'temperature'),
    (ks, 'neighbors'),
  ):
    for value in values:
      knn_lm.Settings(**{name: value})


def nearest(distances_TxM: np.ndarray, values_TxM: np.ndarray) -> np.ndarray:
  """Distance of each token's nearest neighbour, [T]; inf: it has none.

  Arguments as of `knn_lm.log_probability`.
  """
  there_TxM = np.where(values_TxM >= 0, distances_TxM, np.inf)
  return there_TxM.min(axis=1, initial=np.inf)


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

  @property
  def text(self) -> str:
    """For `parse`, which gives the same to the last bit."""
    begins = [-math.inf, *map(float, self.edges)]
    pairs = zip(begins, map(float, self.lambdas), strict=True)
    return ','.join(f'{begin!r}:{lambda_!r}' for begin, lambda_ in pairs)

  @classmethod
  def parse(cls, text: str) -> Self:
    """From '-inf:0.4,1.5:0.2': where each bin begins, and its lambda.

    Raises:
      ValueError: for a text that is none, bins that do not ascend from -inf, or
        a lambda that is not from 0 to 1.
    """
    try:
      pairs = [tuple(map(float, part.split(':'))) for part in text.split(',')]
      begins, lambdas = map(np.array, zip(*pairs, strict=True))
    except ValueError as e:
      raise ValueError(
        f"{text!r} is not distances and lambdas as '-inf:0.4,1.5:0.2': {e}"
      ) from e
    if begins[0] != -math.inf or not (begins[1:] > begins[:-1]).all():
      raise ValueError(f'the distances of {text!r} do not ascend from -inf')
    for lambda_ in lambdas.tolist():
      knn_lm.Settings(lambda_=lambda_)
    return cls(begins[1:], lambdas)


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
