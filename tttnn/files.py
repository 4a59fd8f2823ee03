"""Files that are either whole or not there, and unchanged when equal."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import fcntl
import functools
import hashlib
import os
from typing import BinaryIO


@contextlib.contextmanager
def atomic(path: str) -> Iterator[BinaryIO]:
  """A file to write that becomes `path` when the context ends well.

  Until then no reader sees a part of it; after an error nothing is left.
  """
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def write_atomic(path: str, data: str | bytes) -> None:
  """Writes `path` as a whole."""
  with atomic(path) as file:
    file.write(data.encode() if isinstance(data, str) else data)


def write_if_changed(path: str, data: str | bytes) -> bool:
  """As `write_atomic`, but leaves a file that holds `data` already alone.

  Returns:
    Whether it wrote.
  """
  if isinstance(data, str):
    data = data.encode()
  if os.path.exists(path):
    with open(path, 'rb') as file:
      if file.read() == data:
        return False
  write_atomic(path, data)
  return True


def sha256(path: str) -> bytes:
  """The digest of a file, which is read again only if it has changed."""
  about = os.stat(path)
  return _sha256(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: str, *unused_about: int) -> bytes:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()


def write_once(path: str, write: Callable[[BinaryIO], None]) -> None:
  """Makes `path` by `write`, unless it is there.

  Of processes that want the same file, one writes and the others wait for it;
  what one left that was killed is written again. After an error nothing is
  left but an empty `path`.lock.
  """
  lock, temporary = f'{path}.lock', f'{path}.tmp'
  if not os.path.exists(path):
    with open(lock, 'wb') as held:
      fcntl.flock(held, fcntl.LOCK_EX)
      if not os.path.exists(path):
        try:
          with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
          os.replace(temporary, path)
        finally:
          with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
  # Only now that the file is there: whoever else comes by the lock sees it.
  if os.path.exists(lock):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(lock)
