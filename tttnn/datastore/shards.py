"""What building does to one corpus file: finds its lines, embeds their texts.

Any number of processes may do it to one store at once. Every file appears
whole, and is the same bytes whichever of them writes it.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
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

Embed = Callable[[list[str]], np.ndarray]


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


def embed(
  vectors: store_lib.Vectors,
  texts: jsonl.Shard,
  rows: range,
  embed_texts: Embed,
  on_error: str,
  progress: Callable[[int], None],
) -> None:
  """Writes those chunks that are not there of the blocks that begin in `rows`.

  A block without a chunk is what was not finished: nothing else is noted.

  Args:
    vectors: of the shard.
    texts: its lines.
    rows: consecutive ones.
    embed_texts: as for `build.build`.
    on_error: of malformed lines: 'error', or 'skip', which stores NaN.
    progress: called with the rows of each block.

  Raises:
    ValueError: as of `build.build`.
  """
  array = _open_array(vectors)
  block = vectors.block
  for i in range(-(-rows.start // block), -(-rows.stop // block)):
    begin, end = i * block, min((i + 1) * block, len(texts))
    if not vectors.chunk_path(i).exists():
      found = dict(_texts(texts, range(begin, end), on_error))
      block_BxD = np.full((end - begin, vectors.dim), np.nan, vectors.dtype)
      if found:
        where = f'{texts.path}:{begin + 1}-{end}'
        embedded = _embed_block(
          embed_texts, [text or ' ' for text in found.values()], vectors, where
        )
        block_BxD[[row - begin for row in found]] = embedded
      array[begin:end].write(block_BxD).result()
    progress(end - begin)


def left_out(
  vectors: store_lib.Vectors, texts: jsonl.Shard, on_error: str
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


def _open_array(vectors: store_lib.Vectors) -> tensorstore.TensorStore:
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


def _embed_block(embed, texts, vectors, where: str) -> np.ndarray:
  block_BxD = np.asarray(embed(texts))
  expected = (len(texts), vectors.dim)
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
