"""A random order of numbers that needs no memory.

A Feistel network over pairs of numbers is a permutation of them whatever its
rounds add; numbers beyond the last one are sent through again until they fall
below it (Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002,
sections 3 and 5).
"""

from collections.abc import Sequence
import math

import numpy as np

_ROUNDS = 8


class Shuffle:
  """A permutation of 0..count - 1, a function of `key` alone.

  `shuffle[i]` is its i-th number; of an array, the array of them.

  Args:
    key: numbers from 0 on.
    count: above 0.
  """

  def __init__(self, key: Sequence[int], count: int):
    self._count = count
    self._left = np.uint64(math.isqrt(count - 1) + 1)
    self._right = np.uint64(-(-count // int(self._left)))
    seeds = np.random.SeedSequence(list(key))
    self._keys = seeds.generate_state(_ROUNDS, np.uint64)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index):
    places = self._permute(np.atleast_1d(np.asarray(index, np.uint64)))
    while (outside := places >= self._count).any():
      places[outside] = self._permute(places[outside])
    places = places.astype(np.int64)
    return places if np.ndim(index) else int(places[0])

  def _permute(self, x: np.ndarray) -> np.ndarray:
    """A permutation of 0..left * right - 1, which are `count` and few more."""
    left, right = x % self._left, x // self._left
    for number, key in enumerate(self._keys):
      if number % 2:
        right = (right + _mix(left ^ key) % self._right) % self._right
      else:
        left = (left + _mix(right ^ key) % self._left) % self._left
    return left + right * self._left


def _mix(x: np.ndarray) -> np.ndarray:
  """A hash of 64 bits (Steele et al., "Fast splittable...", OOPSLA 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
