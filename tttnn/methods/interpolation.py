"""The model's distribution mixed with the tokens of the neighbours.

The interpolation baseline of Hardt & Sun (ICLR 2024):

  p(v | context) = alpha p_nn(v) + (1 - alpha) p_LM(v | context)

where p_nn is the same at every position: the relative frequencies of tokens in
each neighbour's text, weighted by a softmax over minus their distances.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math

import numpy as np

# Those that the original scores in one pass.
ALPHAS = tuple(n / 100 for n in range(20))
# How alpha is chosen: on documents that are not scored, or, as published, for
# each task on those that are (Q32).
CHOICES = ('validation', 'test')


def grid(alpha: str) -> tuple[float, ...]:
  """The alphas that `interpolation.alpha` wants scored.

  Raises:
    ValueError: for what is neither a choice nor a number from 0 to 1.
  """
  if alpha in CHOICES:
    return ALPHAS
  try:
    value = float(alpha)
  except ValueError:
    value = math.nan
  if not 0 <= value <= 1:
    raise ValueError(
      f'interpolation.alpha={alpha!r} is neither {" nor ".join(CHOICES)} nor a '
      'number from 0 to 1'
    )
  return tuple(sorted({*ALPHAS, value}))


def weights(distances: Sequence[float]) -> np.ndarray:
  """softmax(-distances), float64 [N]."""
  distances_N = np.asarray(distances, np.float64)
  weights_N = np.exp(distances_N.min(initial=np.inf) - distances_N)
  return weights_N / weights_N.sum()


def target_probabilities(
  neighbors: Sequence[Sequence[int]],
  distances: Sequence[float],
  targets: Sequence[int],
) -> np.ndarray | None:
  """p_nn of each target, float64 [T]; None where there is no p_nn.

  A neighbour without tokens has no frequencies and is left out.

  Args:
    neighbors: token ids of each neighbour's whole text.
    distances: of each, Euclidean.
    targets: token ids.
  """
  pairs = [(n, d) for n, d in zip(neighbors, distances, strict=True) if len(n)]
  if not pairs:
    return None
  texts, distances = zip(*pairs, strict=True)
  targets_T = np.asarray(targets, np.int64)
  mixed_T = np.zeros(len(targets_T))
  for tokens, weight in zip(texts, weights(distances), strict=True):
    ids, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    places_T = np.minimum(np.searchsorted(ids, targets_T), len(ids) - 1)
    found_T = np.where(ids[places_T] == targets_T, counts[places_T], 0)
    mixed_T += weight * found_T / len(tokens)
  return mixed_T


def log_likelihoods(
  token_log_likelihood_T: np.ndarray,
  probabilities_T: np.ndarray | None,
  alphas: Sequence[float],
) -> list[float]:
  """Of a document in nats, one an alpha, mixed in float64.

  Args:
    token_log_likelihood_T: of the model.
    probabilities_T: p_nn of the same tokens; None: the model alone counts.
    alphas: from 0 to 1.
  """
  scores_T = np.asarray(token_log_likelihood_T, np.float64)
  if probabilities_T is None:
    return [math.fsum(scores_T)] * len(alphas)
  found = []
  with np.errstate(divide='ignore'):  # At 1, a token that no neighbour has.
    for alpha in alphas:
      if not alpha:
        found.append(math.fsum(scores_T))
        continue
      mixed_T = np.logaddexp(
        np.log1p(-alpha) + scores_T, np.log(alpha * probabilities_T)
      )
      found.append(math.fsum(mixed_T))
  return found


def best(rows: Sequence[Mapping]) -> float:
  """The alpha with the largest log-likelihood over all rows.

  Of equal ones the smallest. What is null counts as minus infinity.
  """
  alphas = rows[0]['by_alpha']['alpha']
  totals = [
    math.fsum(
      -math.inf if value is None else value
      for value in (row['by_alpha']['log_likelihood'][i] for row in rows)
    )
    for i in range(len(alphas))
  ]
  return alphas[totals.index(max(totals))]


def at_alpha(row: Mapping, alpha: float) -> dict:
  """The row with what it says of an alpha as its last log-likelihood."""
  place = row['by_alpha']['alpha'].index(alpha)
  value = row['by_alpha']['log_likelihood'][place]
  scores = [row['log_likelihood'][0], value]
  return {**row, 'log_likelihood': scores, 'alpha': alpha}
