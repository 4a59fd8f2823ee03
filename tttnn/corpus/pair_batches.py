"""Pairs of token ids in batches of like lengths and few shapes."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tttnn.corpus import buckets

Pair = tuple[Sequence[int], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of a batch.

  Attributes:
    rows: of a full one, which others are filled up to.
    inputs: tokens of a row, T.
    outputs: likewise, U.
  """

  rows: int
  inputs: int
  outputs: int


@dataclasses.dataclass(frozen=True)
class Batch:
  """Pairs that go together.

  Attributes:
    numbers: of the pairs, in their sequence.
    shape: that they are padded to.
  """

  numbers: tuple[int, ...]
  shape: Shape

  def arrays(
    self, pairs: Sequence[Pair]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs [B, T], mask [B, T], outputs [B, U]) of the pairs by number.

    Rows that are left over are those of the last pair again, so that they take
    no longer than it.
    """
    shape = self.shape
    inputs_BxT = np.zeros((shape.rows, shape.inputs), np.int32)
    outputs_BxU = np.zeros((shape.rows, shape.outputs), np.int32)
    mask_BxT = np.zeros(inputs_BxT.shape, bool)
    for row in range(shape.rows):
      number = self.numbers[min(row, len(self.numbers) - 1)]
      source, target = pairs[number]
      inputs_BxT[row, : len(source)] = source
      mask_BxT[row, : len(source)] = True
      outputs_BxU[row, : len(target)] = target
    return inputs_BxT, mask_BxT, outputs_BxU


def plan(
  lengths: Sequence[tuple[int, int]],
  longest: tuple[int, int],
  rows: int,
  multiple: int = 1,
) -> list[Batch]:
  """All pairs in batches, those with the longest inputs first.

  A pair's batch and row depend on the arguments alone.

  Args:
    lengths: tokens of each pair's input and output.
    longest: what they may be; lengths are rounded up to few parts of these.
    rows: pairs at once of the longest; of shorter ones as many more as have no
      more tokens together.
    multiple: of which every number of rows is.

  Raises:
    ValueError: a pair that is longer.
  """
  # An input may have no tokens, a batch has one place at least.
  sizes = [
    tuple(
      buckets.padded(max(1, length), max(1, most))
      for length, most in zip(pair, longest, strict=True)
    )
    for pair in lengths
  ]
  order = sorted(
    range(len(sizes)),
    key=lambda i: (*(-size for size in sizes[i]), -lengths[i][0], i),
  )
  batches, begin = [], 0
  while begin < len(order):
    inputs, outputs = sizes[order[begin]]
    while True:
      count = max(1, rows * sum(longest) // (inputs + outputs)) * multiple
      numbers = order[begin : begin + count]
      # Those with shorter inputs may have longer outputs.
      most = max(sizes[number][1] for number in numbers)
      if most <= outputs:
        break
      outputs = most
    shape = Shape(count, inputs, outputs)
    batches.append(Batch(tuple(numbers), shape))
    begin += count
  return batches
