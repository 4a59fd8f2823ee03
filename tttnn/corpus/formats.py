"""Corpora that are not plain JSONL: .zst and .gz of it, and Parquet.

All are read from their beginning, as the JSONL that they stand for, in blocks,
so that neither a file nor a row group of one is ever in memory.
"""

from collections.abc import Iterator
import gzip
import json
from typing import Any
from typing import BinaryIO
import zlib

_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 64
_COLUMNS = ('text', 'meta', 'doc_id')


def is_plain(path: str) -> bool:
  """Whether a file is read as it is, which its name's ending decides."""
  return not path.endswith(('.zst', '.gz', '.parquet'))


def blocks(file: BinaryIO) -> Iterator[bytes]:
  """The JSONL that a file which is not plain stands for, piece by piece.

  A Parquet row is the line {"text", "meta"?, "doc_id"?} of the columns of
  these names; what JSON has no form for is written as its `str`.

  Args:
    file: open under its path, at its beginning.

  Raises:
    ValueError: a damaged file or one that breaks off, a file of another format
      than its name says, a Parquet file without a string column "text".
  """
  if file.name.endswith('.parquet'):
    read = _parquet
  else:
    read = _gzip if file.name.endswith('.gz') else _zstd
  try:
    yield from read(file)
  except (EOFError, OSError, zlib.error) as e:
    raise ValueError(f'{file.name} cannot be read: {e}') from e


def rows(path: str) -> int:
  """Rows of a Parquet file, by its footer."""
  from pyarrow import parquet

  return parquet.read_metadata(path).num_rows


def _gzip(file: BinaryIO) -> Iterator[bytes]:
  with gzip.GzipFile(fileobj=file) as unpacked:
    while block := unpacked.read(_BLOCK_BYTES):
      yield block


def _zstd(file: BinaryIO) -> Iterator[bytes]:
  # Imported here and below: few need it, and a search host never does.
  import pyarrow

  # Unlike some, it goes on into further frames, and a last frame that breaks
  # off is an error to it.
  with pyarrow.CompressedInputStream(file, 'zstd') as unpacked:
    while block := unpacked.read(_BLOCK_BYTES):
      yield block


def _parquet(file: BinaryIO) -> Iterator[bytes]:
  import pyarrow
  from pyarrow import parquet

  try:
    # Mapped, for else the columns of a whole row group are read at once.
    source = parquet.ParquetFile(file.name, memory_map=True)
    schema = source.schema_arrow
    if 'text' not in schema.names:
      raise ValueError(f'no "text" among the columns {schema.names}')
    kind = schema.field('text').type
    if kind not in (pyarrow.string(), pyarrow.large_string()):
      raise ValueError(f'column "text" is {kind}, not string')
    columns = [name for name in _COLUMNS if name in schema.names]
    for batch in source.iter_batches(_BATCH_ROWS, columns=columns):
      yield b''.join(_parquet_lines(batch))
  except pyarrow.ArrowInvalid as e:
    raise ValueError(f'{file.name} cannot be read: {e}') from e
  except ValueError as e:
    raise ValueError(f'{file.name}: {e}') from e


def _parquet_lines(batch) -> Iterator[bytes]:
  """The rows of a record batch as lines."""
  import pyarrow

  columns = {
    name: batch.column(name).to_pylist()
    for name in batch.schema.names
    if name != 'text'
  }
  texts = batch.column('text').cast(pyarrow.large_binary()).to_pylist()
  for row, text in enumerate(texts):
    record: dict[str, Any] = {'text': text}
    if text is not None:
      # Bytes that are not UTF-8 go through as they are: the reader of the line
      # can name them, and here they would stop all other rows.
      record['text'] = text.decode(errors='surrogateescape')
    for name, values in columns.items():
      if values[row] is not None:
        record[name] = values[row]
    line = json.dumps(record, ensure_ascii=False, default=str)
    yield line.encode(errors='surrogateescape') + b'\n'
