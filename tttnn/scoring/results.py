"""The results file: a JSON line a document, written as soon as it is known."""

import json
import math
import os

from tttnn import files
from tttnn import settings


class Results:
  """`NAME.jsonl` of a directory, which a rerun continues.

  Attributes:
    rows: by doc_id, those of earlier runs and of this one.
  """

  def __init__(self, workdir: str, identity: dict, name: str = 'results'):
    """Opens the file; a torn last line is dropped.

    Args:
      workdir: where the file is.
      identity: what the rows depend on, flat and JSON-ready; kept beside them
        as `NAME.config.json`.
      name: of the file, without its ending.

    Raises:
      ValueError: if the rows there depend on something else (which is shown),
        or a line but the last is not JSON.
    """
    self._path = os.path.join(workdir, f'{name}.jsonl')
    self.rows = {}
    about = os.path.join(workdir, f'{name}.config.json')
    identity = json.loads(json.dumps(identity))
    if os.path.exists(self._path) and os.path.exists(about):
      with open(about, encoding='utf-8') as file:
        differ = settings.difference(json.load(file), identity)
      if differ:
        raise ValueError(
          f'{workdir} holds results of another run ({differ}): take another '
          f'--workdir, or delete its {name}.jsonl'
        )
      self._read()
    files.write_if_changed(
      about, json.dumps(identity, indent=2, sort_keys=True) + '\n'
    )
    self._file = open(self._path, 'ab')  # noqa: SIM115 (closed by close)

  def append(self, row: dict) -> None:
    """Writes a row and hands it to the operating system; NaN becomes null."""
    row = without_nan(row)
    self._file.write(_line(row))
    self._file.flush()
    self.rows[row['doc_id']] = row

  def keep(self, doc_ids: list[str | int]) -> None:
    """Drops the rows of all other documents, and orders them so.

    Raises:
      ValueError: if a row is not there.
    """
    missing = [doc_id for doc_id in doc_ids if doc_id not in self.rows]
    if missing:
      raise ValueError(
        f'{self._path} lacks the row of document {missing[0]!r}, which the '
        'checkpointed state has seen: take another --workdir'
      )
    self.rows = {doc_id: self.rows[doc_id] for doc_id in doc_ids}
    self._file.close()
    lines = (_line(row) for row in self.rows.values())
    files.write_if_changed(self._path, b''.join(lines))
    self._file = open(self._path, 'ab')  # noqa: SIM115 (closed by close)

  def replace(self, rows: list[dict]) -> None:
    """Puts rows in the place of all there are; the file is closed before."""
    self.rows = {row['doc_id']: without_nan(row) for row in rows}
    lines = (_line(row) for row in self.rows.values())
    files.write_if_changed(self._path, b''.join(lines))

  def close(self) -> None:
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()

  def _read(self) -> None:
    rows, whole = read(self._path)
    if whole < os.path.getsize(self._path):
      os.truncate(self._path, whole)
    self.rows = {row['doc_id']: row for row in rows}


def _line(row: dict) -> bytes:
  return (json.dumps(row, ensure_ascii=False) + '\n').encode()


def read(path: str) -> tuple[list[dict], int]:
  """The rows of a results file, and the bytes up to a torn last line.

  Raises:
    ValueError: with file and line, if a line but the last is not JSON.
  """
  with open(path, 'rb') as file:
    data = file.read()
  rows, whole = [], 0
  for number, line in enumerate(data.splitlines(keepends=True), 1):
    if not line.endswith(b'\n'):
      break
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      raise ValueError(f'{path}:{number}: not JSON: {error}') from error
    whole += len(line)
  return rows, whole


def without_nan(value):
  """A copy in which NaN and infinities are None, as JSON wants it."""
  if isinstance(value, dict):
    return {key: without_nan(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_nan(inner) for inner in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
