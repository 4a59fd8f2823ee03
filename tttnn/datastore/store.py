"""A datastore on disk: what was embedded, by what, and where everything is.

    STORE/manifest.json     written last: a store without it is not finished
          offsets/00.npy    int64 [rows + 1], line starts in the corpus file
          checks/00.npy     uint32 [rows], the lines' CRC-32
          text/             plain form of corpus files that are compressed
          vectors/00/       zarr3 array [rows, dim], uncompressed
          index/00.faiss    over the rows whose vectors are finite

A document's id is its global line number over the shards in manifest order.
Nothing in a store depends on the time, the machine or how often building was
interrupted: two builds of the same thing are the same bytes.

A corpus file that changes is noticed by its size and a digest of parts of it
when a store is opened, and by a line's checksum when a text is read.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from tttnn.corpus import jsonl
from tttnn.corpus import seekable

VERSION = 2
MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One corpus file in the manifest.

  Attributes:
    path: the file, relative to the store's directory.
    bytes: its size.
    digest: of parts of it, see `seekable.Stamp`.
    text: its plain form, relative to the store's directory; '' = itself.
    rows: its lines.
    malformed: how many of them hold no document; they are among `left_out`.
    left_out: rows whose vectors hold NaN or infinity, or that have no text and
      so NaN for a vector; they are stored as they are, but not indexed, so that
      no search returns them.
    index_bytes: size of the index file; 0 = nothing to index, so no file.
  """

  path: str
  bytes: int
  digest: str
  text: str
  rows: int
  malformed: int
  left_out: tuple[int, ...]
  index_bytes: int

  @property
  def searchable(self) -> int:
    return self.rows - len(self.left_out)

  @functools.cached_property
  def _skips(self) -> np.ndarray:
    left_out = np.array(self.left_out, np.int64)
    return left_out - np.arange(len(left_out))

  def row_of(self, positions: np.ndarray) -> np.ndarray:
    """Rows of positions in the index, which counts searchable rows only."""
    # The i-th row left out comes before position left_out[i] - i.
    return positions + np.searchsorted(self._skips, positions, side='right')


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a store was built from and how.

  Attributes:
    version: of this layout.
    embedder: fingerprint of whatever made the vectors.
    dim: width of a vector.
    metric: 'l2'.
    dtype: of the stored vectors, 'float32' or 'float16'.
    block: rows of a chunk of the vectors, embedded together.
    index: faiss factory string, then parameters after a ';'.
    seed: of the training and self-check samples.
    shards: the corpus files, in id order.
    self_check: what the check after building found, see `index.self_check`.
  """

  version: int
  embedder: str
  dim: int
  metric: str
  dtype: str
  block: int
  index: str
  seed: int
  shards: tuple[Shard, ...]
  self_check: Mapping[str, float]

  @property
  def rows(self) -> int:
    return sum(shard.rows for shard in self.shards)

  @property
  def searchable(self) -> int:
    return sum(shard.searchable for shard in self.shards)

  @property
  def malformed(self) -> int:
    return sum(shard.malformed for shard in self.shards)

  def to_json(self) -> bytes:
    return to_json(dataclasses.asdict(self))

  @classmethod
  def from_fields(cls, fields: dict[str, Any]) -> 'Manifest':
    shards = (
      Shard(**shard | {'left_out': tuple(shard['left_out'])})
      for shard in fields['shards']
    )
    return cls(**fields | {'shards': tuple(shards)})


@dataclasses.dataclass(frozen=True)
class Vectors:
  """The stored vectors of one shard, read through memory maps.

  An uncompressed zarr3 chunk file is its rows in C order, so it can be mapped:
  single rows then cost a page, where reading the array costs a whole chunk.

  Attributes:
    path: the zarr3 array's directory.
    rows: number of vectors.
    dim: width of a vector.
    dtype: 'float32' or 'float16'.
    block: rows of a chunk.
  """

  path: pathlib.Path
  rows: int
  dim: int
  dtype: str
  block: int

  def chunk_path(self, i: int) -> pathlib.Path:
    return self.path / 'c' / str(i) / '0'

  def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, vectors [n, dim] as stored) of every chunk in order."""
    for i in range(-(-self.rows // self.block)):
      yield i * self.block, self._chunk(i)

  def gather(self, rows: np.ndarray) -> np.ndarray:
    """Vectors of some rows, any order: [len(rows), dim] as stored."""
    result = np.empty((len(rows), self.dim), self.dtype)
    chunks = rows // self.block
    for i in set(chunks.tolist()):
      here = chunks == i
      result[here] = self._chunk(i)[rows[here] - i * self.block]
    return result

  def _chunk(self, i: int) -> np.ndarray:
    path, shape = self.chunk_path(i), (self.block, self.dim)
    dtype = np.dtype(self.dtype).newbyteorder('<')
    check_size(path, self.block * self.dim * dtype.itemsize)
    chunk = np.asarray(np.memmap(path, dtype, 'r', shape=shape))
    return chunk[: self.rows - i * self.block]  # The last one is padded.


@dataclasses.dataclass(frozen=True)
class Store:
  """A store's manifest and texts, and where its other parts are."""

  directory: pathlib.Path
  manifest: Manifest
  corpus: jsonl.Corpus

  def vectors(self, shard: int) -> Vectors:
    m = self.manifest
    path = vectors_path(self.directory, shard)
    return Vectors(path, m.shards[shard].rows, m.dim, m.dtype, m.block)

  def index_path(self, shard: int) -> pathlib.Path:
    return self.directory / 'index' / f'{shard:02}.faiss'

  def fingerprint(self) -> str:
    """SHA-256 of the manifest, hexadecimal."""
    return hashlib.sha256(self.manifest.to_json()).hexdigest()


def open(directory: str | os.PathLike) -> Store:
  """Opens a finished store and checks that its files are those it was built of.

  Raises:
    ValueError: no manifest, another layout version, a file of the store that
      is missing or not as long as it was, or a corpus file that has changed or
      is missing, but for one whose plain form is there.
  """
  directory = pathlib.Path(os.path.realpath(directory))
  path = directory / MANIFEST
  if not path.exists():
    raise ValueError(f'no finished store in {directory}: no {MANIFEST} there')
  fields = read_json(path)
  if fields.get('version') != VERSION:
    raise ValueError(
      f'{path} has version {fields.get("version")}, this program {VERSION}'
    )
  manifest = Manifest.from_fields(fields)
  lines = [
    _open_shard(directory, i, shard) for i, shard in enumerate(manifest.shards)
  ]
  store = Store(directory, manifest, jsonl.Corpus(lines))
  for i, shard in enumerate(manifest.shards):
    if shard.searchable:
      check_size(store.index_path(i), shard.index_bytes)
  return store


def _open_shard(
  directory: pathlib.Path, number: int, shard: Shard
) -> jsonl.Shard:
  path = data = os.path.normpath(directory / shard.path)
  if shard.text:
    data = os.path.normpath(directory / shard.text)
    if not os.path.exists(data):
      raise ValueError(f'{data} is missing: `build` makes it again from {path}')
  # A compressed file has done its part once there is a plain one.
  if not shard.text or os.path.exists(path):
    seekable.check(path, seekable.Stamp(shard.bytes, shard.digest))
  offsets = load_offsets(directory, number)
  checks = load_checks(directory, number)
  for part_path, rows in (
    (offsets_path(directory, number), len(offsets) - 1),
    (checks_path(directory, number), len(checks)),
  ):
    if rows != shard.rows:
      raise ValueError(
        f'{part_path} has {rows} rows, {directory / MANIFEST} {shard.rows}'
      )
  return jsonl.Shard(path, offsets, checks, data)


def offsets_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'offsets' / f'{shard:02}.npy'


def checks_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'checks' / f'{shard:02}.npy'


def vectors_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'vectors' / f'{shard:02}'


def load_offsets(directory: pathlib.Path, shard: int) -> np.ndarray:
  """Memory-mapped int64 [rows + 1]; `ValueError` names a damaged file."""
  return _load(offsets_path(directory, shard))


def load_checks(directory: pathlib.Path, shard: int) -> np.ndarray:
  """Memory-mapped uint32 [rows]; `ValueError` names a damaged file."""
  return _load(checks_path(directory, shard))


def _load(path: pathlib.Path) -> np.ndarray:
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except (OSError, EOFError, ValueError) as e:
    raise ValueError(f'{path} cannot be read: {e}') from e


def check_size(path: pathlib.Path, expected: int) -> None:
  """Raises `ValueError` unless the file is there, `expected` bytes long."""
  if not path.exists():
    raise ValueError(f'{path} is missing')
  size = path.stat().st_size
  if size != expected:
    raise ValueError(f'{path} has {size} bytes, but {expected} are needed')


def read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_bytes())
  except ValueError as e:
    raise ValueError(f'{path} is not JSON: {e}') from e


def to_json(fields: Mapping[str, Any]) -> bytes:
  """JSON as a store holds it: indented, with a newline at the end."""
  return (json.dumps(fields, indent=2) + '\n').encode()
