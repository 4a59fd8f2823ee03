"""Corpora that are not plain JSONL: .zst and .gz of it, and Parquet.

All are read from their beginning, as the JSONL that they stand for, in blocks,
so that neither a file nor a row group of one is ever in memory.
"""

from collections.abc import Iterator
import dataclasses
import gzip
import json
from typing import Any
from typing import BinaryIO
import zlib

_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Keys:
  """What a line holds.

  Attributes:
    texts: names of strings that it must have.
    others: what else is read of a Parquet row; of a JSON object, all is.
  """

  texts: tuple[str, ...]
  others: tuple[str, ...]


DOCUMENT = Keys(('text',), ('meta', 'doc_id'))
PAIR = Keys(('input', 'output'), ('id',))


def is_plain(path: str) -> bool:
  """Whether a file is read as it is, which its name's ending decides."""
  return not path.endswith(('.zst', '.gz', '.parquet'))


def blocks(file: BinaryIO, keys: Keys = DOCUMENT) -> Iterator[bytes]:
  """The JSONL that a file which is not plain stands for, piece by piece.

  A Parquet row is the line of its columns that `keys` names, those of
  `keys.others` where they are there; what JSON has no form for is written as
  its `str`.

  Args:
    file: open under its path, at its beginning.
    keys: what a line holds.

  Raises:
    ValueError: a damaged file or one that breaks off, a file of another format
      than its name says, or Parquet without `keys.texts` as string columns.
  """
  try:
    if file.name.endswith('.parquet'):
      yield from _parquet(file, keys)
    else:
      yield from (_gzip if file.name.endswith('.gz') else _zstd)(file)
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


def _parquet(file: BinaryIO, keys: Keys) -> Iterator[bytes]:
  import pyarrow
  from pyarrow import parquet

  try:
    # Mapped, for else the columns of a whole row group are read at once.
    source = parquet.ParquetFile(file.name, memory_map=True)
    schema = source.schema_arrow
    for name in keys.texts:
      if name not in schema.names:
        raise ValueError(f'no "{name}" among the columns {schema.names}')
      kind = schema.field(name).type
      if kind not in (pyarrow.string(), pyarrow.large_string()):
        raise ValueError(f'column "{name}" is {kind}, not string')
    others = [name for name in keys.others if name in schema.names]
    columns = [*keys.texts, *others]
    for batch in source.iter_batches(_BATCH_ROWS, columns=columns):
      yield b''.join(_parquet_lines(batch, keys))
  except pyarrow.ArrowInvalid as e:
    raise ValueError(f'{file.name} cannot be read: {e}') from e
  except ValueError as e:
    raise ValueError(f'{file.name}: {e}') from e


def _parquet_lines(batch, keys: Keys) -> Iterator[bytes]:
  """The rows of a record batch as lines."""
  import pyarrow

  texts = {
    name: batch.column(name).cast(pyarrow.large_binary()).to_pylist()
    for name in keys.texts
  }
  others = {
    name: batch.column(name).to_pylist()
    for name in batch.schema.names
    if name not in keys.texts
  }
  for row in range(batch.num_rows):
    # Bytes that are not UTF-8 go through as they are: the reader of the line
    # can name them, and here they would stop all other rows.
    record: dict[str, Any] = {
      name: None
      if values[row] is None
      else values[row].decode(errors='surrogateescape')
      for name, values in texts.items()
    }
    for name, values in others.items():
      if values[row] is not None:
        record[name] = values[row]
    line = json.dumps(record, ensure_ascii=False, default=str)
    yield line.encode(errors='surrogateescape') + b'\n'
