"""Documents in JSONL files, one object with a "text" a line, by byte offset.

Texts stay in the files: a corpus is one integer a line, and a text is read
through a memory map when it is asked for, so the memory a corpus needs is the
page cache. A document's id is its global line number over the files in order.
`records` reads one file after another line by line instead, and needs no plain
form of those that are compressed.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import functools
import glob
import hashlib
import json
import mmap
import os
import tempfile
from typing import Any
from typing import BinaryIO
import zlib

import numpy as np

from tttnn import files
from tttnn.corpus import formats

_SCAN_BYTES = 1 << 22
_NEWLINE = 10


class MalformedLine(ValueError):
  """A line without a document; `corpus.on_error` says what becomes of it."""


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


def checksums(path: str, offsets: np.ndarray) -> np.ndarray:
  """CRC-32 of every line, as `scan` found them: uint32 [lines]."""
  if len(offsets) == 1:
    return np.empty(0, np.uint32)
  with open(path, 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  view = memoryview(mapped)
  lines = (
    zlib.crc32(view[offsets[row] : offsets[row + 1]])
    for row in range(len(offsets) - 1)
  )
  return np.fromiter(lines, np.uint32, len(offsets) - 1)


def parse(
  line: bytes, path: str, number: int, keys: formats.Keys = formats.DOCUMENT
) -> dict[str, Any]:
  """The object on one line; `number` is 1-based and only for the error.

  Raises:
    MalformedLine: `path:number: why`, for anything but a JSON object in valid
      UTF-8 whose `keys.texts` are strings that UTF-8 can hold.
  """

  def error(why) -> MalformedLine:
    return MalformedLine(f'{path}:{number}: {why}')

  try:
    record = json.loads(line.decode())
  except UnicodeDecodeError as e:
    raise error(f'invalid UTF-8: {e}') from e
  except json.JSONDecodeError as e:
    why = f'malformed JSON: {e}' if line.strip() else 'empty line'
    raise error(why) from e
  except (ValueError, RecursionError) as e:  # What Python sets limits to.
    raise error(f'JSON that cannot be read: {e}') from e
  if not isinstance(record, dict):
    raise error(f'a JSON object is needed, not {type(record).__name__}')
  for name in keys.texts:
    if name not in record:
      raise error(f'no "{name}" among the keys {sorted(record)}')
    text = record[name]
    if not isinstance(text, str):
      raise error(f'"{name}" must be a string, not {type(text).__name__}')
    try:
      text.encode()
    except UnicodeEncodeError as e:
      raise error(f'"{name}" holds half of a surrogate pair: {e}') from e
  return record


class Shard:
  """The lines of one file.

  Args:
    path: the file, as errors name it.
    offsets: int64 [lines + 1] from `scan`, possibly made long ago.
    checks: uint32 [lines] from `checksums`, made then; a line that is read is
      compared with its own. None: no line is.
    data: the plain file to read, where `path` is not plain itself.

  Raises:
    ValueError: the file's size is not the one that the offsets end with.
  """

  def __init__(
    self,
    path: str,
    offsets: np.ndarray,
    checks: np.ndarray | None = None,
    data: str = '',
  ):
    self.path = path
    self._offsets = offsets
    self._checks = checks
    self._data = data or path
    self._require(os.path.getsize(self._data), offsets[-1])

  def __len__(self) -> int:
    return len(self._offsets) - 1

  @functools.cached_property
  def _bytes(self) -> mmap.mmap:
    with open(self._data, 'rb') as f:
      return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)

  def _require(self, size: int, expected: int) -> None:
    if size != expected:
      raise ValueError(
        f'{self._data} has {size} bytes but had {expected} when its lines were '
        'counted: the corpus has changed'
      )

  def line(self, row: int) -> bytes:
    """One line (0-based) as it is in the file.

    Raises:
      ValueError: the file has another size meanwhile, or the line another
        checksum.
    """
    begin, end = self._offsets[row], self._offsets[row + 1]
    # Reading a page that is no longer there would kill the process.
    self._require(self._bytes.size(), self._offsets[-1])
    line = self._bytes[begin:end]
    if self._checks is not None and zlib.crc32(line) != self._checks[row]:
      raise ValueError(
        f'{self.path}:{row + 1}: CRC-32 {zlib.crc32(line):08x}, but '
        f'{self._checks[row]:08x} when its lines were counted: the corpus has '
        'changed'
      )
    return line

  def record(self, row: int) -> dict[str, Any]:
    """The whole object of one line; errors as of `line` and `parse`."""
    return parse(self.line(row), self.path, row + 1)

  def text(self, row: int) -> str:
    return self.record(row)['text']


class Corpus:
  """The documents of several shards under global ids 0..len - 1.

  Args:
    shards: the files in order; None: one that is on another host.
    rows: lines of each; None: those of the shards, which are all here then.

  Raises:
    ValueError: no document at all.
  """

  def __init__(
    self,
    shards: Sequence[Shard | None],
    rows: Sequence[int] | None = None,
  ):
    self.shards = tuple(shards)
    rows = [len(shard) for shard in shards] if rows is None else list(rows)
    self._begins = np.cumsum([0] + rows)
    if not len(self):
      here = [shard.path for shard in shards if shard is not None]
      paths = ', '.join(here) or 'no file'
      raise ValueError(f'the corpus is empty: {paths}')

  def __len__(self) -> int:
    return int(self._begins[-1])

  def locate(self, id_: int) -> tuple[Shard, int]:
    """The shard and the row in it of one global id."""
    if not 0 <= id_ < len(self):
      raise ValueError(f'document {id_} of a corpus with {len(self)} documents')
    number = int(np.searchsorted(self._begins, id_, side='right')) - 1
    shard = self.shards[number]
    if shard is None:
      raise ValueError(
        f'document {id_} is in corpus file {number}, which is not on this host'
      )
    return shard, int(id_ - self._begins[number])

  def record(self, id_: int) -> dict[str, Any]:
    shard, row = self.locate(id_)
    return shard.record(row)

  def text(self, id_: int) -> str:
    shard, row = self.locate(id_)
    return shard.text(row)

  def texts(self, ids: Sequence[int]) -> list[str]:
    return [self.text(id_) for id_ in ids]

  def iter_texts(self, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """Texts of the ids begin..end - 1, in order."""
    for id_ in range(begin, len(self) if end is None else end):
      yield self.text(id_)


def open_shard(path: str) -> Shard:
  """The lines of a file as it is now.

  One that is not plain is unpacked to a file without a name in the directory
  for temporary files, which ends with the shard.
  """
  if formats.is_plain(path):
    return Shard(path, scan(path))
  with tempfile.TemporaryFile() as plain:
    with open(path, 'rb') as file:
      for block in formats.blocks(file):
        plain.write(block)
    plain.flush()
    data = f'/proc/self/fd/{plain.fileno()}'
    shard = Shard(path, scan(data), data=data)
    if len(shard):
      shard.line(0)  # Maps the file, which holds it open.
  return shard


def read(paths: Sequence[str]) -> Corpus:
  """A corpus over files as they are now; `ValueError` if it is empty."""
  return Corpus([open_shard(path) for path in paths])


def records(
  path: str, on_error: str = 'error'
) -> Iterator[tuple[int, dict[str, Any]]]:
  """(row, object) of a file's lines in order, read by blocks.

  Args:
    path: of any format.
    on_error: of a malformed line: 'error', or 'skip', which leaves it out.

  Raises:
    MalformedLine: the first one, unless they are skipped.
    ValueError: another `on_error`, or a file that cannot be unpacked.
  """
  check_on_error(on_error)
  with open(path, 'rb') as file:
    for row, line in enumerate(lines(file)):
      try:
        record = parse(line, path, row + 1)
      except MalformedLine:
        if on_error == 'error':
          raise
        continue
      yield row, record


def lines(
  file: BinaryIO, keys: formats.Keys = formats.DOCUMENT
) -> Iterator[bytes]:
  """The lines of a file of any format, open under its path."""
  if formats.is_plain(file.name):
    yield from file
    return
  begun = []
  for block in formats.blocks(file, keys):
    first, *others = block.split(b'\n')
    begun.append(first)
    for piece in others:
      yield b''.join(begun)
      begun = [piece]
  if last := b''.join(begun):
    yield last


def check_on_error(on_error: str) -> None:
  """Raises `ValueError` unless it is 'error' or 'skip'."""
  if on_error not in ('error', 'skip'):
    raise ValueError(f'corpus.on_error={on_error!r} is neither error nor skip')


def digest(spec: str) -> str:
  """sha256 over the bytes of the files `spec`, in order."""
  total = hashlib.sha256()
  for path in expand(spec):
    total.update(files.sha256(path))
  return total.hexdigest()
