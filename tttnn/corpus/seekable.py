"""Corpus files by what they hold: have they changed, where can they be mapped.

A file's stamp is its size and a digest of some of its bytes. The time of its
last change is no part of it: a copy has another, an edit may keep it. What a
stamp does not see, a change of some bytes of a large plain file that keeps its
size, the checksums of lines do (`jsonl.checksums`), when such a line is read.
"""

import dataclasses
import hashlib
import os

import tqdm

from tttnn import files
from tttnn.corpus import formats

_PIECES = 16
_PIECE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Stamp:
  """What a file is recognised by, without reading it whole.

  A compressed file ends with a checksum or with the places of its parts, so of
  one that holds something else the last piece differs.

  Attributes:
    bytes: its size.
    digest: SHA-256, hexadecimal, of 16 pieces of 4 KiB spread over it from its
      first byte to its last; of all of it where it is no larger than that.
  """

  bytes: int
  digest: str


def stamp(path: str) -> Stamp:
  """The stamp of a file as it is now."""
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    if size <= _PIECES * _PIECE_BYTES:
      digest.update(file.read())
    else:
      for i in range(_PIECES):
        file.seek((size - _PIECE_BYTES) * i // (_PIECES - 1))
        digest.update(file.read(_PIECE_BYTES))
  return Stamp(size, digest.hexdigest())


def check(path: str, expected: Stamp) -> None:
  """Raises `ValueError` unless the file has this stamp."""
  if not os.path.exists(path):
    raise ValueError(f'{path} is missing')
  found = stamp(path)
  if found.bytes != expected.bytes:
    raise ValueError(
      f'{path} has {found.bytes} bytes but had {expected.bytes} before: the '
      'corpus has changed'
    )
  if found != expected:
    raise ValueError(
      f'{path} has the digest {found.digest[:12]} but had '
      f'{expected.digest[:12]} before: the corpus has changed'
    )


def unpack(path: str, expected: Stamp, directory: str) -> str:
  """The lines of a file that is not plain as a plain file; returns its path.

  It is written once, as a whole, whoever is killed meanwhile, and by one
  process at a time: others wait for it. Its name has the stamp in it, so that
  a directory may serve many stores, and a changed file gets another one.

  Args:
    path: the file; nothing is written beside it.
    expected: its stamp.
    directory: of the plain file; made if missing.

  Raises:
    ValueError: a file that has changed, or changes meanwhile, or is damaged.
  """
  name = os.path.basename(path)
  plain = os.path.join(directory, f'{name}-{expected.digest[:16]}.jsonl')
  os.makedirs(directory, exist_ok=True)

  def write(out) -> None:
    check(path, expected)
    bar = tqdm.tqdm(desc=f'unpack {name}', unit='B', unit_scale=True)
    with open(path, 'rb') as file, bar:
      for block in formats.blocks(file):
        out.write(block)
        bar.update(len(block))
    check(path, expected)

  files.write_once(plain, write)
  return plain
