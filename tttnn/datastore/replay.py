"""Neighbours kept in a file: written by one run, read by another.

A line a document: {"doc_id", "neighbors": [{"id", "distance", "text"?}]},
nearest first, distances Euclidean. "missing_shards" names those that the search
had to do without, "seconds" what finding them took.
"""

from collections.abc import Callable
from collections.abc import Iterable
import json
import os

from tttnn import files
from tttnn.corpus import jsonl
from tttnn.datastore import retrieve


class Replay:
  """Neighbours from a file instead of a search."""

  def __init__(self, path: str, open_corpus: Callable[[], jsonl.Corpus]):
    """Reads through the file once.

    Args:
      path: the file; it may also be .jsonl.zst or .jsonl.gz.
      open_corpus: gives the texts of entries that have an id alone; called
        only if there are such entries.

    Raises:
      ValueError: with file and line, for a line that is not of the form above
        or a doc_id that comes twice.
    """
    if not os.path.exists(path):
      raise ValueError(f'retrieval.replay={path!r}: there is no such file')
    self._shard = jsonl.open_shard(path)
    self._rows = {}
    complete = True
    for row in range(len(self._shard)):
      record = self._record(row)
      doc_id = record['doc_id']
      if doc_id in self._rows:
        raise ValueError(
          f'{path}:{row + 1}: doc_id {doc_id!r} was there before, at line '
          f'{self._rows[doc_id] + 1}'
        )
      self._rows[doc_id] = row
      complete &= all('text' in entry for entry in record['neighbors'])
    self._corpus = None if complete else open_corpus()

  def require(self, doc_ids: Iterable[str | int]) -> None:
    """Raises ValueError for the first document that is not there."""
    for doc_id in doc_ids:
      if doc_id not in self._rows:
        raise ValueError(
          f'{self._shard.path} has no neighbours for doc_id {doc_id!r} (it has '
          f'{len(self._rows)} documents)'
        )

  def __call__(self, doc_id: str | int, k: int) -> retrieve.Neighbors:
    """The first k entries of a document; fewer if there are fewer.

    Raises:
      ValueError: for an entry without text whose id the store does not have.
    """
    row = self._rows[doc_id]
    record = self._record(row)
    return retrieve.Neighbors(
      (self._neighbor(entry, row) for entry in record['neighbors'][:k]),
      record.get('missing_shards', ()),
      record.get('seconds'),
    )

  def _record(self, row: int) -> dict:
    return _parse(self._shard.line(row), f'{self._shard.path}:{row + 1}')

  def _neighbor(self, entry: dict, row: int) -> retrieve.Neighbor:
    id_, text = entry.get('id'), entry.get('text')
    if text is None:
      if not 0 <= id_ < len(self._corpus):
        raise ValueError(
          f'{self._shard.path}:{row + 1}: neighbour {id_} has no text, and the '
          f'store has {len(self._corpus)} documents'
        )
      text = self._corpus.text(id_)
    return retrieve.Neighbor(id_, float(entry['distance']), text)


class Saver:
  """Writes the file, a line as soon as it is known, and continues it."""

  def __init__(self, path: str, done: Iterable[str | int]):
    """Keeps the lines of documents that are done; drops the others.

    Args:
      path: the file.
      done: documents that an earlier run has finished.

    Raises:
      ValueError: if the file lacks a document that is done.
    """
    done = list(done)
    lines = _whole_lines(path) if done else {}
    missing = [doc_id for doc_id in done if doc_id not in lines]
    if missing:
      raise ValueError(
        f'retrieval.save={path!r} lacks {len(missing)} documents that are done '
        f'already, {missing[0]!r} for one: take another --workdir'
      )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    files.write_if_changed(path, b''.join(lines[doc_id] for doc_id in done))
    self._file = open(path, 'ab')  # noqa: SIM115 (closed by close)

  def append(self, doc_id: str | int, neighbors: retrieve.Neighbors) -> None:
    """Writes a line, texts included, so that a replay needs no store."""
    self._file.write(line(doc_id, neighbors).encode())
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def record(
  doc_id: str | int, neighbors: retrieve.Neighbors, *, texts: bool = True
) -> dict:
  """What a line of the file says; without `texts`, a replay needs the store."""
  entries = [
    {'id': n.id, 'distance': n.distance} | ({'text': n.text} if texts else {})
    for n in neighbors
  ]
  found = {'doc_id': doc_id, 'neighbors': entries}
  if neighbors.seconds is not None:
    found['seconds'] = neighbors.seconds
  if neighbors.missing_shards:
    found['missing_shards'] = neighbors.missing_shards
  return found


def line(doc_id: str | int, neighbors: retrieve.Neighbors) -> str:
  """A line of the file, with its end."""
  return json.dumps(record(doc_id, neighbors), ensure_ascii=False) + '\n'


def _whole_lines(path: str) -> dict[str | int, bytes]:
  if not os.path.exists(path):
    return {}
  with open(path, 'rb') as file:
    lines = [raw for raw in file if raw.endswith(b'\n')]
  return {json.loads(raw)['doc_id']: raw for raw in lines}


def _parse(raw: bytes, place: str) -> dict:
  try:
    record = json.loads(raw)
  except ValueError as error:
    raise ValueError(f'{place}: not JSON: {error}') from error
  entries = record.get('neighbors') if isinstance(record, dict) else None
  if not isinstance(entries, list) or 'doc_id' not in record:
    raise ValueError(
      f'{place}: expected {{"doc_id": ..., "neighbors": [...]}}, found '
      f'{str(record)[:80]}'
    )
  for entry in entries:
    if not _is_neighbor(entry):
      raise ValueError(
        f'{place}: a neighbour is {{"id": integer, "distance": number, '
        f'"text"?: string}}, found {str(entry)[:80]}'
      )
  return record


def _is_neighbor(entry) -> bool:
  if not isinstance(entry, dict):
    return False
  distance, id_, text = (entry.get(key) for key in ('distance', 'id', 'text'))
  return (
    isinstance(distance, (int, float))
    and (id_ is None or isinstance(id_, int))
    and (isinstance(text, str) if 'text' in entry else id_ is not None)
  )
