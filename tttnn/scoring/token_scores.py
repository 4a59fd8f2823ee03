"""Scores of single tokens: a compact binary file beside the rows.

`tokens.bin` is one record after another, so that it grows as rows do:

  magic [4], CRC-32 uint32, length of the key uint32, of the body uint64
  key: the doc_id as JSON
  body: zlib of (length of the head uint32, head as JSON, ends uint32 [T],
    scores float32 [C, T], the four bytes of the numbers apart)

All numbers are little-endian. A reader goes from header to header and reads the
bodies that it wants. Of records of one document the last counts.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import json
import math
import os
import re
import struct
from typing import Self
import zlib

import numpy as np

from tttnn import files

NAME = 'tokens.bin'
_PART = re.compile(r'tokens\.\d+\.bin')  # Of one process of several.
_MAGIC = b'tok1'
_HEADER = struct.Struct('<4sIIQ')
_LENGTH = struct.Struct('<I')


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A document's scored text, token by token, and what it was scored with.

  Attributes:
    text: that was scored.
    ends_T: where each token ends in it, in characters, ascending. Of tokens
      that share a character the first has it, and the others are empty.
    at: the counts, as in the row.
    scores_CxT: log-likelihood of each token at each count, nats, float32.
    mixture: whether instead, what stands at the last count is log p_nn of
      `interpolation`, since the row says with which alpha it is mixed. Without
      p_nn there is the first count alone.
    query: the beginning of the text that was looked up, where that is another.
    neighbors: the beginnings of the neighbours' texts, in the row's order.
    neighbor_chars: lengths of the whole texts, in characters.
  """

  text: str
  ends_T: np.ndarray
  at: list[int]
  scores_CxT: np.ndarray
  mixture: bool = False
  query: str = ''
  neighbors: list[str] = dataclasses.field(default_factory=list)
  neighbor_chars: list[int] = dataclasses.field(default_factory=list)

  def to_bytes(self) -> bytes:
    """The body of a record."""
    head = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if not field.name.endswith('T')
    }
    data = json.dumps(head | {'shape': self.scores_CxT.shape}).encode()
    ends = np.ascontiguousarray(self.ends_T, '<u4')
    scores = np.ascontiguousarray(self.scores_CxT, '<f4')
    parts = [_LENGTH.pack(len(data)), data, _apart(ends), _apart(scores)]
    return zlib.compress(b''.join(parts))

  @classmethod
  def from_bytes(cls, body: bytes) -> Self:
    """Reverses `to_bytes`."""
    data = zlib.decompress(body)
    begin = _LENGTH.size
    (length,) = _LENGTH.unpack(data[:begin])
    head = json.loads(data[begin : begin + length])
    shape = head.pop('shape')
    numbers = data[begin + length :]
    split = 4 * shape[1]
    return cls(
      ends_T=_together(numbers[:split], '<u4'),
      scores_CxT=_together(numbers[split:], '<f4').reshape(shape),
      **head,
    )

  def of_row(self, row: Mapping) -> np.ndarray:
    """log-likelihoods of tokens [C, T], one line a count of the row, in nats.

    NaN where the row's own are not known yet: before `interpolation` has chosen
    its alpha.

    Raises:
      ValueError: if the row has other counts, or other sums.
    """
    if row['at'] != self.at:
      raise ValueError(
        f'document {row["doc_id"]!r}: its row has the counts {row["at"]}, its '
        f'token scores {self.at}'
      )
    scores_CxT = self._mixed(row) if self.mixture else self.scores_CxT
    for count, known, sum_ in zip(
      self.at, row['log_likelihood'], scores_CxT.sum(1, float), strict=True
    ):
      if known is not None and not math.isclose(
        known, sum_, rel_tol=1e-5, abs_tol=1e-3
      ):
        raise ValueError(
          f'document {row["doc_id"]!r} at {count}: the log-likelihood is '
          f'{known:.6g} in its row, {sum_:.6g} by its token scores: they are '
          'of different runs'
        )
    return scores_CxT

  def _mixed(self, row: Mapping) -> np.ndarray:
    base_T = self.scores_CxT[0].astype(np.float64)
    mixed_T = base_T
    if len(self.scores_CxT) > 1:
      alpha = row.get('alpha', np.nan)
      with np.errstate(divide='ignore', invalid='ignore'):
        near_T = np.log(alpha) + self.scores_CxT[1].astype(np.float64)
        mixed_T = np.logaddexp(np.log1p(-alpha) + base_T, near_T)
    return np.stack([base_T, mixed_T]).astype(np.float32)


class Reader:
  """The token scores of a work directory, those of several processes too.

  Attributes:
    ids: of the documents that there are.
  """

  def __init__(self, directory: str):
    """Reads headers alone; a torn last record is not seen.

    Raises:
      ValueError: for a file that is none of token scores.
    """
    self._places = {}
    for path in paths(directory):
      for doc_id, begin, end in scan(path)[0]:
        self._places[doc_id] = path, begin, end
    self.ids = self._places.keys()

  def record(self, doc_id: str | int) -> bytes:
    """The whole record of a document."""
    path, begin, end = self._places[doc_id]
    with open(path, 'rb') as file:
      file.seek(begin)
      return file.read(end - begin)

  def read(self, doc_id: str | int) -> Tokens:
    """Of a document.

    Raises:
      KeyError: if it has none.
      ValueError: with the file, if its bytes have changed.
    """
    data = self.record(doc_id)
    _, checksum, key, _ = _HEADER.unpack(data[: _HEADER.size])
    if zlib.crc32(data[_HEADER.size :]) != checksum:
      raise ValueError(
        f'{self._places[doc_id][0]}: the token scores of document {doc_id!r} '
        'do not fit their checksum'
      )
    return Tokens.from_bytes(data[_HEADER.size + key :])


class Writer:
  """Adds to the token scores of a work directory, one process of several."""

  def __init__(self, directory: str, process: int | None = None):
    """Drops a torn last record; `process` is None where there is one alone."""
    self._directory = directory
    self.path = os.path.join(directory, NAME)
    if process is not None:
      self.path = os.path.join(directory, f'tokens.{process}.bin')
    if os.path.exists(self.path):
      whole = scan(self.path)[1]
      if whole < os.path.getsize(self.path):
        os.truncate(self.path, whole)
    self._file = open(self.path, 'ab')  # noqa: SIM115 (closed by close)

  def append(self, doc_id: str | int, tokens: Tokens) -> None:
    """Hands a document's to the operating system."""
    self._file.write(_record(doc_id, tokens))
    self._file.flush()

  def close(self) -> None:
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()


def unite(directory: str, doc_ids: Iterable[str | int]) -> Callable[[], None]:
  """Puts the records of all processes into `tokens.bin`, in this order.

  Returns:
    What takes away the files of the processes.

  Raises:
    ValueError: if a document has none.
  """
  reader = Reader(directory)
  check(directory, doc_ids := list(doc_ids), reader)
  with files.atomic(os.path.join(directory, NAME)) as file:
    for doc_id in doc_ids:
      file.write(reader.record(doc_id))

  return lambda: delete(directory, keep=(NAME,))


def delete(directory: str, keep: Collection[str] = ()) -> None:
  """Takes the token scores away, but for files of these names."""
  for path in paths(directory):
    if os.path.basename(path) not in keep:
      os.unlink(path)


def check(
  directory: str,
  doc_ids: Collection[str | int],
  reader: Reader | None = None,
) -> None:
  """Raises ValueError if some of these documents have no token scores."""
  reader = reader or Reader(directory)
  missing = [doc_id for doc_id in doc_ids if doc_id not in reader.ids]
  if missing:
    raise ValueError(
      f'{directory} has rows of {len(doc_ids)} documents, of which '
      f'{len(missing)}, {missing[0]!r} for one, have no scores in {NAME}: they '
      'are of a run without eval.save_tokens. Take another --workdir, or '
      'delete the rows'
    )


def paths(directory: str) -> list[str]:
  """The files with token scores that are there, the whole one first."""
  if not os.path.isdir(directory):
    return []
  names = os.listdir(directory)
  found = [name for name in names if name == NAME]
  found += sorted(name for name in names if _PART.fullmatch(name))
  return [os.path.join(directory, name) for name in found]


def scan(path: str) -> tuple[list[tuple[str | int, int, int]], int]:
  """((doc_id, first byte, byte after the last) of records, bytes of them all).

  A torn last record is left out.

  Raises:
    ValueError: with file and byte, where no record begins.
  """
  found, begin = [], 0
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    while begin + _HEADER.size <= size:
      file.seek(begin)
      magic, _, key, body = _HEADER.unpack(file.read(_HEADER.size))
      if magic != _MAGIC:
        raise ValueError(f'{path}: no token scores at byte {begin}')
      end = begin + _HEADER.size + key + body
      if end > size:
        break
      found.append((json.loads(file.read(key)), begin, end))
      begin = end
  return found, begin


def _record(doc_id: str | int, tokens: Tokens) -> bytes:
  key, body = json.dumps(doc_id).encode(), tokens.to_bytes()
  header = _HEADER.pack(_MAGIC, zlib.crc32(key + body), len(key), len(body))
  return header + key + body


def _apart(numbers: np.ndarray) -> bytes:
  """Bytes of equal place behind each other, which zlib makes more of."""
  return numbers.reshape(-1).view(np.uint8).reshape(-1, 4).T.tobytes()


def _together(data: bytes, kind: str) -> np.ndarray:
  numbers = np.frombuffer(data, np.uint8).reshape(4, -1).T
  return np.ascontiguousarray(numbers).reshape(-1).view(kind)
