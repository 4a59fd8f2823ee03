"""Which of the retrieved neighbours a document is adapted to."""

from collections.abc import Sequence
import math

from tttnn.datastore import retrieve


def within(
  neighbors: Sequence[retrieve.Neighbor], *, minimum: float, maximum: float
) -> list[retrieve.Neighbor]:
  """Those with minimum <= distance < maximum, in their order; 0: no bound.

  The original's upper bound of 4.0 removes next to nothing, and it has no
  lower one, so that near-copies of the document stay (Hardt & Sun 2024).
  """
  maximum = maximum or math.inf
  return [n for n in neighbors if minimum <= n.distance < maximum]
