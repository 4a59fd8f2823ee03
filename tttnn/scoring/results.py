"""The results file: a JSON line a document, written as soon as it is known.

Of several processes each writes a file of its own, until one puts the rows of
all of them together.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import json
import math
import os
import re

from tttnn import files
from tttnn import settings
from tttnn.scoring import token_scores

# Of a row that is appended, its `token_scores.Tokens`: not part of its line.
TOKENS = 'tokens'


class Results:
  """`NAME.jsonl` of a directory, which a rerun continues.

  Attributes:
    rows: by doc_id, those of earlier runs, whatever their processes, and of
      this process.
  """

  def __init__(
    self,
    workdir: str,
    identity: dict,
    name: str = 'results',
    *,
    process: int = 0,
    processes: int | None = None,
    tokens: bool = False,
  ):
    """Opens the file; a torn last line is dropped.

    Args:
      workdir: where the file is.
      identity: what the rows depend on, flat and JSON-ready; kept beside them
        as `NAME.config.json`.
      name: of the file, without its ending.
      process: of those that write at once; 0 opens before the others.
      processes: how many share the documents; if several do, each writes
        `NAME.PROCESS.jsonl`, and any number goes on with all such files. None:
        the documents are never shared, and those files are something else.
      tokens: whether rows come with `TOKENS`, which are kept beside them. They
        are written before their row is, so that no row lacks them.

    Raises:
      ValueError: if the rows there depend on something else (which is shown),
        a line but the last is not JSON, or rows lack the token scores.
    """
    self._workdir, self._name = workdir, name
    self._whole = self._path = os.path.join(workdir, f'{name}.jsonl')
    self._shared = processes is not None
    if self._shared and processes > 1:
      self._path = os.path.join(workdir, f'{name}.{process}.jsonl')
    self._main = process == 0
    self.rows = {}
    about = os.path.join(workdir, f'{name}.config.json')
    identity = json.loads(json.dumps(identity))
    found = list(self._found())
    # What process 0 has just said, the others are to say, too.
    if (found or process) and os.path.exists(about):
      with open(about, encoding='utf-8') as file:
        differ = settings.difference(json.load(file), identity)
      if differ:
        names = ', '.join(map(os.path.basename, found)) or f'{name}.jsonl'
        raise ValueError(
          f'{workdir} holds results of another run ({differ}): take another '
          f'--workdir, or delete its {names}'
        )
      self._read(found)
      if tokens:
        token_scores.check(workdir, self.rows)
      if processes == 1 and set(found) - {self._whole}:
        self._unite(self.rows.values(), tokens)
    if self._main:
      if tokens and not found:  # Of rows that were deleted.
        token_scores.delete(workdir)
      files.write_if_changed(
        about, json.dumps(identity, indent=2, sort_keys=True) + '\n'
      )
    self._file = open(self._path, 'ab')  # noqa: SIM115 (closed by close)
    self._tokens = None
    if tokens:
      alone = self._path == self._whole
      self._tokens = token_scores.Writer(workdir, None if alone else process)

  def append(self, row: dict) -> None:
    """Writes a row and hands it to the operating system; NaN becomes null."""
    if self._tokens:
      row = dict(row)
      self._tokens.append(row['doc_id'], row.pop(TOKENS))
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

  def unite(self, doc_ids: list[str | int]) -> None:
    """Puts the rows of all processes into `NAME.jsonl`; the file is closed.

    Process 0 does, when all have closed theirs; then the others read it.

    Args:
      doc_ids: the documents in order; rows of others come behind them.

    Raises:
      ValueError: if a row is not there.
    """
    self.rows = {}
    self._read(self._found() if self._main else [self._whole])
    missing = [doc_id for doc_id in doc_ids if doc_id not in self.rows]
    if missing:
      raise ValueError(
        f'{self._workdir} lacks the rows of {len(missing)} documents, '
        f'{missing[0]!r} for one: all processes need the same --workdir'
      )
    if self._main:
      ordered = {doc_id: self.rows[doc_id] for doc_id in doc_ids}
      self.rows = ordered | self.rows
      self._unite(self.rows.values(), self._tokens is not None)

  def close(self) -> None:
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()
    if self._tokens:
      self._tokens.close()

  def _found(self) -> Iterator[str]:
    """The files with rows that are there, the whole one first."""
    if self._shared:
      yield from paths(self._workdir, self._name)
    elif os.path.exists(self._whole):
      yield self._whole

  def _read(self, paths: Iterable[str]) -> None:
    for path in paths:
      rows, whole = read(path)
      # Those of others may be written just now.
      if path == self._path and whole < os.path.getsize(path):
        os.truncate(path, whole)
      self.rows |= {row['doc_id']: row for row in rows}

  def _unite(self, rows: Iterable[dict], tokens: bool) -> None:
    clean = None
    if tokens:
      clean = token_scores.unite(self._workdir, [row['doc_id'] for row in rows])
    files.write_if_changed(self._whole, b''.join(map(_line, rows)))
    for path in self._found():
      if path != self._whole:
        os.unlink(path)
    if clean:
      clean()


def paths(workdir: str, name: str = 'results') -> list[str]:
  """`NAME.jsonl`, and those of processes that still write, as far as there."""
  found = []
  pattern = re.escape(name) + r'(\.\d+)?\.jsonl'
  if os.path.isdir(workdir):
    found = [n for n in os.listdir(workdir) if re.fullmatch(pattern, n)]
  found.sort(key=lambda n: (n != f'{name}.jsonl', n))
  return [os.path.join(workdir, n) for n in found]


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
