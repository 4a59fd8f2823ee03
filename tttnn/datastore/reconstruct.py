"""Distances to what an index holds in place of the vectors.

An index that compresses gives the distance from a query to what its code of a
vector stands for. Here the same is computed for entries that nobody searched.
"""

import faiss
import numpy as np

from tttnn.datastore import metric as metric_lib

_SAMPLE, _NEAREST = 16, 4  # Of the check: queries, and neighbours of each.
_MOST = 1e-4  # Relative to the mean score: float32 stays below 1e-6.
# Their tables are rounded to bytes, and faiss 1.15 crashes where it is to
# reconstruct what one with inverted lists was read from a file.
_ROUNDED = faiss.IndexFastScan, faiss.IndexIVFFastScan


class Reconstruction:
  """What one index holds.

  Args:
    index: of faiss, on the host; it gets a direct map, 8 bytes a vector, where
      it has inverted lists.
    metric: of the store.

  Raises:
    ValueError: faiss cannot reconstruct what is in it, or the index gives other
      distances than those to that, as one does that adds up rounded tables
      (PQ4fs) or compares bits (LSH).
  """

  def __init__(self, index: faiss.Index, metric: str):
    self._whole, self._metric = index, metric
    self._transforms = []
    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
      if isinstance(index, faiss.IndexRefine):  # Whose distances are the last.
        index = faiss.downcast_index(index.refine_index)
        continue
      self._transforms += [
        faiss.downcast_VectorTransform(index.chain.at(i))
        for i in range(index.chain.size())
      ]
      index = faiss.downcast_index(index.index)
    if isinstance(index, _ROUNDED):
      raise ValueError(
        f'a {type(index).__name__} rounds the distances that it gives: entries '
        'that it did not find have none that go with them'
      )
    if isinstance(index, faiss.IndexIVF):
      index.make_direct_map()
    self._index = index
    self._check()

  def distances(self, query_D: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Float32 [n], from a prepared query to entries by their positions."""
    # As the index sees it: distances are not what they were where a transform
    # drops dimensions.
    for transform in self._transforms:
      query_D = transform.apply(query_D[None])[0]
    vectors_nxD = self._index.reconstruct_batch(positions)
    return metric_lib.distances(self._metric, query_D, vectors_nxD)

  def _check(self) -> None:
    """Compares with searches for points between vectors."""
    count = self._whole.ntotal
    rows = np.linspace(0, count - 1, min(_SAMPLE, count)).astype(np.int64)
    try:
      some_QxD = self._whole.reconstruct_batch(rows)
      queries_QxD = (some_QxD + some_QxD[::-1]) / 2
      scores_QxN, rows_QxN = self._whole.search(
        queries_QxD, min(_NEAREST, count)
      )
      found, expected = [], []
      for query_D, scores_N, rows_N in zip(
        queries_QxD, scores_QxN, rows_QxN, strict=True
      ):
        there_N = rows_N >= 0
        distances = metric_lib.of_scores(self._metric, scores_N[there_N])
        found.append(distances)
        expected.append(self.distances(query_D, rows_N[there_N]))
    except RuntimeError as e:
      raise ValueError(
        f'faiss cannot say what a {type(self._index).__name__} holds ({e}), so '
        'that there are no distances to it'
      ) from e
    found, expected = (
      np.concatenate(x).astype(np.float64) for x in (found, expected)
    )
    if self._metric == 'l2':
      found, expected = found**2, expected**2
    error = np.abs(found - expected).max() / max(np.abs(expected).mean(), 1e-30)
    if not error < _MOST:
      raise ValueError(
        f'a {type(self._index).__name__} gives distances that are off by '
        f'{error:.1g} from those to what it holds: entries that it did not '
        'find have none that go with them'
      )
