"""How fast this machine reads, multiplies and compares codes with queries."""

from collections.abc import Callable
import concurrent.futures
import os
import time

import faiss
import numpy as np

from tttnn.datastore import plan

_TRIALS = 5
_READ_BYTES = 1 << 28  # More than caches hold.
_PRODUCT_ROWS = 2048
_CODES = 1 << 13
_QUERIES = 32
# What a short index is made of to measure each kind of code.
_SPECS = {
  'SQfp16': 'SQfp16',
  'SQ8': 'SQ8',
  'PQ': 'PQ{pq}',
  'RaBitQ': 'IVF1,RaBitQ',
}


def measure(
  dim: int, pq: int, *, memory: float, product: float, cores: int
) -> plan.Rates:
  """The rates of a host of `cores` cores like those here.

  Args:
    dim: of the vectors.
    pq: bytes of a product quantiser's code, a divisor of `dim`.
    memory: bytes a second; 0: measured here, whatever `cores`.
    product: operations a second; 0: measured here, times the cores.
    cores: of a host; 0: as many as here.
  """
  here = len(os.sched_getaffinity(0))
  faiss.omp_set_num_threads(here)
  scale = (cores or here) / here
  return plan.Rates(
    memory=memory or read_rate(),
    product=product or scale * product_rate(dim),
    codes={
      kind: scale * code_rate(spec.format(pq=pq), dim)
      for kind, spec in _SPECS.items()
    },
  )


def read_rate() -> float:
  """Bytes of memory that all cores together read in a second."""
  threads = len(os.sched_getaffinity(0))
  parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), threads)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return _rate(_READ_BYTES, lambda: list(pool.map(np.max, parts)))


def product_rate(dim: int) -> float:
  """Operations of a float32 product [2048, dim] x [dim, 2048] in a second."""
  rng = np.random.default_rng(0)
  a_NxD = rng.normal(size=(_PRODUCT_ROWS, dim)).astype(np.float32)
  return _rate(2 * _PRODUCT_ROWS**2 * dim, lambda: a_NxD @ a_NxD.T)


def code_rate(spec: str, dim: int) -> float:
  """Bytes of codes of a faiss index compared in a second, a query at a time.

  Counted once for each query, over the threads that faiss has.
  """
  rng = np.random.default_rng(0)
  vectors_NxD = rng.normal(size=(_CODES, dim)).astype(np.float32)
  index = faiss.index_factory(dim, spec)
  size = index.sa_code_size()
  if isinstance(index, faiss.IndexPQ):
    # One codebook or code is as fast as another, and training takes minutes.
    books = rng.normal(size=index.pq.centroids.size()).astype(np.float32)
    faiss.copy_array_to_vector(books, index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(rng.integers(0, 256, (_CODES, size), np.uint8))
  else:
    index.train(vectors_NxD)
    index.add(vectors_NxD)
  queries = vectors_NxD[:_QUERIES]
  return _rate(_QUERIES * _CODES * size, lambda: index.search(queries, 10))


def _rate(amount: float, call: Callable[[], object]) -> float:
  """By the fastest of a few trials: others may use the machine, too."""
  seconds = []
  for _ in range(1 + _TRIALS):
    begin = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - begin)
  return amount / min(seconds[1:])
