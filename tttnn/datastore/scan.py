"""Candidates for the nearest rows, by products of blocks of rows and queries.

One pass over the vectors serves many queries. What it finds is exact but for
rounding in float32; `engine` ranks it again.
"""

import numpy as np

_BLOCK_SCORES = 1 << 18  # Of a block: they stay in cache.
_MOST_ROWS = 1 << 12
_MOST_QUERIES = 256  # At once.
_LEAST_HITS = 1 << 16


class Scan:
  """The rows of one array.

  Args:
    vectors_NxD: float32; it may be memory-mapped.
    squares: whether a score is |x|^2 / 2 - qx, or -qx.
  """

  def __init__(self, vectors_NxD: np.ndarray, squares: bool):
    self._vectors_NxD = vectors_NxD
    self._squares = squares
    self._half_N = None

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
    parts = [(np.empty((0, width), np.float32), np.empty((0, width), np.int64))]
    parts += [
      self._nearest(queries_QxD[begin : begin + _MOST_QUERIES], width)
      for begin in range(0, len(queries_QxD), _MOST_QUERIES)
    ]
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)

  def within(self, query_D: np.ndarray, limit: float) -> np.ndarray:
    """All rows whose score is at most `limit`."""
    found = [
      begin + np.flatnonzero(scores_BxQ[:, 0] <= limit)
      for begin, scores_BxQ in self._blocks(query_D[None])
    ]
    return np.concatenate(found)

  def largest_norm(self) -> float:
    """The norm that no finite row exceeds."""
    return float(np.sqrt(2 * np.nanmax(self._halves(), initial=0))) * (1 + 1e-6)

  def _nearest(self, queries_QxD, width: int):
    count = len(queries_QxD)
    scores_QxW = np.full((count, width), np.inf, np.float32)
    rows_QxW = np.full((count, width), -1, np.int64)
    hits, total, merged = [], 0, 0
    for begin, scores_BxQ in self._blocks(queries_QxD):
      # Rows that are not among the best so far need no more than this.
      worst_Q = scores_QxW.max(axis=1)
      flat = np.flatnonzero(scores_BxQ < worst_Q)
      hits.append((begin + flat // count, flat % count, scores_BxQ.flat[flat]))
      total += len(flat)
      end = begin + len(scores_BxQ)
      # After twice as many rows, a few more have been better than the worst.
      if end >= 2 * merged or total > max(_LEAST_HITS, 4 * count * width):
        scores_QxW, rows_QxW = _merge(scores_QxW, rows_QxW, hits)
        hits, total, merged = [], 0, end
    return _merge(scores_QxW, rows_QxW, hits)

  def _blocks(self, queries_QxD):
    """(first row, scores [B, Q] until the next) of all rows in order."""
    halves_N = self._halves() if self._squares else None
    step = min(_MOST_ROWS, max(1, _BLOCK_SCORES // len(queries_QxD)))
    room_BxQ = np.empty((step, len(queries_QxD)), np.float32)
    for begin in range(0, len(self._vectors_NxD), step):
      block_BxD = self._vectors_NxD[begin : begin + step]
      # Into memory that is there already: fresh pages would cost as much as
      # comparing does.
      scores_BxQ = room_BxQ[: len(block_BxD)]
      np.matmul(block_BxD, queries_QxD.T, out=scores_BxQ)
      if self._squares:
        half_Bx1 = halves_N[begin : begin + step, None]
        with np.errstate(invalid='ignore'):  # Rows of infinities.
          np.subtract(half_Bx1, scores_BxQ, out=scores_BxQ)
      else:
        np.negative(scores_BxQ, out=scores_BxQ)
      yield begin, scores_BxQ

  def _halves(self) -> np.ndarray:
    """|x|^2 / 2 of every row: made once, when it is first needed."""
    if self._half_N is None:
      half_N = np.empty(len(self._vectors_NxD), np.float32)
      for begin in range(0, len(half_N), _MOST_ROWS):
        block_BxD = self._vectors_NxD[begin : begin + _MOST_ROWS]
        square_B = np.einsum('bd,bd->b', block_BxD, block_BxD, dtype=np.float64)
        half_N[begin : begin + _MOST_ROWS] = square_B / 2
      self._half_N = half_N
    return self._half_N


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
  if shape[1] == width:
    return all_scores, all_rows
  best_QxW = np.argpartition(all_scores, width - 1, axis=1)[:, :width]
  return (
    np.take_along_axis(all_scores, best_QxW, axis=1),
    np.take_along_axis(all_rows, best_QxW, axis=1),
  )
