"""From queries to neighbours: embed, search, look the texts up."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
from typing import Any
from typing import Protocol

import jax
import numpy as np

from tttnn.datastore import client as client_lib
from tttnn.datastore import device_store
from tttnn.datastore import embed
from tttnn.datastore import store as store_lib

SEARCHES = ('faiss', 'device')


@dataclasses.dataclass(frozen=True)
class Neighbor:
  """A document of the store, as one query sees it.

  Attributes:
    id: global line number; None where a replayed file has none.
    distance: Euclidean, not squared.
    text: the whole text.
  """

  id: int | None
  distance: float
  text: str


class Neighbors(list[Neighbor]):
  """What one query found, nearest first.

  Attributes:
    missing_shards: numbers of the shards that were not searched, as the user
      allowed; empty for a complete answer.
    seconds: that finding them took, where that was not now; else None.
    query_D: the query's embedding, where vectors were asked for; else None.
    vectors_KxD: the neighbours' embeddings, likewise.
  """

  def __init__(
    self,
    found: Iterable[Neighbor] = (),
    missing_shards: Sequence[int] = (),
    seconds: float | None = None,
  ):
    super().__init__(found)
    self.missing_shards = tuple(missing_shards)
    self.seconds = seconds
    self.query_D = None
    self.vectors_KxD = None


class Searcher(Protocol):
  """Whatever finds ids: a client of a server, of a cluster, or a device.

  Of distances as an index has them (`raw`, `measure`) only the first knows.

  Attributes:
    info: "searchable", how many vectors there are, for one.
  """

  info: Mapping[str, Any]

  def check(self, fingerprint: str, dim: int, keys: str = '') -> None:
    """As `store.check_embedder`."""

  def search(
    self, queries_QxD: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `engine.Engine.search`."""


@contextlib.contextmanager
def connect(
  store_path: str,
  embedder: embed.Embedder,
  *,
  index: str = '',
  search: str = 'faiss',
  address: str = '',
  threads: int = 0,
  gpu: bool = False,
  mesh: jax.sharding.Mesh | None = None,
  dtype: str = 'float32',
  approximate: bool = False,
) -> Iterator['Retriever']:
  """A retriever over a store, for the length of a context.

  Args:
    store_path: what `build` made.
    embedder: the one it was built with.
    index: the one to search, see `store.open`.
    search: who does: 'faiss', a server on this host, or 'device', JAX over all
      vectors on the devices of `mesh`.
    address: of the server; '' uses the one at the store's default address, and
      where none answers there, starts one of its own and stops it afterwards,
      however the context ends.
    threads: of such a server; 0: all cores.
    gpu: whether such a server searches on GPUs.
    mesh: for 'device'; None: all devices.
    dtype: of the vectors there; answers are the same.
    approximate: whether neighbours may be missed there, see `device`.

  Raises:
    ValueError: if there is no store, or no server at `address`, or the store
      was built with another embedder.
  """
  store = store_lib.open(store_path, index, kind=store_lib.DOCUMENTS)
  with searcher(
    store,
    index=index,
    search=search,
    address=address,
    threads=threads,
    gpu=gpu,
    mesh=mesh,
    dtype=dtype,
    approximate=approximate,
  ) as found:
    yield Retriever(embedder, found, store.corpus.texts, store.gather)


@contextlib.contextmanager
def searcher(
  store: store_lib.Store,
  *,
  index: str,
  search: str,
  address: str,
  threads: int,
  gpu: bool,
  mesh: jax.sharding.Mesh | None,
  dtype: str,
  approximate: bool,
) -> Iterator[Searcher]:
  """Whoever searches an open store; arguments and errors as of `connect`."""
  if search not in SEARCHES:
    raise ValueError(f'search={search!r} is not one of {", ".join(SEARCHES)}')
  if search == 'device':
    yield device_store.StoreIndex(
      store, mesh=mesh, dtype=dtype, approximate=approximate
    )
    return
  path = str(store.directory)
  shared = client_lib.default_address(path, index)
  with contextlib.ExitStack() as stack:
    if address or client_lib.answers(shared):
      found = client_lib.Client(address or shared)
    else:
      # Our own: another driver must not come to depend on it.
      own = f'{shared}-{os.getpid()}'
      found = client_lib.start(path, own, index=index, threads=threads, gpu=gpu)
    yield stack.enter_context(found)


def attach(
  found: Sequence[Neighbors], queries_QxD: np.ndarray, vectors_NxD: np.ndarray
) -> None:
  """Gives what each query found its vectors, those of all in a row."""
  begin = 0
  for query_D, neighbors in zip(queries_QxD, found, strict=True):
    neighbors.query_D = query_D
    neighbors.vectors_KxD = vectors_NxD[begin : begin + len(neighbors)]
    begin += len(neighbors)


class Retriever:
  """The neighbours of a text in a store.

  Attributes:
    info: of the searcher.
  """

  def __init__(
    self,
    embedder: embed.Embedder,
    searcher: Searcher,
    texts: Callable[[Sequence[int]], list[str]],
    vectors: Callable[[Sequence[int]], np.ndarray],
    missing: Callable[[], Sequence[int]] = tuple,
  ):
    """Checks that store and embedder belong together.

    Args:
      embedder: of the queries.
      searcher: of the store.
      texts: of ids in the store.
      vectors: of ids in the store, [len(ids), D].
      missing: shards that the last search of `searcher` did without.

    Raises:
      ValueError: if the store was built with another embedder.
    """
    searcher.check(embedder.fingerprint(), embedder.dim)
    self._embedder = embedder
    self._searcher = searcher
    self._texts = texts
    self._vectors = vectors
    self._missing = missing
    self.info = searcher.info

  def __call__(
    self,
    texts: Sequence[str],
    k: int,
    *,
    exclude: Sequence[str] | None = None,
    vectors: bool = False,
  ) -> list[Neighbors]:
    """The k nearest of each text, nearest first.

    Args:
      texts: each is embedded by itself, so that its neighbours do not depend
        on the company it is in.
      k: how many.
      exclude: for each text, the text that its neighbours may not have; the
        next nearest take their place.
      vectors: whether the embeddings of queries and neighbours are wanted.

    Raises:
      ValueError: if the store has fewer than k documents, or does not hold the
        vectors that are wanted.
    """
    queries_QxD = self._embedder(texts)
    if exclude is None:
      found = self._search(queries_QxD, k)
    else:
      found = [
        self._search_others(query_D, k, unwanted)
        for query_D, unwanted in zip(queries_QxD, exclude, strict=True)
      ]
    if vectors:
      attach(
        found, queries_QxD, self._vectors([n.id for f in found for n in f])
      )
    return found

  def _search(self, queries_QxD, k: int) -> list[Neighbors]:
    distances_Qxk, ids_Qxk = self._searcher.search(queries_QxD, k)
    missing = self._missing()
    # Of all queries at once: the texts may lie on other hosts.
    texts = iter(self._texts(ids_Qxk.ravel().tolist()))
    found = []
    for distances_k, ids_k in zip(distances_Qxk, ids_Qxk, strict=True):
      pairs = zip(ids_k.tolist(), distances_k.tolist(), strict=True)
      found.append(
        Neighbors((Neighbor(*pair, next(texts)) for pair in pairs), missing)
      )
    return found

  def _search_others(
    self, query_D: np.ndarray, k: int, unwanted: str
  ) -> Neighbors:
    extra, most = 1, self._searcher.info['searchable']
    while True:
      asked = min(k + extra, most)
      found = self._search(query_D[None], asked)[0]
      kept = [n for n in found if n.text != unwanted]
      if len(kept) >= k or asked == most:
        return Neighbors(kept[:k], found.missing_shards)
      extra *= 2
