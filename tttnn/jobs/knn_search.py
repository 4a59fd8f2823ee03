"""Entries next to keys, and how far they are: the section `knn` of a run.

Distances are of one kind in all of a run, since one softmax takes them all:

    refine   to the stored keys; by them the nearest are chosen of more entries
             than are asked for
    exact    to the stored keys, of the entries that the index finds nearest
    index    as the index gives them, to what it holds in place of a key

The first two need the stored keys. Over a Flat index, which holds the keys, all
are the same.
"""

import numpy as np

from tttnn.datastore import metric as metric_lib
from tttnn.datastore import store as store_lib
from tttnn.methods import knn_lm
from tttnn.methods import retomaton

DISTANCES = ('refine', 'exact', 'index')


def one_setting(config) -> knn_lm.Settings:
  """Those of a job that chooses nothing and has one lambda for all.

  Raises:
    ValueError: if the config has several.
  """
  for key in ('lambdas', 'temperatures', 'ks', 'lambda_by_distance'):
    if config.knn[key]:
      raise ValueError(
        f'knn.{key}={config.knn[key]!r} goes with job=evaluate and compare: '
        f'job={config.job} takes one lambda, temperature and number of '
        'neighbors'
      )
  return knn_lm.Settings.create(config.knn)


class Neighbors:
  """Entries of the store next to keys: (distances, ids) of k each."""

  def __init__(self, config, store: store_lib.Store, searcher):
    """Takes a `retrieve.searcher` of the store.

    Raises:
      ValueError: for a wrong setting, or one that does not go with the store or
        with who searches.
    """
    self._store, self._searcher = store, searcher
    self._k = config.knn.neighbors
    self._distances = _distances(config, store)
    self._asked = config.knn.refine * self._k + config.knn.drop_self
    rows = store.manifest.searchable
    if self._asked > rows:
      raise ValueError(
        f'knn.neighbors={self._k} asks for {self._asked} entries, but '
        f'{store.directory} has {rows}'
      )

  def __call__(
    self, keys_QxD: np.ndarray, own_Q: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """`own_Q`: the entry that each query itself is, which is left out."""
    if not len(keys_QxD):
      return np.zeros((0, self._k), np.float32), np.zeros((0, self._k), int)
    how = {} if self._distances == 'refine' else {'raw': True}
    distances_QxM, ids_QxM = self._searcher.search(keys_QxD, self._asked, **how)
    if own_Q is not None:
      distances_QxM, ids_QxM = knn_lm.drop_self(own_Q, distances_QxM, ids_QxM)
    ids_Qxk = ids_QxM[:, : self._k]
    if self._distances != 'exact':
      return distances_QxM[:, : self._k], ids_Qxk
    distances_Qxk = self.measure(keys_QxD, ids_Qxk)
    order_Qxk = np.lexsort((ids_Qxk, distances_Qxk), axis=1)
    return (
      np.take_along_axis(distances_Qxk, order_Qxk, axis=1),
      np.take_along_axis(ids_Qxk, order_Qxk, axis=1),
    )

  def measure(self, keys_QxD: np.ndarray, ids_QxM: np.ndarray) -> np.ndarray:
    """Distances [Q, M] of the same kind, to chosen entries; inf for id -1."""
    if self._distances != 'index':
      measure = retomaton.exact(self._store.manifest.metric, self._gather)
      return measure(keys_QxD, ids_QxM)
    distances_QxM = np.full(ids_QxM.shape, np.inf, np.float32)
    some_Q = (ids_QxM >= 0).any(axis=1)
    distances_QxM[some_Q] = self._searcher.measure(
      keys_QxD[some_Q], ids_QxM[some_Q]
    )
    return distances_QxM

  def _gather(self, ids: np.ndarray) -> np.ndarray:
    metric = self._store.manifest.metric
    return metric_lib.prepared(metric, self._store.gather(ids))


def _distances(config, store: store_lib.Store) -> str:
  """The kind of distances, where they are all the same 'refine'."""
  kind, refine = config.knn.distances, config.knn.refine
  if kind not in DISTANCES:
    raise ValueError(
      f'knn.distances={kind!r} is not one of {", ".join(DISTANCES)}'
    )
  if refine < 1:
    raise ValueError(f'knn.refine={refine} is not 1 or more')
  if kind != 'refine' and refine > 1:
    raise ValueError(
      f'knn.refine={refine} chooses by distances to the stored keys, '
      f'knn.distances={kind!r} does not'
    )
  if store.index.is_flat:
    return 'refine'
  if kind != 'refine' and config.store.search != 'faiss':
    raise ValueError(
      f'knn.distances={kind!r} asks the index {store.index.spec!r}, '
      f'store.search={config.store.search!r} does not'
    )
  return kind
