"""What searches found for the tokens of a run, for runs that search alike."""

import json
import os

import numpy as np

from tttnn import checkpoint
from tttnn import files
from tttnn import settings
from tttnn.jobs import rows as rows_lib
from tttnn.methods import knn_tuning


class Cache:
  """What searches found, in `knn.cache`; nothing where that is empty."""

  def __init__(self, config, metric: str, about: dict):
    """`about`: what rows depend on; `metric`: of the store."""
    self._path, self._metric = config.knn.cache, metric
    self._about = _depends_on(config, about)
    self._parts = []

  def add(self, tokens, log_p_lm_T, distances_Txk, ids_Txk, values_Txk) -> None:
    """Of a document; the next one of the run."""
    if self._path:
      self._parts.append(
        (tokens, log_p_lm_T, distances_Txk, ids_Txk, values_Txk)
      )

  def save(self) -> None:
    """When all documents are there."""
    if not self._path:
      return
    tokens, log_p_lm, distances, ids, values = zip(*self._parts, strict=True)
    lengths = [len(of_document) for of_document in tokens]
    cache = knn_tuning.Cache(
      metric=self._metric,
      ids_Txk=np.concatenate(ids),
      distances_Txk=np.concatenate(distances),
      values_Txk=np.concatenate(values),
      log_p_lm_T=np.concatenate(log_p_lm),
      targets_T=np.concatenate(tokens).astype(int),
      offsets=np.cumsum([0, *lengths]),
    )
    cache.save(self._path)
    about = json.dumps(self._about, indent=2, sort_keys=True) + '\n'
    files.write_if_changed(f'{self._path}.json', about)
    print(f'evaluate: {self._path}: what was found for {sum(lengths)} tokens')


def _depends_on(config, about: dict) -> dict:
  """What the content of a cache depends on, but for how many neighbours."""
  free = ['knn.lambda', 'knn.temperature']
  # Fewer of those whose order is that of distances are the nearest of them.
  # By exact distances they would be others than the index finds.
  if config.knn.distances != 'exact':
    free.append('knn.neighbors')
  return {key: value for key, value in about.items() if key not in free} | {
    'model': checkpoint.digest(config.model.path, config.model.revision),
    **rows_lib.identity(config),
  }


def load(config, about: dict) -> knn_tuning.Cache | None:
  """That of `knn.cache`; None where there is none yet.

  Args:
    config: of the run.
    about: what its rows depend on.

  Raises:
    ValueError: if it is of another store, model or documents, or of fewer
      neighbours than are wanted.
  """
  path = config.knn.cache
  if not path or not os.path.exists(f'{path}.json'):
    return None
  with open(f'{path}.json', encoding='utf-8') as file:
    differ = settings.difference(json.load(file), _depends_on(config, about))
  if differ:
    raise ValueError(
      f'knn.cache={path!r} is of another run ({differ}): name another file'
    )
  cache = knn_tuning.Cache.load(path)
  if config.knn.neighbors > cache.ids_Txk.shape[1]:
    raise ValueError(
      f'knn.neighbors={config.knn.neighbors}, but knn.cache={path!r} has '
      f'{cache.ids_Txk.shape[1]}'
    )
  return cache
