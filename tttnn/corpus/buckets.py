"""Padded lengths: few, so that a run compiles a handful of programs."""

SHORTEST = 64  # Tokens; no bucket is smaller.


def padded(length: int, longest: int) -> int:
  """The bucket of `length`: the smallest longest / 2^i that holds it.

  Raises:
    ValueError: if `length` exceeds `longest`.
  """
  if length > longest:
    raise ValueError(f'{length} tokens do not fit a context of {longest}')
  size = longest
  while size // 2 >= max(length, SHORTEST) and size % 2 == 0:
    size //= 2
  return size
