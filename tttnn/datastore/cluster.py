"""Searches over the hosts of a Ray cluster.

`actors` has what runs there, `cluster_server` starts it and keeps it alive.

Each shard of a store is held by one or more actors, its replicas, anywhere in
the cluster. A search asks one replica of every shard and merges what they
found, so that it is the answer of one `engine.Engine` over the whole store, or
an error that names the shards which nobody answers for.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import itertools
import os
import sys
import time
from typing import Any

import numpy as np

from tttnn.datastore import actors
from tttnn.datastore import client as client_lib
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import metric as metric_lib
from tttnn.datastore import protocol
from tttnn.datastore import store as store_lib
from tttnn.datastore.actors import ray

_PAUSE = 0.2  # Seconds between two looks at a shard that is lost.


class Client:
  """A searcher over the actors of a store; not to be shared by threads.

  To be made while connected to the cluster, see `actors.joined`.

  Args:
    store_path: with manifest and index.json; its shards may be elsewhere.
    index: the one to search, see `store.open`.
    timeout: seconds that an actor may take for an answer, and for which a
      shard that is lost is waited for.
    allow_partial: whether to go on without the shards that are lost.

  Attributes:
    info: as of `client.Client`, as far as there is such a thing; shards and
      replicas.
    missing: numbers of the shards that the last search did without.

  Raises:
    ValueError: nobody serves the store in this cluster, or shards are missing.
  """

  def __init__(
    self,
    store_path: str,
    index: str = '',
    *,
    timeout: float = 60.0,
    allow_partial: bool = False,
  ):
    self._store = store_lib.open(store_path, index, shards=())
    self._timeout = timeout
    self._allow_partial = allow_partial
    manifest = self._store.manifest
    self._shards = actors.searchable(manifest)
    rows = [shard.rows for shard in manifest.shards]
    self._ends = np.cumsum(rows)
    self._replicas = actors.plan(self._store, timeout)['replicas']
    self._handles = {}
    self._turns = {
      shard: itertools.cycle(_from(os.getpid(), self._replicas))
      for shard in self._shards
    }
    self._given_up = set()  # Missing, and not to be waited for again.
    self.missing = ()
    states = self._ask({shard: () for shard in self._shards}, 'state')
    self.info = self._store.info() | {
      'exact': all(state['exact'] for state in states.values()),
      'in_memory': [n for s in states.values() for n in s['in_memory']],
      'shards': len(self._shards),
      'replicas': self._replicas,
    }

  def check(self, fingerprint: str, dim: int, keys: str = '') -> None:
    """As `store.check_embedder`."""
    store_lib.check_embedder(self.info, fingerprint, dim, keys)

  def search(
    self, queries_QxD: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `engine.Engine.search` over all shards.

    Where shards may be missing and are, `missing` says which, and there are
    fewer than k neighbours if the others hold no more.

    Raises:
      ValueError: as of the engine, or shards are missing.
    """
    queries_QxD = np.ascontiguousarray(queries_QxD, np.float32)
    manifest = self._store.manifest
    metric_lib.prepared_queries(  # Refuses what every actor would.
      manifest.metric, queries_QxD, k, manifest.dim, manifest.searchable
    )
    shared = ray.put(queries_QxD)
    answers = self._ask(
      {shard: (shared, k) for shard in self._shards}, 'search'
    )
    found = [
      [
        (distances_k[ids_k >= 0], ids_k[ids_k >= 0])
        for distances_k, ids_k in zip(*answers[shard], strict=True)
      ]
      for shard in sorted(answers)
    ]
    rows = sum(manifest.shards[shard].searchable for shard in answers)
    return engine_lib.merge(
      found, len(queries_QxD), min(k, rows), self._store.index.spec
    )

  def texts(self, ids: Sequence[int]) -> list[str]:
    """The texts of ids, from the hosts that hold them.

    Raises:
      ValueError: a shard is missing, or a line is not what it was.
    """
    found = self._of_ids(ids, 'texts')
    return [found[id_] for id_ in ids]

  def vectors(self, ids: Sequence[int]) -> np.ndarray:
    """The stored vectors of ids: float32 [len(ids), D], from their hosts.

    Raises:
      ValueError: a shard is missing, or holds no vectors.
    """
    found = self._of_ids(ids, 'vectors')
    rows = [found[id_] for id_ in ids]
    return np.reshape(rows, (-1, self._store.manifest.dim))

  def _of_ids(self, ids: Sequence[int], method: str) -> dict[int, Any]:
    """What the hosts of some ids say of each."""
    wanted = np.unique(np.asarray(ids, np.int64))
    shards = np.searchsorted(self._ends, wanted, side='right')
    asked = {
      shard: (wanted[shards == shard],) for shard in np.unique(shards).tolist()
    }
    missing = self.missing
    answers = self._ask(asked, method, whole=True)
    self.missing = missing
    found = {}
    for shard, (of_shard,) in asked.items():
      found |= zip(of_shard.tolist(), answers[shard], strict=True)
    return found

  def _ask(
    self, asked: Mapping[int, tuple], method: str, whole: bool = False
  ) -> dict[int, Any]:
    """The answers of one replica of each shard.

    Args:
      asked: the arguments, by shard.
      method: of `ShardHost`.
      whole: whether no shard may be missing, whatever the user allowed.
    """
    answers, why, end = {}, {}, None
    for tries in itertools.count(1):
      left = {
        shard: arguments
        for shard, arguments in asked.items()
        if shard not in answers
      }
      if not left:
        break
      # Another replica is asked at once, one that starts again waited for.
      if tries > self._replicas:
        if left.keys() <= self._given_up or time.monotonic() > end:
          break
        time.sleep(_PAUSE)
      self._ask_once(left, method, answers, why)
      end = end or time.monotonic() + self._timeout
    self.missing = tuple(sorted(left))
    if left and (whole or not self._allow_partial or not answers):
      raise protocol.Lost(
        f'{_names(left)} of the {len(self._shards)} of {self._store.directory} '
        f'cannot be asked ({why[min(left)]}): see query.action=status'
      )
    self._given_up = self._given_up - answers.keys() | left.keys()
    return answers

  def _ask_once(self, asked, method: str, answers, why) -> None:
    """Adds to answers, or to why there is none."""
    calls = {}
    for shard, arguments in asked.items():
      replica, handle = self._next(shard)
      if handle is None:
        why[shard] = 'all its actors are dead'
      else:
        call = getattr(handle, method).remote(*arguments)
        calls[call] = shard, replica
    ready = []
    if calls:
      ready, _ = ray.wait(
        list(calls), num_returns=len(calls), timeout=self._timeout
      )
    for call, (shard, replica) in calls.items():
      try:
        if call in ready:
          answers[shard] = ray.get(call)
          continue
        why[shard] = f'no answer for {self._timeout:g} s'
      except actors.LOST as e:
        why[shard] = str(e).partition('\n')[0]
      except ray.exceptions.RayTaskError as e:
        raise ValueError(f'shard {shard}: {e.cause}') from e
      # It may be back under its name, but as another actor.
      del self._handles[shard, replica]

  def _next(self, shard: int):
    """(replica, its handle), in turns; (-1, None) where all are dead."""
    for _ in range(self._replicas):
      replica = next(self._turns[shard])
      handle = self._handles.get((shard, replica))
      handle = handle or actors.look_up(
        self._store, actors.name(shard, replica)
      )
      if handle:
        self._handles[shard, replica] = handle
        return replica, handle
    return -1, None


def _from(first: int, count: int) -> list[int]:
  return [(first + i) % count for i in range(count)]


def _names(shards: Collection[int]) -> str:
  return f'shard{"s" * (len(shards) > 1)} {", ".join(map(str, sorted(shards)))}'


@contextlib.contextmanager
def connect(
  store_path: str,
  *,
  index: str = '',
  address: str = '',
  replicas: int = 1,
  cpus: float = 1.0,
  threads: int = 0,
  timeout: float = 60.0,
  allow_partial: bool = False,
) -> Iterator[Client]:
  """A client of a store's actors, for the length of a context.

  Args:
    store_path: what `build` made.
    index: the one to search, see `store.open`.
    address: of the cluster, see `actors.joined`; '': that which is served from
      this host, or where there is none, one of its own on this host, which ends
      with the context, and also when this process is killed.
    replicas: of a shard in such a cluster.
    cpus: of an actor there.
    threads: of a search there; 0: as many as it has CPUs.
    timeout: see `Client`.
    allow_partial: see `Client`.

  Raises:
    ValueError: no such store or cluster, or shards are missing.
  """
  address = address or actors.served_at(store_path, index)
  with contextlib.ExitStack() as stack:
    if not address:
      command = ['-m', 'tttnn.datastore.cluster_server']
      command += [f'--store={store_path}', f'--index={index}', '--owner_fd=0']
      command += [f'--replicas={replicas}', f'--cpus={cpus}']
      command += [f'--threads={threads}', f'--timeout={timeout}']
      # Ray needs some seconds itself.
      child = client_lib.child(
        [sys.executable, *command], f'cluster of {store_path}', timeout + 60
      )
      address = stack.enter_context(child)
    stack.enter_context(actors.joined(address))
    yield Client(
      store_path, index, timeout=timeout, allow_partial=allow_partial
    )
