"""Search over a whole store on the devices of a mesh: store.search=device."""

from collections.abc import Iterator

import jax
import numpy as np

from tttnn.datastore import check as check_lib
from tttnn.datastore import device
from tttnn.datastore import metric as metric_lib
from tttnn.datastore import store as store_lib

_RECALL_QUERIES, _RECALL_K = 100, 10


class StoreIndex:
  """Search over a whole store on the devices: a `retrieve.Searcher`.

  Args:
    store: opened, all shards; which index it has does not matter.
    mesh: as of `device.DeviceIndex`, like what follows.
    dtype: on the devices.
    approximate: whether candidates may be missed.

  Attributes:
    info: as a server's; with `approximate` also "recall", the share of the 10
      nearest that it finds for 100 stored vectors.
  """

  def __init__(
    self,
    store: store_lib.Store,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = 'float32',
    approximate: bool = False,
  ):
    self._manifest = manifest = store.manifest
    self._vectors = [store.mapped_vectors(i) for i in store.here]
    shards = manifest.shards
    counts = [shard.searchable for shard in shards]
    self._ends = np.cumsum(counts)
    self._first_ids = np.cumsum([0] + [shard.rows for shard in shards])
    self._index = device.DeviceIndex(
      self._blocks(),
      sum(counts),
      manifest.dim,
      mesh=mesh,
      dtype=dtype,
      metric=manifest.metric,
      approximate=approximate,
      gather=self._gather,
    )
    self.info = store.info() | {'exact': self._index.exact, 'in_memory': []}
    if approximate:
      rng = np.random.default_rng(manifest.seed)
      sample_QxD = check_lib.sample(store, _RECALL_QUERIES, rng)
      k = min(_RECALL_K, self._index.count)
      self.info['recall'] = self._index.recall(sample_QxD, k)

  def check(self, fingerprint: str, dim: int, keys: str = '') -> None:
    """As `store.check_embedder`."""
    store_lib.check_embedder(self.info, fingerprint, dim, keys)

  def search(
    self, queries_QxD: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `engine.Engine.search`, with the ids of the store."""
    manifest = self._manifest
    queries_QxD = metric_lib.prepared_queries(
      manifest.metric, queries_QxD, k, manifest.dim, self._index.count
    )
    distances_Qxk, positions_Qxk = self._index.search(queries_QxD, k)
    shards_Qxk = np.searchsorted(self._ends, positions_Qxk, side='right')
    ids_Qxk = np.empty_like(positions_Qxk)
    for i in np.unique(shards_Qxk):
      here = shards_Qxk == i
      ids_Qxk[here] = self._first_ids[i] + self._rows(i, positions_Qxk[here])
    return distances_Qxk, ids_Qxk

  def _rows(self, shard: int, positions: np.ndarray) -> np.ndarray:
    """Rows of a shard at positions among all that can be found."""
    shard_ = self._manifest.shards[shard]
    begin = self._ends[shard] - shard_.searchable
    return shard_.searchable_row(positions - begin)

  def _blocks(self) -> Iterator[np.ndarray]:
    for vectors in self._vectors:
      for _, block_BxD in vectors.blocks():
        yield block_BxD[np.isfinite(block_BxD).all(axis=1)]

  def _gather(self, positions: np.ndarray) -> np.ndarray:
    shards = np.searchsorted(self._ends, positions, side='right')
    result = np.empty((len(positions), self._manifest.dim), np.float32)
    for i in np.unique(shards):
      here = shards == i
      rows = self._rows(i, positions[here])
      result[here] = self._vectors[i].gather(rows)
    return result
