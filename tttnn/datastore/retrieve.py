"""From queries to neighbours: embed, search, look the texts up."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import os

import numpy as np

from tttnn.corpus import jsonl
from tttnn.datastore import client as client_lib
from tttnn.datastore import embed
from tttnn.datastore import store as store_lib


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


@contextlib.contextmanager
def connect(
  store_path: str,
  embedder: embed.Embedder,
  *,
  address: str = '',
  threads: int = 0,
) -> Iterator['Retriever']:
  """A retriever over the server of a store, for the length of a context.

  Args:
    store_path: what `build` made.
    embedder: the one it was built with.
    address: of the server; '' uses the one at the store's default address, and
      where none answers there, starts one of its own and stops it afterwards,
      however the context ends.
    threads: of such a server; 0: all cores.

  Raises:
    ValueError: if there is no store, or no server at `address`, or the store
      was built with another embedder.
  """
  store = store_lib.open(store_path)
  with contextlib.ExitStack() as stack:
    client = stack.enter_context(_client(store_path, address, threads))
    yield Retriever(embedder, client, store.corpus)


def _client(store_path: str, address: str, threads: int):
  shared = client_lib.default_address(store_path)
  if address or client_lib.answers(shared):
    return client_lib.Client(address or shared)
  # Our own: another driver must not come to depend on it.
  own = f'{shared}-{os.getpid()}'
  return client_lib.start(store_path, own, threads=threads)


class Retriever:
  """The neighbours of a text in a served store."""

  def __init__(
    self,
    embedder: embed.Embedder,
    client: client_lib.Client,
    corpus: jsonl.Corpus,
  ):
    """Checks that store and embedder belong together.

    Args:
      embedder: of the queries.
      client: of the server.
      corpus: the texts of the store.

    Raises:
      ValueError: if the store was built with another embedder.
    """
    client.check(embedder.fingerprint(), embedder.dim)
    self._embedder = embedder
    self._client = client
    self._corpus = corpus

  def __call__(
    self, texts: Sequence[str], k: int, *, exclude: Sequence[str] | None = None
  ) -> list[list[Neighbor]]:
    """The k nearest of each text, nearest first.

    Args:
      texts: each is embedded by itself, so that its neighbours do not depend
        on the company it is in.
      k: how many.
      exclude: for each text, the text that its neighbours may not have; the
        next nearest take their place.

    Raises:
      ValueError: if the store has fewer than k documents.
    """
    queries_QxD = self._embedder(texts)
    if exclude is None:
      return self._search(queries_QxD, k)
    return [
      self._search_others(query_D, k, unwanted)
      for query_D, unwanted in zip(queries_QxD, exclude, strict=True)
    ]

  def _search(self, queries_QxD, k: int) -> list[list[Neighbor]]:
    distances_Qxk, ids_Qxk = self._client.search(queries_QxD, k)
    return [
      [
        Neighbor(int(i), float(d), self._corpus.text(int(i)))
        for d, i in zip(distances_k, ids_k, strict=True)
        if i >= 0
      ]
      for distances_k, ids_k in zip(distances_Qxk, ids_Qxk, strict=True)
    ]

  def _search_others(
    self, query_D: np.ndarray, k: int, unwanted: str
  ) -> list[Neighbor]:
    extra, most = 1, self._client.info['searchable']
    while True:
      asked = min(k + extra, most)
      found = self._search(query_D[None], asked)[0]
      kept = [n for n in found if n.text != unwanted]
      if len(kept) >= k or asked == most:
        return kept[:k]
      extra *= 2
