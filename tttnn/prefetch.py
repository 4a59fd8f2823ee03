"""Makes the next items while the present ones are used."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import itertools
from typing import TypeVar

Item = TypeVar('Item')


def batches(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
  """1 item, then 2, then 4, up to `most`, so that the first come soon."""
  items, size = iter(items), 1
  while batch := list(itertools.islice(items, size)):
    yield batch
    size = min(2 * size, most)


def prefetch(items: Iterable[Item], ahead: int) -> Iterator[Item]:
  """Yields `items` in order, made up to `ahead` of them early by a thread.

  What making an item raises is raised where the item would have been yielded.
  Closing the iterator waits for the item that is being made.
  """
  source, end = iter(items), object()
  with futures.ThreadPoolExecutor(1) as executor:
    made = collections.deque(
      executor.submit(next, source, end) for _ in range(ahead)
    )
    try:
      while (item := made.popleft().result()) is not end:
        made.append(executor.submit(next, source, end))
        yield item
    finally:
      executor.shutdown(cancel_futures=True)
