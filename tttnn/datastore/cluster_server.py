"""Starts the actors of a store in a Ray cluster and keeps them alive.

    python -m tttnn.datastore.cluster_server --store=DIR --address=HOST:PORT

An actor goes to a host that has the files of its shard, the replicas of a shard
to different ones as far as there are, all with about the same share of each
host's CPUs. Ray starts an actor again when its process or host dies; where it
cannot, say because the files are on another host, the server does.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Set
import contextlib
import fcntl
import os
import select
import sys
import time

from tttnn.datastore import actors as actors_lib
from tttnn.datastore import server
from tttnn.datastore import store as store_lib
from tttnn.datastore.actors import ray

_LOOK = 2.0  # Seconds between two looks at the actors.
_OBJECTS = 128 << 20  # Bytes of queries and answers on their way.


def serve(
  store_path: str,
  *,
  index: str = '',
  address: str = '',
  replicas: int = 1,
  cpus: float = 1.0,
  threads: int = 0,
  timeout: float = 60.0,
  owner_fd: int = -1,
  ready: Callable[[str, store_lib.Store], None] = lambda address, store: None,
) -> None:
  """Serves until SIGTERM, SIGINT, `actors.shutdown` or the owner's death.

  To be called in the main thread.

  Args:
    store_path: of a finished store, the same on every host; a host needs the
      files of some shards, this one manifest and index.json alone.
    index: the one to search, see `store.open`.
    address: of the cluster, see `actors.joined`; '': a new one on this host,
      which ends with this call.
    replicas: actors of a shard.
    cpus: that Ray reserves for an actor.
    threads: of a search; 0: as many as the actor has CPUs, at least one.
    timeout: seconds that all actors together may take to be ready.
    owner_fd: see `server.serve`. The cluster is then the owner's alone.
    ready: called once when all can be asked, with the cluster's address.

  Raises:
    ValueError: no such store or cluster, too few CPUs, files that no host has,
      or the store is being served already.
  """
  if replicas < 1 or cpus <= 0:
    raise ValueError(
      f'cluster.replicas={replicas} and cluster.cpus={cpus}: at least one '
      'actor a shard, and a part of a CPU each'
    )
  store = store_lib.open(store_path, index, shards=())
  with contextlib.ExitStack() as stack:
    if address:
      stack.enter_context(actors_lib.joined(address))
    else:
      needed = len(actors_lib.searchable(store.manifest)) * replicas * cpus
      stack.enter_context(_new(needed))
    # Ray has handlers of its own.
    signals = stack.enter_context(server.stop_signals())
    address = ray.get_runtime_context().gcs_address
    if owner_fd < 0:
      stack.enter_context(
        _sign(actors_lib.sign_path(store_path, index), address)
      )
    actors = _Actors(
      store, os.path.abspath(store_path), index, replicas, cpus, threads
    )
    stack.enter_context(actors.kept())
    actors.start()
    actors.wait(timeout)
    ready(address, store)
    watched = [signals] if owner_fd < 0 else [signals, owner_fd]
    while not select.select(watched, [], [], _LOOK)[0]:
      if actors_lib.look_up(store, actors_lib.KEEPER) is None:
        break
      actors.start()


class _Actors:
  """Those of a store."""

  def __init__(self, store, directory, index, replicas, cpus, threads):
    self._store = store
    self._arguments = directory, index
    self._replicas = replicas
    self._cpus = cpus
    self._threads = threads or max(1, int(cpus))
    self._placed: dict[tuple[int, int], str] = {}

  @contextlib.contextmanager
  def kept(self) -> Iterator[None]:
    """Says that the store is served, and ends all actors at the end."""
    keeper = ray.remote(actors_lib.Keeper).options(
      **self._options(actors_lib.KEEPER), num_cpus=0, max_task_retries=-1
    )
    try:
      handle = keeper.remote({'replicas': self._replicas})
    except ValueError as e:
      raise ValueError(
        f'{self._store.directory} is served in this cluster already: '
        'query.action=shutdown ends it'
      ) from e
    try:
      ray.get(handle.plan.remote())
      yield
    finally:
      actors_lib.shutdown(self._store)

  def start(self) -> None:
    """Starts the actors that are not there.

    Raises:
      ValueError: the first time, if the cluster has no room or no files for
        all.
    """
    wanted = [
      (shard, replica)
      for shard in actors_lib.searchable(self._store.manifest)
      for replica in range(self._replicas)
      if not actors_lib.look_up(self._store, actors_lib.name(shard, replica))
    ]
    if not wanted:
      return
    first = not self._placed
    for key in wanted:
      self._placed.pop(key, None)
    cpus = {
      node['NodeID']: node['Resources'].get('CPU', 0.0)
      for node in ray.nodes()
      if node['Alive']
    }
    shards = sorted({shard for shard, _ in wanted})
    held = _held(cpus, *self._arguments, shards)
    placed = place(wanted, held, cpus, self._cpus, self._placed)
    if first and len(placed) < len(wanted):
      raise ValueError(self._lacking(wanted, placed, held, cpus))
    for key, node in placed.items():
      self._start(*key, node)
    self._placed |= placed

  def wait(self, timeout: float) -> None:
    """Waits for all; `ValueError` says which do not come up, and why."""
    end = time.monotonic() + timeout
    for (shard, replica), node in self._placed.items():
      handle = actors_lib.look_up(self._store, actors_lib.name(shard, replica))
      try:
        if handle is None:
          raise ValueError(f'shard {shard} died at once on node {node}')
        left = max(0.0, end - time.monotonic())
        ray.get(handle.state.remote(), timeout=left)
      except ray.exceptions.GetTimeoutError as e:
        free = ray.available_resources().get('CPU', 0.0)
        raise ValueError(
          f'shard {shard} is not ready after cluster.timeout={timeout:g} s: '
          f'its actor needs {self._cpus:g} CPUs, {free:g} are free in the '
          'whole cluster'
        ) from e
      except ray.exceptions.RayActorError as e:
        raise ValueError(f'shard {shard} cannot be served: {e}') from e

  def _start(self, shard: int, replica: int, node: str) -> None:
    host = ray.remote(actors_lib.ShardHost).options(
      **self._options(actors_lib.name(shard, replica)),
      num_cpus=self._cpus,
      # Where this host is gone, Ray may try another.
      scheduling_strategy=_on(node, soft=True),
    )
    host.remote(
      *self._arguments, self._store.fingerprint(), shard, self._threads
    )

  def _options(self, name: str) -> dict:
    return {
      'name': name,
      'namespace': actors_lib.namespace(self._store),
      'lifetime': 'detached',
      'max_restarts': -1,
    }

  def _lacking(self, wanted, placed, held, cpus) -> str:
    nowhere = {shard for shard, _ in wanted} - set().union(*held.values())
    if nowhere:
      return (
        f'shards {sorted(nowhere)} of {self._arguments[0]} are on none of the '
        f'{len(cpus)} hosts of the cluster'
      )
    return (
      f'{len(wanted)} actors of cluster.cpus={self._cpus:g} are wanted '
      f'({self._replicas} of each shard), but there is room for {len(placed)}: '
      f'the {len(cpus)} hosts of the cluster have {sum(cpus.values()):g} CPUs'
    )


def place(
  wanted: list[tuple[int, int]],
  held: Mapping[str, Set[int]],
  cpus: Mapping[str, float],
  each: float,
  placed: Mapping[tuple[int, int], str],
) -> dict[tuple[int, int], str]:
  """Nodes for actors, as far as there is room.

  Args:
    wanted: (shard, replica) to be placed.
    held: the shards whose files a node has.
    cpus: of each node.
    each: CPUs of an actor.
    placed: the actors that are there.

  Returns:
    Node of each of `wanted` that has found one: among the nodes that hold its
    shard those without another replica of it first, and of these the one with
    the smallest share of its CPUs taken.
  """
  result, everywhere = {}, dict(placed)
  # The shards that fewest nodes hold choose first.
  holders = {
    shard: sum(shard in h for h in held.values()) for shard, _ in wanted
  }
  for shard, replica in sorted(wanted, key=lambda key: (holders[key[0]], key)):
    ranked = []
    for node in sorted(held):
      here = [key for key, at in everywhere.items() if at == node]
      share = (len(here) + 1) * each / max(cpus[node], 1e-9)
      if shard in held[node] and share <= 1:
        ranked.append((any(s == shard for s, _ in here), share, node))
    if ranked:
      node = min(ranked)[2]
      result[shard, replica] = everywhere[shard, replica] = node
  return result


def shards_here(directory: str, index: str, shards: list[int]) -> list[int]:
  """Those of `shards` whose files are on this host."""
  here = []
  for shard in shards:
    with contextlib.suppress(ValueError, OSError):
      store_lib.open(directory, index, (shard,))
      here.append(shard)
  return here


def _held(nodes, directory, index, shards) -> dict[str, set[int]]:
  """The shards that each node has the files of."""
  look = ray.remote(shards_here)
  calls = {
    node: look.options(
      num_cpus=0, max_retries=0, scheduling_strategy=_on(node, soft=False)
    ).remote(directory, index, shards)
    for node in nodes
  }
  held = {}
  for node, call in calls.items():
    try:
      held[node] = set(ray.get(call))
    except (*actors_lib.LOST, ray.exceptions.TaskUnschedulableError):
      held[node] = set()  # It died meanwhile.
  return held


def _on(node: str, soft: bool):
  return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
    node, soft=soft
  )


@contextlib.contextmanager
def _new(cpus: float) -> Iterator[None]:
  """A cluster of this host alone.

  Its CPUs are as many as the actors reserve: they share the cores there are.
  """
  if ray.is_initialized():
    raise ValueError(
      'this process is in a cluster already: give cluster.address=auto'
    )
  # Ray writes its token with the permissions that files get.
  umask = os.umask(0o077)
  try:
    ray.init(
      'local',
      num_cpus=max(os.cpu_count(), -int(-cpus // 1)),
      include_dashboard=False,
      object_store_memory=_OBJECTS,
      **actors_lib.QUIET,
    )
  finally:
    os.umask(umask)
  try:
    yield
  finally:
    ray.shutdown()


@contextlib.contextmanager
def _sign(path: str, address: str) -> Iterator[None]:
  """The file that drivers of this host find the cluster by."""
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
  with open(os.open(path, flags, 0o600), 'r+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise ValueError(
        f'the store is served from this host already, in the cluster '
        f'{file.read()}: query.action=shutdown ends it'
      ) from e
    file.truncate()
    file.write(address)
    file.flush()
    try:
      yield
    finally:
      os.unlink(path)


def main() -> None:
  parser = argparse.ArgumentParser(description='Serves a store on Ray.')
  parser.add_argument('--store', required=True)
  parser.add_argument('--index', default='', help='see store.open()')
  parser.add_argument('--address', default='', help="HOST:PORT, auto, '' = new")
  parser.add_argument('--replicas', type=int, default=1)
  parser.add_argument('--cpus', type=float, default=1.0, help='of an actor')
  parser.add_argument('--threads', type=int, default=0)
  parser.add_argument('--timeout', type=float, default=60.0)
  parser.add_argument('--owner_fd', type=int, default=-1, help='see serve()')
  flags = parser.parse_args()
  try:
    serve(
      flags.store,
      index=flags.index,
      address=flags.address,
      replicas=flags.replicas,
      cpus=flags.cpus,
      threads=flags.threads,
      timeout=flags.timeout,
      owner_fd=flags.owner_fd,
      ready=lambda address, store: print(address, flush=True),
    )
  except ValueError as e:
    sys.exit(str(e))


if __name__ == '__main__':
  main()
