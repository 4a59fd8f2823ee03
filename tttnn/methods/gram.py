"""Inner products of queries and of their candidates, as vectors of length 1.

Which of two near-copies is the better one hangs on digits that float32 lacks:
their products with a query differ by less than its rounding. So this is
float64, which accelerators lack or are slow at, and it is on the host.
"""

from collections.abc import Callable
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import os
from typing import TypeVar

import numpy as np
import threadpoolctl

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Products:
  """Of a query and its candidates.

  Attributes:
    cosines_M: of the query and the candidates, float64.
    gram_MxM: of the candidates, float64.
    distinct_M: whether each differs from all before it.
  """

  cosines_M: np.ndarray
  gram_MxM: np.ndarray
  distinct_M: np.ndarray


def each(
  function: Callable[[Sequence[Products]], Sequence[T]],
  queries_QxD: np.ndarray,
  vectors: Sequence[np.ndarray],
  at_once: int = 1,
) -> list[T]:
  """What a function makes of each query, on all cores.

  Args:
    function: of some queries, what each comes to. Threads call it.
    queries_QxD: float32.
    vectors: of the candidates of each query, float32 [M_q, D].
    at_once: queries that the function is given, at most.

  Raises:
    ValueError: for vectors of another width, and one that has no direction.
  """

  def some(begin):
    numbers = range(begin, min(begin + at_once, len(queries_QxD)))
    most = max(len(vectors[number]) for number in numbers)
    # Memory that is there: fresh pages cost a tenth of a product.
    scratch_RxD = np.empty((most + 1, queries_QxD.shape[1]))
    return function(
      [
        _products(queries_QxD[number], vectors[number], number, scratch_RxD)
        for number in numbers
      ]
    )

  # A thread for some: BLAS would wait for its own at each product, and what one
  # thread of it computes is the same on every number of cores.
  with (
    _blas().limit(limits=1, user_api='blas'),
    futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
  ):
    parts = threads.map(some, range(0, len(queries_QxD), at_once))
    return list(itertools.chain.from_iterable(parts))


def _products(
  query_D: np.ndarray,
  vectors_MxD: np.ndarray,
  number: int,
  scratch_RxD: np.ndarray,
) -> Products:
  if vectors_MxD.shape[1:] != query_D.shape:
    raise ValueError(
      f'query {number} has shape {list(query_D.shape)}, its candidates '
      f'{list(vectors_MxD.shape)}'
    )
  # The query is one more row: by itself it would cost three times as much.
  rows_RxD = scratch_RxD[: len(vectors_MxD) + 1]
  rows_RxD[:-1] = vectors_MxD
  rows_RxD[-1] = query_D
  gram_RxR = rows_RxD @ rows_RxD.T  # BLAS computes one triangle.
  squares_R = np.diagonal(gram_RxR)
  bad_R = np.flatnonzero(~((squares_R > 0) & (squares_R < np.inf)))
  if bad_R.size:
    bad = int(bad_R[0])
    who = f'query {number}'
    if bad < len(vectors_MxD):
      who = f'candidate {bad} of {who}'
    raise ValueError(
      f'{who} has no direction, its squared length is {squares_R[bad]}'
    )
  scale_R = 1 / np.sqrt(squares_R)
  gram_RxR *= scale_R
  gram_RxR *= scale_R[:, None]
  return Products(
    gram_RxR[-1, :-1], gram_RxR[:-1, :-1], ~_repeated(rows_RxD[:-1])
  )


def _repeated(vectors_MxD: np.ndarray) -> np.ndarray:
  """Whether a vector equals an earlier one [M]."""
  repeated_M = np.zeros(len(vectors_MxD), bool)
  # Few share their first number, so few have to be compared.
  first_M = vectors_MxD[:, 0].copy()
  values_M = np.sort(first_M)
  twice = values_M[1:][values_M[1:] == values_M[:-1]]
  if not len(twice):
    return repeated_M
  seen = set()
  for i in np.flatnonzero(np.isin(first_M, twice)):
    key = vectors_MxD[i].tobytes()
    repeated_M[i] = key in seen
    seen.add(key)
  return repeated_M


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController()
