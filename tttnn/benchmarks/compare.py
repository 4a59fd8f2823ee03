"""Whether the sides of the `ttt` benchmark agree, and figures from their times.

An answer is what a side returns for `run`: `log_likelihood` [documents, 1 +
neighbours] in nats, `train_loss` [documents, neighbours], `seconds`, `parts`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math

import numpy as np

from tttnn.benchmarks import workload

# Relative, of log-likelihoods and losses in float32.
TOLERANCE = 1e-4
# Of the largest change that adapting made: a side that adapts otherwise could
# pass by the log-likelihoods themselves, most of which adapting leaves alone.
CHANGE_TOLERANCE = 1e-2
# Bits a token between bfloat16 and float32. A token has at least a byte, so
# bits a byte differ by no more.
BITS = 1e-2


def check_equal(what: str, ours: Mapping, theirs: Mapping) -> dict:
  """How far two answers in float32 lie apart.

  Args:
    what: is compared, for the error.
    ours: an answer.
    theirs: the one to compare it with.

  Returns:
    The largest relative difference of `log_likelihood`, of its `change` by
    adapting, and of `train_loss`.

  Raises:
    ValueError: it is larger than rounding explains; shows both numbers.
  """
  differences = {}
  for name, tolerance in (
    ('log_likelihood', TOLERANCE),
    ('change', CHANGE_TOLERANCE),
    ('train_loss', TOLERANCE),
  ):
    a, b = _values(ours, name), _values(theirs, name)
    if a.shape != b.shape:
      raise ValueError(f'{what}: {name} of shape {a.shape} and {b.shape}')
    scale = np.abs(b)
    if name == 'change':
      scale = np.full_like(b, np.max(scale, initial=0))
    apart = np.abs(a - b) / np.maximum(scale, np.finfo(np.float64).tiny)
    if apart.size and not np.max(apart) <= tolerance:  # NaN is no agreement.
      place = tuple(map(int, np.unravel_index(np.argmax(apart), apart.shape)))
      raise ValueError(
        f'{what}: {name} of document {place[0]}, number {place[1]}, is '
        f'{a[place]:.6f} and {b[place]:.6f}, {apart[place]:.1e} apart, more '
        f'than {tolerance:.0e}: they do not compute the same'
      )
    differences[name] = float(np.max(apart, initial=0))
  return differences


def check_bits(
  what: str, ours: Mapping, theirs: Mapping, documents: Sequence[dict]
) -> float:
  """The difference in bits a token between two answers, of all documents.

  Of the last scores, or of the first ones, where that is larger.

  Raises:
    ValueError: it is more than BITS.
  """
  tokens = sum(len(document['tokens']) for document in documents)
  a, b = (
    -np.sum(_values(answer, 'log_likelihood')[:, [0, -1]], axis=0)
    / (tokens * math.log(2))
    for answer in (ours, theirs)
  )
  apart = float(np.max(np.abs(a - b)))
  if not apart <= BITS:
    raise ValueError(
      f'{what}: {a.tolist()} and {b.tolist()} bits a token before and after '
      f'adapting, {apart:.1e} apart, more than {BITS:.0e}'
    )
  return apart


def _values(answer: Mapping, name: str) -> np.ndarray:
  if name != 'change':
    return np.array(answer[name], np.float64)
  scores = np.array(answer['log_likelihood'], np.float64)
  return scores[:, 1:] - scores[:, :1]


def summarise_side(
  samples: Sequence[Mapping],
  operations: workload.Operations,
  matmul_peak: float,
  documents: int,
  neighbors: int,
) -> dict:
  """Medians of a side's timed answers.

  Args:
    samples: the answers.
    operations: useful ones, of one answer.
    matmul_peak: operations a second.
    documents: in each answer.
    neighbors: of each document.
  """
  seconds = float(np.median([sample['seconds'] for sample in samples]))
  parts = {
    part: float(np.median([sample['parts'][part] for sample in samples]))
    for part in samples[0]['parts']
  }
  useful = {
    'steps': (operations.train, parts['adapt']),
    'scores': (operations.score, parts['score']),
    'all': (operations.train + operations.score, seconds),
  }
  return {
    'seconds': [sample['seconds'] for sample in samples],
    'median_seconds': seconds,
    'median_parts': parts,
    # Everything is in it, the score before adapting too.
    'seconds_per_neighbor': seconds / (documents * neighbors),
    'documents_per_second': documents / seconds,
    'share_of_peak': {
      part: count / taken / matmul_peak
      for part, (count, taken) in useful.items()
    },
    'peak_bytes': max(sample['peak_bytes'] for sample in samples),
    'device_peak_bytes': max(sample['device_peak_bytes'] for sample in samples),
  } | ({'usage': samples[-1]['usage']} if 'usage' in samples[-1] else {})


def line(counts: Sequence[float], seconds: Sequence[float]) -> dict:
  """The straight line through some times: seconds = intercept + slope count.

  Returns:
    `slope`, `intercept` and `r2`, the share of the variance that it explains.
  """
  slope, intercept = np.polyfit(counts, seconds, 1)
  rest = np.array(seconds) - (intercept + slope * np.array(counts))
  r2 = 1 - np.sum(rest**2) / np.sum((seconds - np.mean(seconds)) ** 2)
  return {'slope': float(slope), 'intercept': float(intercept), 'r2': float(r2)}
