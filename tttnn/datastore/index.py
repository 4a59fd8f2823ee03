"""Indexes of faiss: making, opening and checking them."""

import os
import re

import faiss
import numpy as np

METRICS = {
  'l2': faiss.METRIC_L2,
  'ip': faiss.METRIC_INNER_PRODUCT,
  'cosine': faiss.METRIC_INNER_PRODUCT,
}


def create(dim: int, spec: str, metric: str = 'l2') -> faiss.Index:
  """An empty index of a faiss factory string.

  Args:
    dim: width of the vectors.
    spec: such as 'Flat' or 'SQfp16', or 'IVF64,Flat;nprobe=8' with parameters.
    metric: of the store.

  Raises:
    ValueError: faiss does not know the string, or not with this width.
  """
  factory = spec.partition(';')[0]
  try:
    index = faiss.index_factory(dim, factory, METRICS[metric])
  except RuntimeError as e:
    raise ValueError(f'index {spec!r} with dim {dim}: {e}') from e
  _leave_codes_unordered(index)
  _set_parameters(index, spec)
  return index


def load(path, spec: str) -> faiss.Index:
  """Opens an index file memory-mapped where faiss can, to search as spec says.

  faiss maps inverted lists by one flag and flat codes (Flat, SQ, PQ, also as
  the storage of HNSW) by another; each flag leaves the other family in memory.
  Of lists and the codes to refine them by, the codes are larger.
  """
  factory = spec.partition(';')[0]
  lists = 'IVF' in factory and not re.search(r'RFlat|Refine', factory)
  flag = faiss.IO_FLAG_MMAP if lists else faiss.IO_FLAG_MMAP_IFC
  try:
    index = faiss.read_index(str(path), flag)
  except RuntimeError as e:
    raise ValueError(f'{path} cannot be read as index {spec!r}: {e}') from e
  _set_parameters(index, spec)
  return index


def _set_parameters(index: faiss.Index, spec: str) -> None:
  """Sets the parameters of searches that a spec names after ';'."""
  parameters = spec.partition(';')[2]
  if parameters:
    try:
      faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as e:
      raise ValueError(f'index {spec!r}: {e}') from e


def is_mapped(index: faiss.Index) -> bool:
  """Whether an index's vectors or codes are mapped, not held in memory."""
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexRefine):
    return is_mapped(index.base_index) and is_mapped(index.refine_index)
  ivf = faiss.try_extract_index_ivf(index)
  if ivf is not None:
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    return isinstance(lists, faiss.OnDiskInvertedLists)
  for inner in ('index', 'base_index', 'storage'):
    if hasattr(index, inner):
      return is_mapped(getattr(index, inner))
  # Of fast scans, codes are never mapped, and cannot say so.
  return not getattr(getattr(index, 'codes', None), 'is_owned', True)


def set_threads(threads: int) -> int:
  """Sets the threads of faiss in this process; 0 = every core it may use.

  Returns how many they are.
  """
  if threads < 0:
    raise ValueError(f'{threads} threads; 0 stands for every core')
  threads = threads or len(os.sched_getaffinity(0))
  faiss.omp_set_num_threads(threads)
  return threads


def flat_vectors(index: faiss.IndexFlat) -> np.ndarray:
  """The vectors that a Flat index holds, [ntotal, d], without a copy.

  They live as long as the index does.
  """
  flat = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
  return flat.reshape(index.ntotal, index.d)


def on_gpu(index: faiss.Index) -> faiss.Index:
  """A copy of an index on all GPUs of this machine.

  Raises:
    ValueError: there are none, this faiss is built without them, or it cannot
      put this index there.
  """
  gpus = getattr(faiss, 'get_num_gpus', int)()
  if not gpus:
    raise ValueError(
      'serve.gpu=true, but faiss sees no GPU here: that needs the extra [gpu] '
      'and a machine with one'
    )
  try:
    return faiss.index_cpu_to_all_gpus(index)
  except RuntimeError as e:
    raise ValueError(f'faiss cannot put this index on a GPU: {e}') from e


def verify(index: faiss.Index, ids_N: np.ndarray) -> None:
  """Compares the ids in the lists of an index with those it should hold.

  Raises:
    ValueError: they are not the same, each as often as there.
  """
  found_N, expected_N = np.sort(stored_ids(index)), np.sort(ids_N)
  if len(found_N) != len(expected_N):
    raise ValueError(
      f'the index stores {len(found_N)} ids, {len(expected_N)} were added'
    )
  wrong = np.flatnonzero(found_N != expected_N)
  if wrong.size:
    at = wrong[0]
    raise ValueError(
      f'the index stores ids that were not added: {found_N[at]} in place of '
      f'{expected_N[at]}, {wrong.size} of {len(found_N)} differ'
    )


def stored_ids(index: faiss.Index) -> np.ndarray:
  """The ids in the lists of an IVF index, int64 [N], list after list."""
  lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
  found = [np.empty(0, np.int64)]
  for number in range(lists.nlist):
    size = lists.list_size(number)
    if size:
      pointer = lists.get_ids(number)
      found.append(faiss.rev_swig_ptr(pointer, size).copy())
      lists.release_ids(number, pointer)
  return np.concatenate(found)


def _leave_codes_unordered(index: faiss.Index) -> None:
  """Spares the training that orders PQ codes for Hamming distances.

  It takes longer than all the rest, and no search here asks for it.
  """
  inner = faiss.try_extract_index_ivf(index) or index
  inner = faiss.downcast_index(inner)
  if hasattr(inner, 'do_polysemous_training'):
    inner.do_polysemous_training = False
