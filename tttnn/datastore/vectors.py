"""The vectors of a shard on disk, read through memory maps.

They lie as `build` writes them, in a zarr3 array, or in a Flat index of faiss.
"""

from collections.abc import Iterator
import dataclasses
import functools
import pathlib

import numpy as np

_MAPPED = 1 << 12  # Chunks of a shard.


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

  @functools.cached_property
  def _chunk(self):
    """A chunk by its number; those that were used last stay mapped."""
    return functools.lru_cache(maxsize=_MAPPED)(self._map)

  def _map(self, i: int) -> np.ndarray:
    path, shape = self.chunk_path(i), (self.block, self.dim)
    dtype = np.dtype(self.dtype).newbyteorder('<')
    check_size(path, self.block * self.dim * dtype.itemsize)
    chunk = np.asarray(np.memmap(path, dtype, 'r', shape=shape))
    return chunk[: self.rows - i * self.block]  # The last one is padded.


@dataclasses.dataclass(frozen=True)
class FlatVectors:
  """The same, from the Flat index of the shard: see `Vectors`.

  faiss writes them last, in the order of the rows that it holds.

  Attributes:
    path: of the index file.
    rows: number of vectors, with those that the index does not hold.
    left_out: rows that it does not hold, ascending; NaN stands for them.
    dim: width of a vector.
    block: rows that `blocks` gives at once.
  """

  path: pathlib.Path
  rows: int
  left_out: tuple[int, ...]
  dim: int
  block: int

  def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
    for begin in range(0, self.rows, self.block):
      rows = np.arange(begin, min(begin + self.block, self.rows))
      yield begin, self.gather(rows)

  def gather(self, rows: np.ndarray) -> np.ndarray:
    if not self.left_out:
      return self._flat_NxD[rows]
    left_out = np.array(self.left_out, np.int64)
    positions = rows - np.searchsorted(left_out, rows)
    inside = ~np.isin(rows, left_out)
    result = np.full((len(rows), self.dim), np.nan, np.float32)
    result[inside] = self._flat_NxD[positions[inside]]
    return result

  @functools.cached_property
  def _flat_NxD(self) -> np.ndarray:
    shape = self.rows - len(self.left_out), self.dim
    begin = self.path.stat().st_size - 4 * shape[0] * shape[1]
    return np.asarray(np.memmap(self.path, '<f4', 'r', begin, shape))


def check_size(path: pathlib.Path, expected: int) -> None:
  """Raises `ValueError` unless the file is there, `expected` bytes long."""
  if not path.exists():
    raise ValueError(f'{path} is missing')
  size = path.stat().st_size
  if size != expected:
    raise ValueError(f'{path} has {size} bytes, but {expected} are needed')
