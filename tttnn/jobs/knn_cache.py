"""What searches found for the tokens of documents, for runs that search alike.

A file a document, so that a run that was killed has those of all it finished,
and what is missing can join later.
"""

import hashlib
import json
import os

from tttnn import checkpoint
from tttnn import files
from tttnn import settings
from tttnn.corpus import documents as documents_lib
from tttnn.jobs import rows as rows_lib
from tttnn.methods import knn_tuning


class Cache:
  """The directory `knn.cache`; has nothing and keeps nothing where it is ''."""

  def __init__(self, config, about: dict):
    """Opens or makes it.

    Args:
      config: of the run.
      about: what its rows depend on.

    Raises:
      ValueError: if it is of another store, model or documents.
    """
    self._directory = config.knn.cache
    self._neighbors = config.knn.neighbors
    if not self._directory:
      return
    if os.path.isfile(self._directory):
      raise ValueError(f'knn.cache={self._directory!r} is not a directory')
    os.makedirs(self._directory, exist_ok=True)
    known, path = _depends_on(config, about), self._path('about.json')
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        differ = settings.difference(json.load(file), known)
      if differ:
        raise ValueError(
          f'knn.cache={self._directory!r} is of another run ({differ}): name '
          'another directory'
        )
    text = json.dumps(known, indent=2, sort_keys=True) + '\n'
    files.write_if_changed(path, text)

  def find(self, case: documents_lib.Case) -> knn_tuning.Cache | None:
    """What was found for a document, of the wanted neighbours or more.

    Raises:
      ValueError: if it is of other tokens, or of fewer neighbours.
    """
    doc_id = case.document.doc_id
    path = self._path(_name(doc_id))
    if not self._directory or not os.path.exists(path):
      return None
    found = knn_tuning.Cache.load(path)
    if found.targets_T.tolist() != list(case.tokens):
      raise ValueError(
        f'knn.cache={self._directory!r} has other tokens of document {doc_id!r}'
      )
    if self._neighbors > found.ids_Txk.shape[1]:
      raise ValueError(
        f'knn.neighbors={self._neighbors}, but knn.cache={self._directory!r} '
        f'has {found.ids_Txk.shape[1]} of document {doc_id!r}'
      )
    return found

  def add(self, case: documents_lib.Case, found: knn_tuning.Cache) -> None:
    """Keeps what was found for a document, as a whole or not at all."""
    if self._directory:
      found.save(self._path(_name(case.document.doc_id)))

  def _path(self, name: str) -> str:
    return os.path.join(self._directory, name)


def _name(doc_id: str | int) -> str:
  """Of a document's file; ids may be any text."""
  return hashlib.sha256(repr(doc_id).encode()).hexdigest()[:32] + '.npz'


def digest(config, about: dict) -> str:
  """A name for a cache that serves nothing else; `about` as of `Cache`."""
  known = _depends_on(config, about) | {'knn.neighbors': config.knn.neighbors}
  text = json.dumps(known, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _depends_on(config, about: dict) -> dict:
  """What the content of a cache depends on, but for how many neighbours."""
  free = ['knn.lambda', 'knn.lambda_by_distance', 'knn.temperature']
  # Fewer of those whose order is that of distances are the nearest of them.
  # By exact distances they would be others than the index finds.
  if config.knn.distances != 'exact':
    free.append('knn.neighbors')
  return {key: value for key, value in about.items() if key not in free} | {
    'model': checkpoint.digest(config.model.path, config.model.revision),
    **rows_lib.identity(config),
  }
