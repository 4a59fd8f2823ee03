"""The actors that hold a store in a Ray cluster, and what they are called.

Imports Ray (extra [cluster]), and no JAX. A program that uses a cluster must
run on one of its hosts.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fcntl
import os
import socket
import sys
from typing import Any

import faiss
import numpy as np

from tttnn.datastore import client as client_lib
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib

if 'ray' not in sys.modules:  # It reads this when it is imported.
  os.environ.setdefault('RAY_AUTH_MODE', 'token')
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
try:
  import ray
except ModuleNotFoundError as e:
  raise ValueError(
    "store.search='cluster' needs Ray, which is not here: install the extra "
    "[cluster], as in pip install -e '.[cpu,cluster]'"
  ) from e

KEEPER = 'keeper'
QUIET = {'log_to_driver': False, 'logging_level': 'ERROR'}
_CONNECT = 10.0  # Seconds to reach the head.
_PING = 5.0  # Seconds that an actor has to say how it is.
# What Ray says when an actor, its host or its answer is gone.
LOST = (
  ray.exceptions.RayActorError,
  ray.exceptions.ObjectLostError,
  ray.exceptions.WorkerCrashedError,
  ray.exceptions.NodeDiedError,
)


class ShardHost:
  """The actor: searches one shard and gives its texts.

  Args:
    directory: of the store, the same path on every host.
    index: the one to search, see `store.open`.
    fingerprint: of the store that is meant.
    shard: its number.
    threads: of a search.

  Raises:
    ValueError: the shard's files are not on this host, or of another store.
  """

  def __init__(
    self, directory: str, index: str, fingerprint: str, shard: int, threads: int
  ):
    self._store = store_lib.open(directory, index, (shard,))
    if self._store.fingerprint() != fingerprint:
      raise ValueError(
        f'{directory} on {socket.gethostname()} is not the store that is '
        f'served: {self._store.fingerprint()} there, {fingerprint} served'
      )
    self._engine = engine_lib.Engine(self._store, threads=threads)
    self._searches = 0

  def search(self, queries_QxD: np.ndarray, k: int):
    """As `engine.Engine.nearest`."""
    self._searches += 1
    return self._engine.nearest(queries_QxD, k)

  def texts(self, ids: np.ndarray) -> list[str]:
    return self._store.corpus.texts(ids.tolist())

  def vectors(self, ids: np.ndarray) -> np.ndarray:
    """As `store.Store.gather`."""
    return self._store.gather(ids)

  def state(self) -> dict[str, Any]:
    """Where it runs and what it holds: `memory` is that which is not mapped."""
    with open('/proc/self/status') as file:
      fields = dict(line.split(':', 1) for line in file)
    return {
      'host': socket.gethostname(),
      'node': ray.get_runtime_context().get_node_id(),
      'pid': os.getpid(),
      'rows': self._engine.count,
      'searches': self._searches,
      'memory': int(fields['RssAnon'].split()[0]) << 10,
      'threads': faiss.omp_get_max_threads(),
      'exact': self._engine.exact,
      'in_memory': self._engine.in_memory,
    }


class Keeper:
  """The actor that says a store is served, and by how many replicas."""

  def __init__(self, plan: Mapping[str, Any]):
    self._plan = dict(plan)

  def plan(self) -> dict[str, Any]:
    return self._plan


def plan(store: store_lib.Store, timeout: float) -> dict[str, Any]:
  """What the keeper of a store says; `ValueError` if nobody serves it."""
  keeper = look_up(store, KEEPER)
  if keeper is None:
    raise ValueError(
      f'nobody serves {store.directory} in this cluster: run the job serve '
      'with store.search=cluster'
    )
  try:
    return ray.get(keeper.plan.remote(), timeout=timeout)
  except ray.exceptions.RayError as e:
    raise ValueError(f'the keeper of {store.directory} is gone: {e}') from e


def namespace(store: store_lib.Store) -> str:
  """Of the actors of a store."""
  return f'tttnn-{store.fingerprint()[:16]}'


def name(shard: int, replica: int) -> str:
  """Of an actor, in its namespace."""
  return f'shard-{shard}-replica-{replica}'


def look_up(store: store_lib.Store, actor: str):
  """The handle of an actor that is not dead; None where there is none."""
  try:
    return ray.get_actor(actor, namespace=namespace(store))
  except ValueError:
    return None


def searchable(manifest: store_lib.Manifest) -> list[int]:
  """Numbers of the shards in which something can be found."""
  return [i for i, shard in enumerate(manifest.shards) if shard.searchable]


def states(store: store_lib.Store, replicas: int) -> list[dict[str, Any]]:
  """Every actor of a store: shard, replica, state, and what it says of itself.

  The state is alive, dead, restarting, or "no answer" of an actor that has not
  started yet or searches for long.
  """
  rows, calls = [], {}
  for shard in searchable(store.manifest):
    for replica in range(replicas):
      handle = look_up(store, name(shard, replica))
      row = {'shard': shard, 'replica': replica, 'state': 'dead'}
      rows.append(row)
      if handle:
        row['state'] = 'no answer'
        calls[handle.state.remote()] = row
  if calls:
    ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_PING)
    for call in ready:
      try:
        calls[call].update(ray.get(call), state='alive')
      except ray.exceptions.ActorUnavailableError:
        calls[call]['state'] = 'restarting'
      except (*LOST, ray.exceptions.RayTaskError):
        calls[call]['state'] = 'dead'
  return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Of `states`, a line an actor."""
  lines = [
    f'{"shard":>5} {"replica":>7} {"state":<10} {"rows":>10} {"searches":>8} '
    f'{"memory":>8} {"pid":>8}  host (node)'
  ]
  for row in rows:
    line = f'{row["shard"]:>5} {row["replica"]:>7} {row["state"]:<10}'
    if row['state'] == 'alive':
      line += (
        f' {row["rows"]:>10} {row["searches"]:>8} '
        f'{row["memory"] >> 20:>5} MB {row["pid"]:>8}  '
        f'{row["host"]} ({row["node"][:8]})'
      )
    lines.append(line)
  return '\n'.join(lines)


def shutdown(store: store_lib.Store) -> int:
  """Ends the actors of a store; returns how many there were.

  The keeper goes first: it is the sign for whoever restarts actors.
  """
  space = namespace(store)
  names = [
    actor['name']
    for actor in ray.util.list_named_actors(all_namespaces=True)
    if actor['namespace'] == space
  ]
  for actor in sorted(names, key=lambda actor: actor != KEEPER):
    handle = look_up(store, actor)
    if handle:
      ray.kill(handle)
  return len(names)


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
  """Connected to a cluster, for the length of a context.

  Args:
    address: HOST:PORT of the head, or 'auto': the cluster of this host.

  Raises:
    ValueError: no such cluster, or it wants another token.
  """
  if ray.is_initialized():  # By the program that we are part of.
    there = ray.get_runtime_context().gcs_address
    if address not in ('auto', there):
      raise ValueError(
        f'cluster.address={address!r}, but this process has joined {there}'
      )
    yield
    return
  if address != 'auto':
    _reach(address)
  try:
    ray.init(address, **QUIET)
  except (ConnectionError, RuntimeError, ray.exceptions.RayError) as e:
    raise ValueError(
      f'cannot join the cluster {address!r}, with whose hosts this one must '
      f'share the token (~/.ray/auth_token or RAY_AUTH_TOKEN): {e}'
    ) from e
  try:
    yield
  finally:
    ray.shutdown()


def _reach(address: str) -> None:
  # Ray itself would try for many minutes.
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f"cluster.address={address!r} is not HOST:PORT or 'auto'")
  try:
    socket.create_connection((host, int(port)), _CONNECT).close()
  except OSError as e:
    raise ValueError(f'no cluster at cluster.address={address!r}: {e}') from e


def sign_path(store_dir: str | os.PathLike, index: str) -> str:
  """The file in which `serve` says on its host where the cluster is."""
  return client_lib.default_address(store_dir, index) + '.ray'


def served_at(store_dir: str | os.PathLike, index: str = '') -> str:
  """The address of a cluster that this user serves from this host; or ''."""
  try:
    fd = os.open(sign_path(store_dir, index), os.O_RDONLY | os.O_NOFOLLOW)
  except OSError:
    return ''
  with open(fd) as file:
    if os.fstat(fd).st_uid != os.getuid():
      return ''
    try:
      fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return file.read()
    return ''  # Whoever wrote it is dead.
