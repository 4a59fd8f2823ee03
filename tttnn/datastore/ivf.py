"""Inverted files of faiss with centroids and assignments of `kmeans`.

faiss is handed the centroids and trains only what is left (codebooks), and is
told the list of each vector, so that the two products that cost most when there
are many lists are made on the accelerator. Searches are those of any other IVF.
"""

from collections.abc import Iterable
import types

import faiss
from faiss.contrib import ivf_tools
import jax
import numpy as np

from tttnn.datastore import kmeans

_METRICS = types.MappingProxyType(
  {faiss.METRIC_L2: 'l2', faiss.METRIC_INNER_PRODUCT: 'ip'}
)


def train(
  index: faiss.Index,
  sample_NxD: np.ndarray,
  *,
  iterations: int,
  seed: int,
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """Trains an index: transforms, then centroids by `kmeans`, then the rest.

  Args:
    index: not trained; an IVF, or one behind transforms such as OPQ or PCA.
    sample_NxD: finite vectors, as they are before the transforms.
    iterations: of k-means.
    seed: of k-means.
    mesh: as `kmeans.train` takes it.

  Returns:
    The centroids, float32 [lists, width behind the transforms].

  Raises:
    ValueError: another kind of index, one that is trained, or a sample that is
      too small or not finite.
  """
  ivf = _ivf(index)
  if ivf.quantizer.ntotal:
    raise ValueError(f'the index has {ivf.quantizer.ntotal} centroids already')
  sample_NxD = np.ascontiguousarray(sample_NxD, np.float32)
  for transform in _transforms(index):
    if not transform.is_trained:
      transform.train(sample_NxD)
    sample_NxD = transform.apply(sample_NxD)
  centroids_CxD = kmeans.train(
    sample_NxD,
    ivf.nlist,
    iterations=iterations,
    seed=seed,
    metric=_METRICS[ivf.metric_type],
    mesh=mesh,
  )
  ivf.quantizer.train(centroids_CxD)
  ivf.quantizer.add(centroids_CxD)
  if hasattr(ivf, 'do_polysemous_training'):
    # Orders codes for Hamming distances, which no search here asks for, and
    # takes longer than all the rest.
    ivf.do_polysemous_training = False
  try:
    ivf.train(sample_NxD)
  except RuntimeError as e:
    raise ValueError(
      f'the index cannot be trained on {len(sample_NxD)} vectors: {e}'
    ) from e
  index.is_trained = True
  return centroids_CxD


def fill(
  index: faiss.Index,
  blocks: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> None:
  """Adds vectors to the lists that `kmeans.assign` says, and verifies the ids.

  Args:
    index: empty and trained, by `train` or otherwise.
    blocks: (int64 ids [B], finite vectors [B, D]) as they are before the
      transforms; every id once.
    mesh: as `kmeans.assign` takes it.

  Raises:
    ValueError: an index of another kind, not trained or not empty, a block with
      ids and vectors of different number, or ids stored that were not given.
  """
  ivf = _ivf(index)
  if not ivf.is_trained or ivf.ntotal:
    raise ValueError(
      f'the index holds {ivf.ntotal} vectors and is '
      f'{"" if ivf.is_trained else "not "}trained: it must be empty and trained'
    )
  metric = _METRICS[ivf.metric_type]
  flat = ivf.quantizer.reconstruct_n(0, ivf.nlist)
  centroids_CxD = kmeans.place(flat, mesh)
  given = []
  for ids_B, block_BxD in blocks:
    if len(ids_B) != len(block_BxD):
      raise ValueError(f'{len(ids_B)} ids for {len(block_BxD)} vectors')
    vectors_BxD = np.ascontiguousarray(block_BxD, np.float32)
    for transform in _transforms(index):
      vectors_BxD = transform.apply(vectors_BxD)
    lists_B = kmeans.assign(
      vectors_BxD, centroids_CxD, metric=metric, mesh=mesh
    )
    # Under names: faiss takes bare pointers, and what it would read of an array
    # that is freed meanwhile it would store as ids.
    kept_B = np.ascontiguousarray(ids_B, np.int64)
    ivf_tools.add_preassigned(ivf, vectors_BxD, lists_B, kept_B)
    given.append(kept_B)
  index.ntotal = ivf.ntotal
  verify(index, np.concatenate([np.empty(0, np.int64), *given]))


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
  lists = faiss.downcast_InvertedLists(_ivf(index).invlists)
  found = [np.empty(0, np.int64)]
  for number in range(lists.nlist):
    size = lists.list_size(number)
    if size:
      pointer = lists.get_ids(number)
      found.append(faiss.rev_swig_ptr(pointer, size).copy())
      lists.release_ids(number, pointer)
  return np.concatenate(found)


def _ivf(index: faiss.Index) -> faiss.IndexIVF:
  """The IVF of an index that is one, or one behind transforms."""
  inner = faiss.downcast_index(index)
  if isinstance(inner, faiss.IndexPreTransform):
    inner = faiss.downcast_index(inner.index)
  lists = isinstance(inner, faiss.IndexIVF)
  if not lists or isinstance(inner, faiss.IndexIVFFastScan):
    raise ValueError(
      f'{type(inner).__name__} does not take vectors list by list: an IVF with '
      'Flat, SQ, PQ or RaBitQ codes does, also behind OPQ or PCA'
    )
  if inner.metric_type not in _METRICS:
    raise ValueError(f'metric {inner.metric_type} of the index is not L2 or IP')
  return inner


def _transforms(index: faiss.Index) -> list[faiss.VectorTransform]:
  inner = faiss.downcast_index(index)
  if not isinstance(inner, faiss.IndexPreTransform):
    return []
  return [
    faiss.downcast_VectorTransform(inner.chain.at(i))
    for i in range(inner.chain.size())
  ]
