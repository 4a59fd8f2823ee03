"""What building does to one corpus file: finds its lines, embeds their texts.

Any number of processes may do it to one store at once. Every file appears
whole, and is the same bytes whichever of them writes it.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import tensorstore

from tttnn import files
from tttnn.corpus import formats
from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.datastore import store as store_lib
from tttnn.datastore import vectors as vectors_lib

# Blocks of texts to float32 [texts, dim] of each, in the same order.
Embed = Callable[[Iterator[list[str]]], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Block:
  """Rows of a shard that are embedded together and are one chunk on disk.

  Attributes:
    vectors: of the shard.
    texts: its lines.
    number: of the block.
  """

  vectors: vectors_lib.Vectors
  texts: jsonl.Shard
  number: int

  @property
  def rows(self) -> range:
    begin = self.number * self.vectors.block
    return range(begin, min(begin + self.vectors.block, self.vectors.rows))

  def is_written(self) -> bool:
    return self.vectors.chunk_path(self.number).exists()

  def write(self, rows: Sequence[int], embedded: np.ndarray | None) -> None:
    """Writes embeddings of some of its rows, and NaN for the others.

    Raises:
      ValueError: the embeddings are of another shape or type, or too large.
    """
    begin, end = self.rows.start, self.rows.stop
    shape = (end - begin, self.vectors.dim)
    block_BxD = np.full(shape, np.nan, self.vectors.dtype)
    if rows:
      where = f'{self.texts.path}:{begin + 1}-{end}'
      narrow = _narrow(np.asarray(embedded), len(rows), self.vectors, where)
      block_BxD[[row - begin for row in rows]] = narrow
    open_array(self.vectors)[begin:end].write(block_BxD).result()


def lines(
  directory: pathlib.Path, number: int, fields: dict[str, Any], cache: str
) -> tuple[jsonl.Shard, str]:
  """Opens a corpus file, with its plain form and the places of its lines.

  Both are made where they are not there yet.

  Args:
    directory: of the store.
    number: of the shard.
    fields: its "path", "bytes" and "digest", as in the manifest.
    cache: directory for its plain form; '': the store's own.

  Returns:
    The lines, and `store.Shard.text`.

  Raises:
    ValueError: the file has changed, or cannot be read.
  """
  path = data = os.path.normpath(directory / fields['path'])
  stamp = seekable.Stamp(fields['bytes'], fields['digest'])
  text = ''
  if not formats.is_plain(path):
    own = os.fspath(directory / 'text')
    data = seekable.unpack(path, stamp, os.path.realpath(cache or own))
    text = os.path.relpath(data, directory)
  offsets_path = store_lib.offsets_path(directory, number)
  checks_path = store_lib.checks_path(directory, number)
  for part in (offsets_path, checks_path):
    part.parent.mkdir(exist_ok=True)

  def write_offsets(file) -> None:
    np.save(file, jsonl.scan(data), allow_pickle=False)
    seekable.check(path, stamp)

  def write_checks(file) -> None:
    offsets = store_lib.load_offsets(directory, number)
    np.save(file, jsonl.checksums(data, offsets), allow_pickle=False)
    seekable.check(path, stamp)

  files.write_once(os.fspath(offsets_path), write_offsets)
  files.write_once(os.fspath(checks_path), write_checks)
  offsets = store_lib.load_offsets(directory, number)
  checks = store_lib.load_checks(directory, number)
  return jsonl.Shard(path, offsets, checks, data), text


def blocks(
  vectors: vectors_lib.Vectors, texts: jsonl.Shard, rows: range
) -> list[Block]:
  """The blocks that begin in `rows`; makes the array that they are chunks of.

  Args:
    vectors: of the shard.
    texts: its lines.
    rows: consecutive ones.
  """
  open_array(vectors)
  size = vectors.block
  return [
    Block(vectors, texts, number)
    for number in range(-(-rows.start // size), -(-rows.stop // size))
  ]


def embed(
  blocks: Iterable[Block],
  embed_texts: Embed,
  on_error: str,
  progress: Callable[[int], None],
) -> None:
  """Writes those of some blocks that have no chunk yet, in order.

  A block without a chunk is what was not finished: nothing else is noted.

  Args:
    blocks: of any shards.
    embed_texts: as for `build.build`.
    on_error: of malformed lines: 'error', or 'skip', which stores NaN.
    progress: called with the rows of each block.

  Raises:
    ValueError: as of `build.build`.
  """
  missing = []
  for block in blocks:
    if block.is_written():
      progress(len(block.rows))
    else:
      missing.append(block)
  # Blocks, with the rows that go to `embed_texts`, which may read ahead.
  read = collections.deque()

  def texts() -> Iterator[list[str]]:
    for block in missing:
      found = dict(_texts(block.texts, block.rows, on_error))
      read.append((block, list(found)))
      if found:
        yield [text or ' ' for text in found.values()]

  def write(embedded: np.ndarray | None) -> None:
    block, rows = read.popleft()
    block.write(rows, embedded)
    progress(len(block.rows))

  for embedded in embed_texts(texts()):
    while not read[0][1]:
      write(None)
    write(embedded)
  while read:
    write(None)


def left_out(
  vectors: vectors_lib.Vectors, texts: jsonl.Shard, on_error: str
) -> tuple[tuple[int, ...], int]:
  """Rows without a finite vector, and how many of them are malformed lines.

  Raises:
    MalformedLine: the first one, unless `on_error` is 'skip'.
  """
  rows = tuple(
    int(begin + row)
    for begin, block_BxD in vectors.blocks()
    for row in np.flatnonzero(~np.isfinite(block_BxD).all(axis=1))
  )
  return rows, len(rows) - sum(1 for _ in _texts(texts, rows, on_error))


def _texts(
  texts: jsonl.Shard, rows: Iterable[int], on_error: str
) -> Iterator[tuple[int, str]]:
  """(row, text) of some rows that are not malformed lines."""
  for row in rows:
    try:
      yield row, texts.text(row)
    except jsonl.MalformedLine:
      if on_error == 'error':
        raise


def open_array(vectors: vectors_lib.Vectors) -> tensorstore.TensorStore:
  """The array of a shard, to write to; made where it is not there yet."""
  chunk_shape = [vectors.block, vectors.dim]
  spec = {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': f'{vectors.path}/'},
    'metadata': {
      'shape': [vectors.rows, vectors.dim],
      'data_type': vectors.dtype,
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': chunk_shape},
      },
      'codecs': [{'name': 'bytes', 'configuration': {'endian': 'little'}}],
    },
    # A chunk of zeros is a file as any other: files say what is done.
    'store_data_equal_to_fill_value': True,
  }
  return tensorstore.open(spec, open=True, create=True).result()


def _narrow(
  block_BxD: np.ndarray, rows: int, vectors: vectors_lib.Vectors, where: str
) -> np.ndarray:
  """Embeddings in the type they are stored in."""
  expected = (rows, vectors.dim)
  if block_BxD.shape != expected or block_BxD.dtype != np.float32:
    raise ValueError(
      f'{where}: the embedder gave {block_BxD.dtype} {list(block_BxD.shape)}, '
      f'not float32 {list(expected)}'
    )
  largest = np.abs(block_BxD[np.isfinite(block_BxD)]).max(initial=0)
  if largest > np.finfo(vectors.dtype).max:
    raise ValueError(
      f'{where}: {largest} in an embedding, but {vectors.dtype} ends at '
      f'{np.finfo(vectors.dtype).max}'
    )
  with np.errstate(invalid='ignore'):
    return block_BxD.astype(vectors.dtype)
