"""What search server and client agree on; Linux only.

Both ends send lines of JSON over a Unix socket. The server speaks first: one
line about itself, together with the descriptor of this connection's `Block`.
Then every line of the client, {"op": "search" | "measure" | "status" |
"shutdown", ...}, is answered by one line, which holds "error" if the request
was refused.
"""

import fcntl
import json
import mmap
import os
import socket
import struct
from typing import Any

import numpy as np

VERSION = 3
MAX_QUERIES = 256  # A request's.
MAX_RESULTS = 1 << 16  # A request's, over all its queries.
MAX_LINE = 1 << 16

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Lost(ConnectionError, ValueError):
  """Who was asked is gone, or not there yet; asking again later may do."""


class Block:
  """The memory that both ends of a connection share.

  The client writes the queries, [n, dim] float32, and rings; the server writes
  distances and ids, [n, k] float32 and int64, and rings back. To measure, the
  client writes the ids, too.
  """

  def __init__(self, fd: int, dim: int):
    memory = mmap.mmap(fd, block_bytes(dim))
    self.ids = np.frombuffer(memory, np.int64, MAX_RESULTS)
    self.distances = np.frombuffer(
      memory, np.float32, MAX_RESULTS, self.ids.nbytes
    )
    begin = self.ids.nbytes + self.distances.nbytes
    self.queries_QxD = np.frombuffer(
      memory, np.float32, MAX_QUERIES * dim, begin
    ).reshape(MAX_QUERIES, dim)


def block_bytes(dim: int) -> int:
  return MAX_RESULTS * (8 + 4) + MAX_QUERIES * dim * 4


def allocate_block(dim: int) -> int:
  """Descriptor of memory for a `Block`.

  It has no name that could be left behind, all of it is there (a page missing
  later would be a SIGBUS), and no end can cut it off under the other.

  Raises:
    OSError: not enough memory, or too many open files.
  """
  fd = os.memfd_create('tttnn', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
  try:
    os.posix_fallocate(fd, 0, block_bytes(dim))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
  except OSError:
    os.close(fd)
    raise
  return fd


def encode(message: dict[str, Any]) -> bytes:
  return json.dumps(message).encode() + b'\n'


def peer_pid(connected: socket.socket) -> int:
  """Process that listens at the other end, known even while it is busy."""
  credentials = connected.getsockopt(
    socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('3i')
  )
  return struct.unpack('3i', credentials)[0]
