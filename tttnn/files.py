"""Files that are either whole or not there, and unchanged when equal."""

import os


def write_atomic(path: str, data: str | bytes) -> None:
  """Writes `path` through a temporary file, so that no reader sees a part."""
  if isinstance(data, str):
    data = data.encode()
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    if os.path.exists(temporary):
      os.unlink(temporary)
    raise


def write_if_changed(path: str, data: str | bytes) -> bool:
  """As `write_atomic`, but leaves a file that holds `data` already alone."""
  if isinstance(data, str):
    data = data.encode()
  if os.path.exists(path):
    with open(path, 'rb') as file:
      if file.read() == data:
        return False
  write_atomic(path, data)
  return True
