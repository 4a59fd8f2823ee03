"""Documents in JSONL files, one object with a "text" a line, by byte offset.

Texts stay in the files: a corpus is one integer a line, and a text is read
through a memory map when it is asked for, so the memory a corpus needs is the
page cache. A document's id is its global line number over the files in order.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import functools
import glob
import hashlib
import json
import mmap
import os
from typing import Any

import numpy as np

_SCAN_BYTES = 1 << 26
_NEWLINE = 10


def expand(spec: str) -> list[str]:
  """Paths named by comma-separated paths and globs; each glob is sorted.

  Raises:
    ValueError: a part that names no file, or a file that is named twice.
  """
  paths = []
  for part in spec.split(','):
    part = part.strip()
    if os.path.isfile(part):
      paths.append(part)
      continue
    found = sorted(filter(os.path.isfile, glob.glob(part, recursive=True)))
    if not found:
      raise ValueError(f'no such file: {part!r} (in {spec!r})')
    paths += found
  for i, path in enumerate(paths):
    if path in paths[:i]:
      raise ValueError(f'{path} is named twice in {spec!r}')
  return paths


def scan(path: str) -> np.ndarray:
  """Byte offsets of a file's lines: int64 [lines + 1], the last is its size.

  The last line may lack its newline; an empty file has no line.
  """
  size = os.path.getsize(path)
  parts = [np.zeros(1, np.int64)]
  if size:
    bytes_ = np.memmap(path, np.uint8, 'r', shape=(size,))
    for begin in range(0, size, _SCAN_BYTES):
      block = bytes_[begin : begin + _SCAN_BYTES]
      parts.append(np.flatnonzero(block == _NEWLINE) + (begin + 1))
  offsets = np.concatenate(parts)
  return offsets if offsets[-1] == size else np.append(offsets, size)


def parse(line: bytes, path: str, number: int) -> dict[str, Any]:
  """The object on one line; `number` is 1-based and only for the error.

  Raises:
    ValueError: `path:number: why`, for anything but a JSON object in valid
      UTF-8 whose "text" is a string that UTF-8 can hold.
  """

  def error(why) -> ValueError:
    return ValueError(f'{path}:{number}: {why}')

  try:
    record = json.loads(line.decode())
  except UnicodeDecodeError as e:
    raise error(f'invalid UTF-8: {e}') from e
  except json.JSONDecodeError as e:
    why = f'malformed JSON: {e}' if line.strip() else 'empty line'
    raise error(why) from e
  if not isinstance(record, dict):
    raise error(f'a JSON object is needed, not {type(record).__name__}')
  if 'text' not in record:
    raise error(f'no "text" among the keys {sorted(record)}')
  text = record['text']
  if not isinstance(text, str):
    raise error(f'"text" must be a string, not {type(text).__name__}')
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise error(f'"text" holds half of a surrogate pair: {e}') from e
  return record


class Shard:
  """The lines of one file.

  Args:
    path: the JSONL file.
    offsets: int64 [lines + 1] from `scan`, possibly made long ago.

  Raises:
    ValueError: the file's size is not the one that the offsets end with.
  """

  def __init__(self, path: str, offsets: np.ndarray):
    self.path = path
    self._offsets = offsets
    size = os.path.getsize(path)
    if size != offsets[-1]:
      raise ValueError(
        f'{path} has {size} bytes but had {offsets[-1]} when its lines were '
        'counted: the corpus has changed'
      )

  def __len__(self) -> int:
    return len(self._offsets) - 1

  @functools.cached_property
  def _bytes(self) -> mmap.mmap:
    with open(self.path, 'rb') as f:
      return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)

  def line(self, row: int) -> bytes:
    """One line (0-based) as it is in the file."""
    begin, end = self._offsets[row], self._offsets[row + 1]
    return self._bytes[begin:end]

  def record(self, row: int) -> dict[str, Any]:
    """The whole object of one line; `ValueError`s as of `parse`."""
    return parse(self.line(row), self.path, row + 1)

  def text(self, row: int) -> str:
    return self.record(row)['text']


class Corpus:
  """The documents of several shards under global ids 0..len - 1.

  Raises:
    ValueError: no document at all.
  """

  def __init__(self, shards: Sequence[Shard]):
    self.shards = tuple(shards)
    self._begins = np.cumsum([0] + [len(shard) for shard in self.shards])
    if not len(self):
      paths = ', '.join(shard.path for shard in self.shards) or 'no file'
      raise ValueError(f'the corpus is empty: {paths}')

  def __len__(self) -> int:
    return int(self._begins[-1])

  def locate(self, id_: int) -> tuple[Shard, int]:
    """The shard and the row in it of one global id."""
    if not 0 <= id_ < len(self):
      raise ValueError(f'document {id_} of a corpus with {len(self)} documents')
    shard = int(np.searchsorted(self._begins, id_, side='right')) - 1
    return self.shards[shard], int(id_ - self._begins[shard])

  def record(self, id_: int) -> dict[str, Any]:
    shard, row = self.locate(id_)
    return shard.record(row)

  def text(self, id_: int) -> str:
    shard, row = self.locate(id_)
    return shard.text(row)

  def iter_texts(self, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """Texts of the ids begin..end - 1, in order."""
    for id_ in range(begin, len(self) if end is None else end):
      yield self.text(id_)


def read(paths: Sequence[str]) -> Corpus:
  """A corpus over files as they are now; `ValueError` if it is empty."""
  return Corpus([Shard(path, scan(path)) for path in paths])


def digest(spec: str) -> str:
  """sha256 over the bytes of the files `spec`, in order."""
  total = hashlib.sha256()
  for path in expand(spec):
    with open(path, 'rb') as file:
      total.update(hashlib.file_digest(file, 'sha256').digest())
  return total.hexdigest()
