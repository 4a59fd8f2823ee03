"""Searches through the search host; see `server` for the other end."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

import tttnn
from tttnn.datastore import protocol
from tttnn.datastore import store as store_lib


class Client:
  """A connection to a search server; not to be shared by threads.

  Args:
    address: path of the server's socket.
    timeout: seconds to wait for any one answer.

  Attributes:
    address: as given.
    info: what the server says of itself: pid, store (its directory), dim, kind
      and keys (of `store.Manifest`), rows (documents or tokens), searchable
      (those with a finite vector), embedder (its fingerprint), manifest (the
      store's fingerprint), index, metric, exact, in_memory (index files that
      are not mapped).

  Raises:
    ValueError: nobody serves there.
  """

  def __init__(self, address: str, *, timeout: float = 600.0):
    self.address = address
    self._timeout = timeout
    self._received = b''
    self._fds: list[int] = []
    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    self._socket.settimeout(timeout)
    try:
      self._socket.connect(address)
    except OSError as e:
      self._socket.close()
      raise protocol.Lost(
        f'no search server at {address} ({e}): start one with python -m '
        f'tttnn.datastore.server --store=DIR --address={address}'
      ) from e
    self._pid = protocol.peer_pid(self._socket)
    try:
      self.info = self._receive()
      if self.info.get('protocol') != protocol.VERSION:
        raise ValueError(
          f'{self._who} speaks protocol {self.info.get("protocol")}, this '
          f'program {protocol.VERSION}: restart it'
        )
      self._block = protocol.Block(self._fds[0], self.info['dim'])
    except ValueError:
      self._socket.close()
      raise
    finally:
      for fd in self._fds:
        os.close(fd)

  @property
  def _who(self) -> str:
    return f'the search server at {self.address} (process {self._pid})'

  def check(self, fingerprint: str, dim: int, keys: str = '') -> None:
    """As `store.check_embedder`."""
    store_lib.check_embedder(self.info, fingerprint, dim, keys)

  def search(
    self, queries_QxD: np.ndarray, k: int, raw: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest documents of each query, as `engine.Engine.search`.

    Returns:
      distances_Qxk: float32, L2 (not squared), ascending; ids_Qxk: int64.

    Raises:
      ValueError: the server refuses the request, or is dead or too slow.
    """
    k = int(k)
    distances_Qxk = np.empty((len(queries_QxD), max(k, 0)), np.float32)
    ids_Qxk = np.empty(distances_Qxk.shape, np.int64)
    for part, count in self._written(queries_QxD, k):
      self._ask({'op': 'search', 'count': count, 'k': k, 'raw': raw})
      size = count * k
      distances_Qxk[part].flat = self._block.distances[:size]
      ids_Qxk[part].flat = self._block.ids[:size]
    return distances_Qxk, ids_Qxk

  def measure(self, queries_QxD: np.ndarray, ids_QxM: np.ndarray) -> np.ndarray:
    """Distances [Q, M] to chosen rows, as `engine.Engine.measure`.

    Raises:
      ValueError: as `search`.
    """
    ids_QxM = np.asarray(ids_QxM, np.int64)
    distances_QxM = np.full(ids_QxM.shape, np.inf, np.float32)
    if not ids_QxM.size:
      return distances_QxM
    most = ids_QxM.shape[1]
    for part, count in self._written(queries_QxD, most):
      size = count * most
      self._block.ids[:size] = ids_QxM[part].ravel()
      self._ask({'op': 'measure', 'count': count, 'k': most})
      distances_QxM[part].flat = self._block.distances[:size]
    return distances_QxM

  def _written(
    self, queries_QxD: np.ndarray, k: int
  ) -> Iterator[tuple[slice, int]]:
    """Writes queries for the server, as many as it takes at once.

    Yields:
      Which ones they are, and how many.
    """
    queries_QxD = np.asarray(queries_QxD, np.float32)
    if queries_QxD.ndim != 2 or queries_QxD.shape[1] != self.info['dim']:
      raise ValueError(
        f'queries of shape {list(queries_QxD.shape)} for {self._who}, whose '
        f'store has dim {self.info["dim"]}'
      )
    if k > protocol.MAX_RESULTS:
      raise ValueError(f'{k} neighbours, but at most {protocol.MAX_RESULTS}')
    step = min(protocol.MAX_QUERIES, protocol.MAX_RESULTS // max(k, 1))
    for begin in range(0, len(queries_QxD), step):
      part_QxD = queries_QxD[begin : begin + step]
      self._block.queries_QxD[: len(part_QxD)] = part_QxD
      yield slice(begin, begin + len(part_QxD)), len(part_QxD)

  def status(self) -> dict[str, Any]:
    """`info` and counts: connections, searches, requests, queries."""
    return self._ask({'op': 'status'})

  def shutdown(self) -> None:
    """Asks the server to answer what it was asked and then to stop."""
    self._ask({'op': 'shutdown'})
    self.close()

  def close(self) -> None:
    self._socket.close()

  def __enter__(self) -> 'Client':
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
    if self._socket.fileno() < 0:
      raise ValueError(f'the connection to {self._who} is closed')
    try:
      self._socket.sendall(protocol.encode(message))
    except OSError as e:
      raise self._lost(f'is gone ({e})') from e
    return self._receive()

  def _receive(self) -> dict[str, Any]:
    while b'\n' not in self._received:
      try:
        data, fds, _, _ = socket.recv_fds(self._socket, protocol.MAX_LINE, 1)
      except TimeoutError as e:
        raise self._lost(f'has not answered for {self._timeout:g} s') from e
      except OSError as e:
        raise self._lost(f'died during a request ({e})') from e
      if not data:
        raise self._lost('died during a request')
      self._received += data
      self._fds += fds
    line, _, self._received = self._received.partition(b'\n')
    answer = json.loads(line)
    if 'error' in answer:
      raise ValueError(f'{self._who}: {answer["error"]}')
    return answer

  def _lost(self, why: str) -> protocol.Lost:
    self.close()  # An answer that comes late must not be taken for the next.
    return protocol.Lost(f'{self._who} {why}: restart it and run this again')


def default_address(store_dir: str | os.PathLike, index: str = '') -> str:
  """Where a user's server of a store listens unless told otherwise.

  Each index has a server of its own; '' stands for what `store.open` takes.
  """
  path = f'{os.path.realpath(store_dir)}\0{index}'
  name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
  return os.path.join(tempfile.gettempdir(), f'tttnn-{os.getuid()}-{name}')


def answers(address: str) -> bool:
  """Whether a server listens at an address (it may be busy)."""
  with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
    return probe.connect_ex(address) == 0


@contextlib.contextmanager
def start(
  store_dir: str | os.PathLike,
  address: str = '',
  *,
  index: str = '',
  threads: int = 0,
  gpu: bool = False,
  timeout: float = 600.0,
) -> Iterator[Client]:
  """Runs a server as a child process, and yields a client of it.

  The server ends with the context, and also when this process is killed.

  Args:
    store_dir: a finished store.
    address: path of the socket; '' = `default_address`.
    index: the one to search, see `store.open`.
    threads: of a search; 0 = every core that this process may use.
    gpu: whether faiss searches on this machine's GPUs.
    timeout: seconds that the server may take to open the store, and those of
      the client.

  Raises:
    ValueError: the server does not come up, in its own words.
  """
  address = address or default_address(store_dir, index)
  command = [sys.executable, '-m', 'tttnn.datastore.server']
  command += [f'--store={store_dir}', f'--address={address}']
  command += [f'--index={index}', f'--threads={threads}', '--owner_fd=0']
  command += ['--gpu'] * gpu
  with (
    child(command, f'server of {store_dir}', timeout),
    Client(address, timeout=timeout) as client,
  ):
    yield client


@contextlib.contextmanager
def child(command: list[str], what: str, timeout: float) -> Iterator[str]:
  """Runs a server of ours as a child process, for the length of a context.

  It is to print one line when it can be used, and to end when its standard
  input does, which it does also when this process is killed.

  Args:
    command: that runs it.
    what: it is, for the error.
    timeout: seconds that it may take to be ready.

  Yields:
    The line.

  Raises:
    ValueError: it does not get ready, in its own words.
  """
  root = os.path.dirname(os.path.dirname(tttnn.__file__))
  path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
  with (
    tempfile.TemporaryFile() as errors,
    subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      env=os.environ | {'PYTHONPATH': path},
    ) as process,
  ):
    try:
      readable, _, _ = select.select([process.stdout], [], [], timeout)
      if not readable:
        raise ValueError(f'no {what} within {timeout:g} s')
      line = process.stdout.readline().decode().strip()
      if not line:
        process.wait()
        errors.seek(0)
        raise ValueError(errors.read().decode(errors='replace').strip())
      yield line
    finally:
      process.stdin.close()
      try:
        process.wait(timeout=10)
      except subprocess.TimeoutExpired:
        process.kill()
