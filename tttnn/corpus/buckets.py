"""Padded lengths: few, so that a run compiles a handful of programs."""

SHORTEST = 64  # Tokens; no bucket is smaller.


def padded(length: int, longest: int, fine: bool = False) -> int:
  """The bucket of `length`: the smallest longest / 2^i that holds it.

  With `fine`, the smallest of 5/8, 6/8, 7/8 and 8/8 of it that does: four times
  the programs, for where compiling costs less than padding.

  Raises:
    ValueError: if `length` exceeds `longest`.
  """
  if length > longest:
    raise ValueError(f'{length} tokens do not fit a context of {longest}')
  size = longest
  while size // 2 >= max(length, SHORTEST) and size % 2 == 0:
    size //= 2
  if fine and size % 8 == 0:
    return next(
      part
      for part in range(size // 8 * 5, size + 1, size // 8)
      if part >= length
    )
  return size
