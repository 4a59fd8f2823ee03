"""Inverted files of faiss with centroids and assignments of `kmeans`.

faiss is handed the centroids and trains only what is left (codebooks), and is
told the list of each vector, so that the two products that cost most when there
are many lists are made on the accelerator. Searches are those of any other IVF.
"""

from collections.abc import Iterable
import dataclasses
import types

import faiss
from faiss.contrib import ivf_tools
import jax
import numpy as np

from tttnn.datastore import index as index_lib
from tttnn.datastore import kmeans

_METRICS = types.MappingProxyType(
  {faiss.METRIC_L2: 'l2', faiss.METRIC_INNER_PRODUCT: 'ip'}
)


@dataclasses.dataclass(frozen=True)
class OnDevice:
  """An `index_files.Filler` by `train` and `fill`.

  Attributes:
    seed: of k-means.
    mesh: as `kmeans.train` takes it.
    iterations: of k-means.
  """

  seed: int
  mesh: jax.sharding.Mesh | None = None
  iterations: int = 10

  def train(self, index: faiss.Index, sample_NxD: np.ndarray) -> None:
    train(
      index,
      sample_NxD,
      iterations=self.iterations,
      seed=self.seed,
      mesh=self.mesh,
    )

  def fill(self, index: faiss.Index, blocks: Iterable[np.ndarray]) -> None:
    fill(index, _numbered(blocks), mesh=self.mesh)


def _numbered(blocks):
  """(positions, vectors) of blocks of consecutive vectors."""
  begin = 0
  for block_BxD in blocks:
    end = begin + len(block_BxD)
    yield np.arange(begin, end), block_BxD
    begin = end


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
  index_lib.verify(index, np.concatenate([np.empty(0, np.int64), *given]))


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
