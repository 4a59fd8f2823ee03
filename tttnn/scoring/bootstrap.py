"""Paired bootstrap of bits per byte over documents.

How far would a figure move, had other documents of the same kind been scored?
Documents are drawn with replacement, as many as there are, and all that is
compared is computed from the SAME draw, so that what is hard or easy about a
document cancels (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
chapters 6 and 13; paired for language processing: Koehn, "Statistical
Significance Tests for Machine Translation Evaluation", EMNLP 2004).
"""

from collections.abc import Sequence
import math

import numpy as np

_BLOCK = 1 << 22  # Counts held at once: 32 MiB.

# (weight, indices of its documents) of each group.
Groups = Sequence[tuple[float, np.ndarray]]


def resample_sums(
  values_BxC: np.ndarray,
  resamples: int = 1000,
  seed: int | Sequence[int] = 0,
) -> np.ndarray:
  """Sums over documents drawn with replacement, B of B.

  A draw is a count a document, and its sums a product with the values: no
  value is copied, and what is held does not grow with `resamples`. Equal seeds
  draw equally, so figures computed in two calls are paired too.

  Args:
    values_BxC: float, a document a row. A NaN makes its column NaN.
    resamples: R.
    seed: of numpy.random.default_rng, of which every resample takes B integers.

  Returns:
    sums_RxC, float64.

  Raises:
    ValueError: without documents.
  """
  documents, columns = values_BxC.shape
  if not documents:
    raise ValueError('there are no documents to resample')
  rng = np.random.default_rng(seed)
  sums_RxC = np.empty((resamples, columns))
  rows = max(1, min(resamples, _BLOCK // documents))
  counts_RxB = np.empty((rows, documents))
  for start in range(0, resamples, rows):
    block = counts_RxB[: resamples - start]
    for row in block:
      drawn_B = rng.integers(documents, size=documents)
      row[:] = np.bincount(drawn_B, minlength=documents)
    sums_RxC[start : start + rows] = block @ values_BxC
  return sums_RxC


def bits_per_byte(
  nats_BxC: np.ndarray,
  num_bytes_B: np.ndarray,
  groups: Groups,
  resamples: int = 1000,
  seed: int = 0,
) -> np.ndarray:
  """Bits per byte of resampled documents.

  Every group is resampled by itself and is a micro average; the groups' are
  then summed with their weights, so that an interval is that of the weighted
  sum, not a mean of the groups' intervals. One group of weight 1 that holds
  all documents is the plain micro average.

  Args:
    nats_BxC: log-likelihoods, a column a model or neighbour count.
    num_bytes_B: bytes that they are of.
    groups: of the documents.
    resamples: R.
    seed: equal seeds draw equally, given equal groups.

  Returns:
    bits_RxC. All columns are of the same draws: what is computed from a row is
    paired.
  """
  values_BxC = np.column_stack([nats_BxC, num_bytes_B]).astype(np.float64)
  return sum(
    weight * _bits(resample_sums(values_BxC[chosen], resamples, [seed, number]))
    for number, (weight, chosen) in enumerate(groups)
  )


def measured(
  nats_BxC: np.ndarray, num_bytes_B: np.ndarray, groups: Groups
) -> np.ndarray:
  """bits_C: what `bits_per_byte` resamples, of the documents as they are."""
  values_BxC = np.column_stack([nats_BxC, num_bytes_B]).astype(np.float64)
  return sum(
    weight * _bits(values_BxC[chosen].sum(0, keepdims=True))[0]
    for weight, chosen in groups
  )


def interval(
  values_RxC: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
  """(low_C, high_C) between which the middle `level` of the values lie.

  NaN where one of the values is.
  """
  tail = (1 - level) / 2
  low_C, high_C = np.quantile(values_RxC, [tail, 1 - tail], axis=0)
  return low_C, high_C


def _bits(sums_RxC: np.ndarray) -> np.ndarray:
  """Bits per byte; the last column holds the bytes."""
  with np.errstate(invalid='ignore', divide='ignore'):
    return -sums_RxC[:, :-1] / (sums_RxC[:, -1:] * math.log(2))
