"""Stores that are being built: what they are to be, and who builds what.

Many processes, on many machines that share the directory, may build a store at
once, each a part of it.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import struct
from typing import Any

from tttnn import files
from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.datastore import index as index_lib
from tttnn.datastore import metric as metric_lib
from tttnn.datastore import store as store_lib

_REQUEST = 'building.json'
_LOCK = 'building.lock'
FILES = (_REQUEST, _REQUEST + '.lock', _LOCK)  # Of no use when it is built.
MAX_ROWS = 1 << 40  # Of a shard; only for the lock.

Claim = Callable[[int, range], None]


@dataclasses.dataclass(frozen=True)
class Part:
  """Documents that one of many processes embeds.

  A block that straddles two parts belongs to the one that it begins in.

  Attributes:
    shard: number of the corpus file; -1: all files, as one.
    begin: the first document of these.
    end: after the last one, which may be beyond what there is; 0: the end.
  """

  shard: int = -1
  begin: int = 0
  end: int = 0

  def rows(
    self, shards: int, lines: Callable[[int], jsonl.Shard]
  ) -> list[tuple[int, jsonl.Shard, range]]:
    """(shard, its lines, rows of it) for each shard that it has rows of.

    Args:
      shards: how many there are.
      lines: of a shard; asked only for those up to the last that it needs.

    Raises:
      ValueError: it has no documents.
    """
    if not -1 <= self.shard < shards:
      raise ValueError(f'{self}, but the corpus has {shards} files')
    if self.begin < 0 or self.end < 0 or 0 < self.end <= self.begin:
      raise ValueError(f'{self} ends before it begins')
    found, first = [], 0
    for shard in range(shards) if self.shard < 0 else [self.shard]:
      if self.end and first >= self.end:
        break
      here = lines(shard)
      end = self.end - first if self.end else len(here)
      rows = range(max(0, self.begin - first), min(end, len(here)))
      if rows:
        found.append((shard, here, rows))
      first += len(here)
    if not found:
      raise ValueError(f'{self} begins after the last of {first} documents')
    return found


def request(
  store_dir,
  corpus_paths,
  dim,
  fingerprint,
  options,
  imported: bool,
  stamp: Callable[[str], seekable.Stamp] = seekable.stamp,
) -> dict[str, Any]:
  """The arguments that decide a store's bytes, under the manifest's names.

  `stamp` is of a corpus file.

  Raises:
    ValueError: as of `build.build`.
  """
  if options.dtype not in ('float32', 'float16'):
    raise ValueError(
      f"dtype {options.dtype!r} is neither 'float32' nor 'float16'"
    )
  if dim < 1 or options.block < 1:
    raise ValueError(f'dim {dim} and block {options.block} must be positive')
  metric_lib.check(options.metric)
  index_lib.create(dim, options.index, options.metric)
  directory = os.path.realpath(store_dir)
  shards = []
  for path in corpus_paths:
    # The file may be a link, whose own name is what the user knows.
    parent, name = os.path.split(os.path.abspath(path))
    path = os.path.join(os.path.realpath(parent), name)
    fields = {'path': os.path.relpath(path, directory)}
    shards.append(fields | dataclasses.asdict(stamp(path)))
  return {
    'version': store_lib.VERSION,
    'embedder': fingerprint,
    'dim': dim,
    'metric': options.metric,
    'dtype': options.dtype,
    'block': options.block,
    'seed': options.seed,
    'keep_vectors': options.keep_vectors,
    'imported': imported,
    'shards': shards,
  }


def compare(path, found: dict[str, Any], request: dict[str, Any]) -> None:
  found, request = _flat(found), _flat(request)
  different = [
    f'{key} is {found.get(key)!r} there, {request.get(key)!r} now'
    for key in request | found
    if found.get(key) != request.get(key)
  ]
  if different:
    raise ValueError(
      f'{path} is of another build: {"; ".join(different[:8])}. Name another '
      'store directory, or delete this one'
    )


def _flat(request: dict[str, Any]) -> dict[str, Any]:
  flat = {key: value for key, value in request.items() if key != 'shards'}
  for i, shard in enumerate(request['shards']):
    flat |= {f'shards[{i}].{key}': value for key, value in shard.items()}
  return flat


@contextlib.contextmanager
def lock(directory: pathlib.Path, *, whole: bool) -> Iterator[Claim]:
  """Keeps other builders out; the kernel lets go when this process dies.

  Args:
    directory: of the store.
    whole: whether out of all of it. Otherwise the context's value claims rows
      (shard, range), and keeps others out of those, and out of the whole.
  """
  directory.mkdir(parents=True, exist_ok=True)
  ours = {*FILES, _REQUEST + '.tmp'}
  strange = {path.name for path in directory.iterdir()} - ours
  begun = (_REQUEST, store_lib.MANIFEST)
  if strange and not any((directory / name).exists() for name in begun):
    raise ValueError(
      f'{directory} holds {sorted(strange)[0]} but no store, finished or begun'
    )
  file = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

  def hold(kind: int, begin: int, length: int) -> None:
    # Byte ranges, as stand-ins for rows, of which byte 0 is for everyone. They
    # belong to this opening of the file, as those of flock do.
    span = struct.pack('hhqqi', kind, os.SEEK_SET, begin, length, 0)
    try:
      fcntl.fcntl(file, fcntl.F_OFD_SETLK, span)
    except BlockingIOError as e:
      raise ValueError(f'another process is building {directory}') from e

  def claim(shard: int, rows: range) -> None:
    if rows:
      hold(fcntl.F_WRLCK, 1 + shard * MAX_ROWS + rows.start, len(rows))

  try:
    if whole:
      hold(fcntl.F_WRLCK, 0, 0)  # To the end, wherever that is.
    else:
      hold(fcntl.F_RDLCK, 0, 1)
    yield claim
  finally:
    os.close(file)


def begin(directory: pathlib.Path, request: dict[str, Any]) -> None:
  """Notes what is being built, which every builder must agree on."""
  path = directory / _REQUEST
  files.write_once(
    os.fspath(path), lambda file: file.write(store_lib.to_json(request))
  )
  compare(path, store_lib.read_json(path), request)


def write(path: pathlib.Path, data: bytes) -> None:
  """Writes a whole file; what a killed process left of it is overwritten."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_bytes(data)
  os.replace(temporary, path)
