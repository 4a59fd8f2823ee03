"""Items made ahead of their use."""

import threading

import pytest

from tttnn import prefetch


def test_items_keep_their_order():
  assert list(prefetch.prefetch(range(100), 3)) == list(range(100))
  assert list(prefetch.prefetch([], 3)) == []


def test_the_next_items_are_made_while_one_is_used():
  made = threading.Semaphore(0)

  def items():
    for item in range(5):
      made.release()
      yield item

  iterator = prefetch.prefetch(items(), 2)
  assert next(iterator) == 0
  # 1 and 2 are made without being asked for.
  for _ in range(3):
    assert made.acquire(timeout=10)
  iterator.close()


def test_an_error_is_raised_in_the_place_of_its_item():
  def items():
    yield 1
    raise ValueError('the second')

  iterator = prefetch.prefetch(items(), 4)
  assert next(iterator) == 1
  with pytest.raises(ValueError, match='the second'):
    next(iterator)


def test_closing_early_stops_the_maker():
  made = []

  def items():
    for item in range(1000):
      made.append(item)
      yield item

  iterator = prefetch.prefetch(items(), 3)
  next(iterator)
  iterator.close()
  assert len(made) < 10
