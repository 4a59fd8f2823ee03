"""The order that needs no memory: a permutation, another one for each key."""

import numpy as np
import pytest

from tttnn.corpus import shuffle


@pytest.mark.parametrize('count', [*range(1, 40), 100, 1023, 1024, 1025, 9999])
def test_every_number_comes_once(count):
  for key in ((0, 0), (0, 1), (7, 3, 2)):
    order = shuffle.Shuffle(key, count)
    assert sorted(order[np.arange(count)].tolist()) == list(range(count))


def test_one_number_is_that_of_the_array():
  order = shuffle.Shuffle((3, 1), 1000)
  whole = order[np.arange(1000)]
  assert [order[i] for i in (0, 17, 999)] == whole[[0, 17, 999]].tolist()
  again = shuffle.Shuffle((3, 1), 1000)[np.arange(1000)]
  np.testing.assert_array_equal(again, whole)


def test_trillions_need_no_memory():
  count = 3 * 10**12 + 1
  order = shuffle.Shuffle((0, 0), count)
  found = order[np.array([0, 1, count - 1])]
  assert len(set(found.tolist())) == 3
  assert found.min() >= 0 and found.max() < count


def test_keys_give_all_permutations_alike():
  # Of four numbers there are 24, of which 4800 keys give each 200 times.
  counts = {}
  for key in range(4800):
    order = tuple(shuffle.Shuffle((key, 0), 4)[np.arange(4)].tolist())
    counts[order] = counts.get(order, 0) + 1
  assert len(counts) == 24
  # Chi-squared with 23 degrees of freedom: 58 is exceeded once in 10^4.
  assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 58


def test_neighbours_are_torn_apart():
  # Of a random order: places of i and i + 1 are a third of all apart.
  count = 10_000
  order = shuffle.Shuffle((1, 2), count)[np.arange(count)]
  distance = np.abs(np.diff(order)).mean() / count
  assert distance == pytest.approx(1 / 3, abs=0.01)
  # And a block of a tenth of them falls evenly into all tenths.
  tenths = np.bincount(order[:1000] * 10 // count, minlength=10)
  assert tenths.min() > 60 and tenths.max() < 140
