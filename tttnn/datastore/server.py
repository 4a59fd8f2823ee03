"""The search host: one process that maps a store and searches for all others.

    python -m tttnn.datastore.server --store=DIR --address=SOCKET

A Unix socket is door-bell and control; the numbers pass through memory shared
with each client (see `protocol`). It has no name, so whoever dies, the kernel
takes it back. Needs neither JAX nor the models.

One thread serves all connections in turn. Requests that arrive during a search
are the next batch, so that many queries cost one scan of the vectors.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import selectors
import signal
import socket
import stat
import sys
import time
from typing import Any

import numpy as np

from tttnn.datastore import engine as engine_lib
from tttnn.datastore import protocol
from tttnn.datastore import store as store_lib

_HEARING = 0.005  # Seconds at most of what came meanwhile.


def serve(
  store_dir: str | os.PathLike,
  address: str,
  *,
  index: str = '',
  threads: int = 0,
  max_batch: int = 256,
  max_wait_ms: float = 0.0,
  gpu: bool = False,
  owner_fd: int = -1,
  ready: Callable[[dict[str, Any]], None] = lambda info: None,
) -> None:
  """Serves a store until SIGTERM, SIGINT, a shutdown request or owner's death.

  What was asked before is answered first. To be called in the main thread.

  Args:
    store_dir: a finished store.
    address: path of the socket, for this user only. A dead server's is
      replaced, a live one's is not.
    index: the one to search, see `store.open`.
    threads: of a search; 0 = every core that this process may use.
    max_batch: the most queries in one search.
    max_wait_ms: how long a search may wait for more queries to go with it.
    gpu: whether faiss searches on this machine's GPUs.
    owner_fd: reading end of a pipe; the server stops when it is closed at the
      other end, so also when the process there was killed. -1 = nobody.
    ready: called once when clients can connect, with what they will be told.

  Raises:
    ValueError: the store cannot be opened, or the address is taken.
  """
  store = store_lib.open(store_dir, index)
  engine = engine_lib.Engine(store, threads=threads, gpu=gpu)
  info = store.info() | {
    'protocol': protocol.VERSION,
    'pid': os.getpid(),
    'exact': engine.exact,
    'in_memory': engine.in_memory,
  }
  with _listen(address) as listener, stop_signals() as signals:
    server = _Server(engine, info, listener, max_batch, max_wait_ms / 1000)
    server.watch(signals)
    if owner_fd >= 0:
      server.watch(owner_fd)
    ready(info)
    server.run()


@dataclasses.dataclass(eq=False)
class _Connection:
  socket: socket.socket
  block: protocol.Block
  received: bytes = b''


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
  connection: _Connection
  queries_QxD: np.ndarray
  k: int
  raw: bool = False


class _Server:
  """The loop: hear everybody, search one batch, hear everybody again."""

  def __init__(self, engine, info, listener, max_batch: int, max_wait: float):
    self._engine = engine
    self._info = info
    self._max_batch = max_batch
    self._max_wait = max_wait
    self._connections: set[_Connection] = set()
    self._pending: list[_Request] = []
    self._counts = {'searches': 0, 'requests': 0, 'queries': 0}
    self._stopping = False
    self._selector = selectors.DefaultSelector()
    self._on_readable(listener, functools.partial(self._accept, listener))

  def _on_readable(self, file, call: Callable[[], None]) -> None:
    self._selector.register(file, selectors.EVENT_READ, call)

  def watch(self, fd: int) -> None:
    """Stops the loop when `fd` has something to read, or its end."""
    self._on_readable(fd, self._stop)

  def _stop(self) -> None:
    self._stopping = True

  def run(self) -> None:
    while self._pending or not self._stopping:
      self._hear(0 if self._pending else None)
      self._hear_more()
      if self._pending:
        self._search(self._take_batch())
    for connection in tuple(self._connections):
      self._drop(connection)
    self._selector.close()

  def _hear(self, timeout: float | None) -> int:
    """Hears what has come, or comes in time; returns from how many."""
    events = self._selector.select(timeout)
    for key, _ in events:
      key.data()
    return len(events)

  def _hear_more(self) -> None:
    """Hears what came while others were heard, or comes in time.

    Until a batch is full. Who keeps talking does not keep others waiting.
    """
    begin = time.monotonic()
    now, end = begin, begin + max(self._max_wait, _HEARING)
    while (
      now < end
      and self._pending
      and not self._stopping
      and sum(len(r.queries_QxD) for r in self._pending) < self._max_batch
      and self._hear(max(0.0, begin + self._max_wait - now))
    ):
      now = time.monotonic()

  def _accept(self, listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    accepted.setblocking(False)
    dim = self._info['dim']
    try:
      fd = protocol.allocate_block(dim)
    except OSError as e:
      with accepted, contextlib.suppress(OSError):
        accepted.send(protocol.encode({'error': f'no memory to share: {e}'}))
      return
    connection = _Connection(accepted, protocol.Block(fd, dim))
    self._connections.add(connection)
    self._on_readable(accepted, functools.partial(self._receive, connection))
    try:
      socket.send_fds(accepted, [protocol.encode(self._info)], [fd])
    except OSError:
      self._drop(connection)
    finally:
      os.close(fd)

  def _receive(self, connection: _Connection) -> None:
    try:
      data = connection.socket.recv(protocol.MAX_LINE)
    except OSError:
      data = b''
    *lines, rest = (connection.received + data).split(b'\n')
    if not data or len(rest) > protocol.MAX_LINE:
      self._drop(connection)
      return
    connection.received = rest
    for line in lines:
      try:
        self._handle(connection, line)
      except ValueError as e:
        self._reply(connection, {'error': str(e)})

  def _handle(self, connection: _Connection, line: bytes) -> None:
    message = json.loads(line)
    if not isinstance(message, dict):
      raise ValueError(f'a request is an object, not {message!r}')
    operation = message.get('op')
    if operation == 'search':
      request = _read_request(connection, message)
      self._engine.check(request.queries_QxD, request.k)
      self._pending.append(request)
    elif operation == 'measure':
      self._measure(_read_request(connection, message))
    elif operation == 'status':
      status = {'connections': len(self._connections)} | self._counts
      self._reply(connection, self._info | status)
    elif operation == 'shutdown':
      self._reply(connection, {})
      self._stop()
    else:
      raise ValueError(f'unknown operation {operation!r}')

  def _take_batch(self) -> list[_Request]:
    """The oldest request and those behind it that one search can answer.

    Only those that ask alike: what an approximate index finds depends on k.
    """
    batch, rest, room = [], [], self._max_batch
    first = self._pending[0]
    for request in self._pending:
      fits = len(request.queries_QxD) <= room or not batch
      if fits and (request.k, request.raw) == (first.k, first.raw):
        batch.append(request)
        room -= len(request.queries_QxD)
      else:
        rest.append(request)
    self._pending = rest
    return batch

  def _search(self, batch: list[_Request]) -> None:
    queries_QxD = np.concatenate([request.queries_QxD for request in batch])
    self._counts['searches'] += 1
    try:
      found = self._engine.search(queries_QxD, batch[0].k, batch[0].raw)
    except ValueError as e:
      if len(batch) == 1:
        self._reply(batch[0].connection, {'error': str(e)})
      else:  # Only those requests fail that would fail alone.
        for request in batch:
          self._search([request])
      return
    begin = 0
    for request in batch:
      end = begin + len(request.queries_QxD)
      size = (end - begin) * request.k
      block = request.connection.block
      block.distances[:size] = found[0][begin:end].ravel()
      block.ids[:size] = found[1][begin:end].ravel()
      self._counts['requests'] += 1
      self._counts['queries'] += end - begin
      self._reply(request.connection, {})
      begin = end

  def _measure(self, request: _Request) -> None:
    block, count = request.connection.block, len(request.queries_QxD)
    if request.k < 1:
      raise ValueError(f'{request.k} rows to measure')
    ids = block.ids[: count * request.k].reshape(count, request.k)
    distances = self._engine.measure(request.queries_QxD, ids.copy())
    block.distances[: distances.size] = distances.ravel()
    self._reply(request.connection, {})

  def _reply(self, connection: _Connection, message: dict[str, Any]) -> None:
    line = protocol.encode(message)
    try:
      sent = connection.socket.send(line)
    except OSError:
      sent = 0
    if sent < len(line):  # It is gone, or asks without reading the answers.
      self._drop(connection)

  def _drop(self, connection: _Connection) -> None:
    if connection in self._connections:
      self._connections.remove(connection)
      self._selector.unregister(connection.socket)
      connection.socket.close()
      self._pending = [r for r in self._pending if r.connection != connection]


def _read_request(connection: _Connection, message: dict[str, Any]) -> _Request:
  """A request with its own copy of the queries; `ValueError` if malformed."""
  count, k = message.get('count'), message.get('k')
  if type(count) is not int or not 1 <= count <= protocol.MAX_QUERIES:
    raise ValueError(
      f'a request holds 1 to {protocol.MAX_QUERIES} queries, not {count!r}'
    )
  if type(k) is not int or count * k > protocol.MAX_RESULTS:
    raise ValueError(
      f'{k!r} neighbours for {count} queries; a request has room for '
      f'{protocol.MAX_RESULTS} in all'
    )
  queries_QxD = connection.block.queries_QxD[:count].copy()
  return _Request(connection, queries_QxD, k, message.get('raw') is True)


@contextlib.contextmanager
def _listen(address: str) -> Iterator[socket.socket]:
  """Listens at `address` and removes it in the end."""
  with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    try:
      _bind(listener, address)
    except OSError as e:
      raise ValueError(f'cannot listen at {address}: {e}') from e
    inode = os.stat(address).st_ino
    try:
      yield listener
    finally:
      with contextlib.suppress(FileNotFoundError):
        if os.stat(address).st_ino == inode:
          os.unlink(address)


def _bind(listener: socket.socket, address: str) -> None:
  directory = os.open(os.path.dirname(address) or '.', os.O_RDONLY)
  try:
    # Two servers that find the same dead socket must not both replace it.
    fcntl.flock(directory, fcntl.LOCK_EX)
    _clear(address)
    umask = os.umask(0o177)
    try:
      listener.bind(address)
    finally:
      os.umask(umask)
    listener.listen(128)
  finally:
    os.close(directory)


def _clear(address: str) -> None:
  """Removes a dead server's socket; `ValueError` for anything else there."""
  try:
    mode = os.lstat(address).st_mode
  except FileNotFoundError:
    return
  if not stat.S_ISSOCK(mode):
    raise ValueError(f'{address} is there and is not a socket')
  with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
    try:
      probe.connect(address)
    except ConnectionRefusedError:
      os.unlink(address)
      return
    pid = protocol.peer_pid(probe)
  raise ValueError(
    f'{address} is served by process {pid}: stop it (kill {pid}) or name '
    'another address'
  )


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
  """A descriptor that SIGTERM and SIGINT make readable, and nothing else."""
  read_fd, write_fd = os.pipe()
  os.set_blocking(write_fd, False)
  numbers = (signal.SIGTERM, signal.SIGINT)
  # The handler does nothing: the descriptor is written even before it runs.
  handlers = [signal.signal(n, lambda number, frame: None) for n in numbers]
  wakeup_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
  try:
    yield read_fd
  finally:
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in zip(numbers, handlers, strict=True):
      signal.signal(number, handler)
    os.close(read_fd)
    os.close(write_fd)


def main() -> None:
  parser = argparse.ArgumentParser(description='Serves searches in a store.')
  parser.add_argument('--store', required=True)
  parser.add_argument('--address', required=True, help='path of the socket')
  parser.add_argument('--index', default='', help='see store.open()')
  parser.add_argument('--threads', type=int, default=0, help='0 = every core')
  parser.add_argument('--max_batch', type=int, default=256)
  parser.add_argument('--max_wait_ms', type=float, default=0.0)
  parser.add_argument('--gpu', action='store_true', help='search on GPUs')
  parser.add_argument('--owner_fd', type=int, default=-1, help='see serve()')
  flags = parser.parse_args()

  def ready(info: dict[str, Any]) -> None:
    print(f'{flags.address}: process {info["pid"]} serves {info["store"]}')
    sys.stdout.flush()

  try:
    serve(
      flags.store,
      flags.address,
      index=flags.index,
      threads=flags.threads,
      max_batch=flags.max_batch,
      max_wait_ms=flags.max_wait_ms,
      gpu=flags.gpu,
      owner_fd=flags.owner_fd,
      ready=ready,
    )
  except ValueError as e:
    sys.exit(str(e))


if __name__ == '__main__':
  main()
