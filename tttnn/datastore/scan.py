"""Candidates for the nearest rows, by products of blocks of rows and queries.

One pass over the vectors serves many queries. What it finds is exact but for
rounding in float32; `engine` ranks it again.
"""

from collections.abc import Callable
from concurrent import futures
import functools
import itertools

import numpy as np
import threadpoolctl

_BLOCK_SCORES = 1 << 16  # Of a block: they stay in cache.
_MOST_ROWS = 1 << 13
_MOST_QUERIES = 256  # At once.
_LEAST_HITS = 1 << 16


class Scan:
  """The rows of one array.

  Args:
    vectors_NxD: float32; it may be memory-mapped.
    squares: whether a score is |x|^2 / 2 - qx, or -qx.
    threads: how many there are, each of which scans a part of the rows.
    pool: of that many; it may serve others.
  """

  def __init__(
    self,
    vectors_NxD: np.ndarray,
    squares: bool,
    threads: int,
    pool: futures.Executor,
  ):
    self._vectors_NxD = vectors_NxD
    self._squares = squares
    count = len(vectors_NxD)
    # Whole blocks each, and no more threads than there are blocks.
    share = max(_MOST_ROWS, -(-count // threads))
    self._parts = [
      range(begin, min(begin + share, count))
      for begin in range(0, count, share)
    ]
    self._pool = pool

  def nearest(
    self, queries_QxD: np.ndarray, width: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The rows of lowest score, in no order.

    Args:
      queries_QxD: finite float32.
      width: how many rows, at most all.

    Returns:
      Scores [Q, width] and rows [Q, width]. A row that is not finite has none
      and is not among them; where fewer are, a score is infinite, its row -1.
    """
    found = [(np.empty((0, width), np.float32), np.empty((0, width), np.int64))]
    for begin in range(0, len(queries_QxD), _MOST_QUERIES):
      some_QxD = queries_QxD[begin : begin + _MOST_QUERIES]
      parts = self._each(lambda rows, q=some_QxD: self._nearest(rows, q, width))
      scores, rows = (
        np.concatenate(x, axis=1) for x in zip(*parts, strict=True)
      )
      found.append(_best(scores, rows, width))
    scores, rows = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(rows)

  def within(self, query_D: np.ndarray, limit: float) -> np.ndarray:
    """All rows whose score is at most `limit`."""

    def part(rows):
      return [
        begin + np.flatnonzero(scores_BxQ[:, 0] <= limit)
        for begin, scores_BxQ in self._blocks(rows, query_D[None])
      ]

    return np.concatenate([x for found in self._each(part) for x in found])

  @property
  def largest_norm(self) -> float:
    """The norm that no finite row exceeds."""
    return self._norms[1]

  def finite_rows(self) -> np.ndarray:
    """All rows that are finite."""
    found = [
      begin + np.flatnonzero(np.isfinite(block_BxD).all(axis=1))
      for begin, block_BxD in self._rows()
    ]
    return np.concatenate(found)

  def _each(self, call: Callable[[range], object]) -> list:
    """What a call says of each part of the rows."""
    _ = self._norms  # Once, not by each thread.
    # One thread a product: those of BLAS wait for each other at each block,
    # which costs more than all else where something else runs.
    with _blas().limit(limits=1, user_api='blas'):
      if len(self._parts) == 1:
        return [call(self._parts[0])]
      return list(self._pool.map(call, self._parts))

  def _nearest(self, part: range, queries_QxD, width: int):
    count = len(queries_QxD)
    scores_QxW = np.full((count, width), np.inf, np.float32)
    rows_QxW = np.full((count, width), -1, np.int64)
    hits, total, merged = [], 0, 0
    # All rows of the first block are among the best so far: it is a small one.
    for begin, scores_BxQ in self._blocks(part, queries_QxD, 4 * width):
      # Rows that are not among the best so far need no more than this.
      worst_Q = scores_QxW.max(axis=1)
      flat = np.flatnonzero(scores_BxQ < worst_Q)
      hits.append((begin + flat // count, flat % count, scores_BxQ.flat[flat]))
      total += len(flat)
      seen = begin + len(scores_BxQ) - part.start
      # After twice as many rows, a few more have been better than the worst.
      if seen >= 2 * merged or total > max(_LEAST_HITS, 4 * count * width):
        scores_QxW, rows_QxW = _merge(scores_QxW, rows_QxW, hits)
        hits, total, merged = [], 0, seen
    return _merge(scores_QxW, rows_QxW, hits)

  def _blocks(self, part: range, queries_QxD, first: int = _MOST_ROWS):
    """(first row, scores [B, Q] until the next) of some rows in order.

    The first block has no more than `first` rows.
    """
    count = len(queries_QxD)
    step = min(_MOST_ROWS, max(1, _BLOCK_SCORES // count))
    # Into memory that is there already: fresh pages would cost as much as
    # comparing does.
    room_BxQ = np.empty((step, count), np.float32)
    middle = min(part.start + min(first, step), part.stop)
    begins = [part.start, *range(middle, part.stop, step)]
    for begin, end in itertools.pairwise([*begins, part.stop]):
      scores_BxQ = room_BxQ[: end - begin]
      # Rows of infinities; of others the caller knows by `metric.overflows`.
      with np.errstate(over='ignore', invalid='ignore'):
        self._score(begin, end, queries_QxD, scores_BxQ)
      yield begin, scores_BxQ

  def _score(self, begin: int, end: int, queries_QxD, scores_BxQ) -> None:
    """Writes the scores of rows begin..end - 1."""
    block_BxD = self._vectors_NxD[begin:end]
    if len(queries_QxD) == 1:  # BLAS is slower than reading them, this is not.
      np.vecdot(block_BxD, queries_QxD[0], out=scores_BxQ[:, 0])
    else:
      np.matmul(block_BxD, queries_QxD.T, out=scores_BxQ)
    if self._squares:
      half_Bx1 = self._norms[0][begin:end, None]
      np.subtract(half_Bx1, scores_BxQ, out=scores_BxQ)
    else:
      np.negative(scores_BxQ, out=scores_BxQ)

  @functools.cached_property
  def _norms(self) -> tuple[np.ndarray | None, float]:
    """|x|^2 / 2 of every row, where scores need it, and the largest norm."""
    half_N = np.empty(len(self._vectors_NxD), np.float32)
    largest = 0.0
    for begin, block_BxD in self._rows():
      square_B = np.einsum('bd,bd->b', block_BxD, block_BxD, dtype=np.float64)
      with np.errstate(over='ignore'):  # `metric.overflows` tells of those.
        half_N[begin : begin + len(square_B)] = square_B / 2
      finite = np.isfinite(square_B)
      largest = max(largest, np.max(square_B, initial=0.0, where=finite))
    return half_N if self._squares else None, float(np.sqrt(largest))

  def _rows(self):
    """(first row, rows) of blocks of all rows."""
    for begin in range(0, len(self._vectors_NxD), _MOST_ROWS):
      yield begin, self._vectors_NxD[begin : begin + _MOST_ROWS]


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController()


def _merge(scores_QxW, rows_QxW, hits):
  """The best of those there were and of hits (rows, queries, scores)."""
  if not hits:
    return scores_QxW, rows_QxW
  count, width = scores_QxW.shape
  rows, queries, scores = map(np.concatenate, zip(*hits, strict=True))
  order = np.argsort(queries, kind='stable')
  rows, queries, scores = rows[order], queries[order], scores[order]
  counts_Q = np.bincount(queries, minlength=count)
  begins_Q = np.cumsum(counts_Q) - counts_Q
  columns = width + np.arange(len(queries)) - begins_Q[queries]
  shape = count, width + int(counts_Q.max())
  all_scores = np.full(shape, np.inf, np.float32)
  all_rows = np.full(shape, -1, np.int64)
  all_scores[:, :width], all_rows[:, :width] = scores_QxW, rows_QxW
  all_scores[queries, columns], all_rows[queries, columns] = scores, rows
  return _best(all_scores, all_rows, width)


def _best(scores_QxM, rows_QxM, width: int):
  """The `width` lowest of each row."""
  if scores_QxM.shape[1] == width:
    return scores_QxM, rows_QxM
  best_QxW = np.argpartition(scores_QxM, width - 1, axis=1)[:, :width]
  return (
    np.take_along_axis(scores_QxM, best_QxW, axis=1),
    np.take_along_axis(rows_QxM, best_QxW, axis=1),
  )
