"""A datastore on disk: what was embedded, by what, and where everything is.

    STORE/manifest.json     written last: a store without it is not finished
          offsets/00.npy    int64 [rows + 1], line starts in the corpus file
          vectors/00/       zarr3 array [rows, dim], uncompressed
          index/00.faiss    over the rows whose vectors are finite

A document's id is its global line number over the shards in manifest order.
Nothing in a store depends on the time, the machine or how often building was
interrupted: two builds of the same thing are the same bytes.
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

VERSION = 1
MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One corpus file in the manifest.

  Attributes:
    path: the JSONL file, relative to the store's directory.
    bytes: its size.
    rows: its lines.
    left_out: rows whose vectors hold NaN or infinity; they are stored as they
      are, but not indexed, so that no search returns them.
    index_bytes: size of the index file; 0 = nothing to index, so no file.
  """

  path: str
  bytes: int
  rows: int
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
    path = self.directory / 'vectors' / f'{shard:02}'
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
      is missing or not as long as it was, or a corpus file that has changed.
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
  lines = []
  for i, shard in enumerate(manifest.shards):
    offsets = load_offsets(directory, i)
    if offsets.shape != (shard.rows + 1,):
      raise ValueError(
        f'{offsets_path(directory, i)} has {len(offsets) - 1} rows, '
        f'{path} {shard.rows}'
      )
    corpus_path = os.path.normpath(directory / shard.path)
    lines.append(jsonl.Shard(corpus_path, offsets))
  store = Store(directory, manifest, jsonl.Corpus(lines))
  for i, shard in enumerate(manifest.shards):
    if shard.searchable:
      check_size(store.index_path(i), shard.index_bytes)
  return store


def offsets_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'offsets' / f'{shard:02}.npy'


def load_offsets(directory: pathlib.Path, shard: int) -> np.ndarray:
  """Memory-mapped int64 [rows + 1]; `ValueError` names a damaged file."""
  path = offsets_path(directory, shard)
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
