"""Where the neighbours of a run come from: nowhere, a file or a served store.

What the jobs that adapt have in common.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import itertools
import time
import zlib

from tttnn import sharding
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.corpus import sample as corpus_sample
from tttnn.datastore import embed
from tttnn.datastore import replay as replay_lib
from tttnn.datastore import retrieve
from tttnn.datastore import store as store_lib
from tttnn.methods import select

_SAMPLE = 64  # Texts that an estimate looks at.

# Methods that have no use for documents that are neighbours.
WITHOUT = ('base', 'dynamic_eval', 'knn_lm', 'retomaton')

Find = Callable[[Sequence[documents_lib.Case]], list[retrieve.Neighbors]]


@contextlib.contextmanager
def finder(
  config,
  documents: Sequence[documents_lib.Document],
  done: Collection[str | int],
) -> Iterator[Find]:
  """Finds candidates for cases, nearest first, for the length of a context.

  Args:
    config: its method, retrieval, selection, store, embedder and serve
      sections.
    documents: all that will be asked for.
    done: ids of those whose neighbours an earlier run has saved.

  Raises:
    ValueError: for a wrong setting, store, server or file of neighbours.
  """
  if config.method in WITHOUT:
    yield lambda cases: [retrieve.Neighbors() for _ in cases]
    return
  with contextlib.ExitStack() as stack:
    if config.retrieval.replay:
      find = _replayed(config, documents)
    else:
      find = _search(config, stack)
    if config.retrieval.save:
      saver = replay_lib.Saver(config.retrieval.save, done)
      stack.callback(saver.close)
      find = _saving(find, saver)
    yield find


def identity(config) -> dict:
  """What the neighbours depend on, flat: settings, and digests of what is read.

  Raises:
    ValueError: if neither a store nor a file of neighbours is named.
  """
  chosen = {
    f'{section}.{key}': value
    for section in ('retrieval', 'selection')
    for key, value in config[section].items()
    if key != 'save'
  }
  if config.retrieval.replay:
    chosen['retrieval.replay'] = jsonl.digest(config.retrieval.replay)
    return chosen
  chosen['store'] = _about(config).fingerprint()
  if config.store.search == 'cluster' and config.cluster.allow_partial:
    chosen['cluster.allow_partial'] = True
  if config.store.search == 'device' and config.store.approximate:
    chosen['store.approximate'] = True
  return chosen


def open_store(
  config, shards: Collection[int] | None = None
) -> store_lib.Store:
  """The store of the run, with those shards; None: all.

  Raises:
    ValueError: if none is named, or it is not there.
  """
  if not config.store.path:
    raise ValueError(
      f'method={config.method!r} needs store.path (what `build` made) or '
      'retrieval.replay'
    )
  return store_lib.open(
    config.store.path, config.store.index, shards, store_lib.DOCUMENTS
  )


def _about(config) -> store_lib.Store:
  """The store, without its shards where these are on other hosts."""
  return open_store(config, () if config.store.search == 'cluster' else None)


def number(document: documents_lib.Document) -> int:
  """What a document's random numbers are made of, whatever its company."""
  return zlib.crc32(repr(document.doc_id).encode())


def sample(config, documents: Sequence[documents_lib.Document]) -> list[str]:
  """Texts that stand for neighbours in an estimate, before anything is found.

  Those of a file of neighbours, or spread over corpus.train or the store.
  """
  if config.retrieval.replay:
    replay = _replay(config, documents)
    found = (
      neighbor.text
      for document in documents
      for neighbor in replay(document.doc_id, config.retrieval.neighbors)
    )
    return list(itertools.islice(found, _SAMPLE))
  if config.corpus.train:
    paths = jsonl.expand(config.corpus.train)
    return corpus_sample.look(paths, _SAMPLE, config.corpus.on_error)[0]
  corpus = open_store(config).corpus
  count = min(_SAMPLE, len(corpus))
  texts = []
  for i in range(count):
    # Lines that are malformed were left out when the store was built.
    with contextlib.suppress(jsonl.MalformedLine):
      texts.append(corpus.text(i * len(corpus) // count))
  return texts


def candidates(config) -> int:
  """How many neighbours are looked up for those that are selected of them."""
  settings = select.Settings.create(config.selection)
  return settings.candidates(config.retrieval.neighbors)


def _replayed(config, documents) -> Find:
  k, replay = candidates(config), _replay(config, documents)
  add_vectors = _vectors_of_replayed(config)

  def find(cases):
    found = [replay(case.document.doc_id, k) for case in cases]
    if add_vectors:
      add_vectors(cases, found)
    return found

  return find


def _vectors_of_replayed(config):
  """Gives replayed neighbours the vectors that a selection needs.

  Those of the store where every neighbour is from it, else their texts are
  embedded, which takes longer. None where no vectors are needed.
  """
  if not select.Settings.create(config.selection).needs_vectors:
    return None
  embedder = embed.load(**config.embedder)
  store = None
  if config.store.path:
    store = open_store(config)
    fingerprint = embedder.fingerprint()
    store_lib.check_embedder(store.info(), fingerprint, embedder.dim)

  def add(cases, found):
    flat = [neighbor for neighbors in found for neighbor in neighbors]
    if store and all(neighbor.id is not None for neighbor in flat):
      vectors_NxD = store.gather([neighbor.id for neighbor in flat])
    else:
      vectors_NxD = embedder([neighbor.text for neighbor in flat])
    queries_QxD = embedder([case.query for case in cases])
    retrieve.attach(found, queries_QxD, vectors_NxD)

  return add


def _replay(config, documents) -> replay_lib.Replay:
  replay = replay_lib.Replay(
    config.retrieval.replay, lambda: open_store(config).corpus
  )
  replay.require(document.doc_id for document in documents)
  return replay


def _search(config, stack: contextlib.ExitStack) -> Find:
  k, about = candidates(config), _about(config)
  rows = about.manifest.searchable
  if k > rows:
    wanted = config.retrieval.neighbors
    key = 'retrieval.neighbors' if k == wanted else 'selection.pool'
    raise ValueError(
      f'{key}={k}, but the store {config.store.path} has {rows} documents'
    )
  search = stack.enter_context(retriever(config))
  if 'recall' in search.info:
    print(
      f'search: approx_min_k finds {search.info["recall"]:.4f} of the nearest '
      'neighbours of stored vectors'
    )

  vectors = select.Settings.create(config.selection).needs_vectors

  def find(cases):
    own = None
    if config.retrieval.exclude_self:
      own = [case.document.text for case in cases]
    begin = time.monotonic()
    queries = [case.query for case in cases]
    found = search(queries, k, exclude=own, vectors=vectors)
    for neighbors in found:
      neighbors.seconds = (time.monotonic() - begin) / len(cases)
    return found

  return find


def retriever(config) -> contextlib.AbstractContextManager[retrieve.Retriever]:
  """Over the store of the run, for the length of a context."""
  how = how_to_search(config, (*retrieve.SEARCHES, 'cluster'))
  if config.store.search == 'cluster':
    return _cluster_retriever(config)
  embedder = embed.load(**config.embedder)
  return retrieve.connect(config.store.path, embedder, **how)


def how_to_search(config, searches: Sequence[str]) -> dict:
  """The arguments of `retrieve.connect` and `.searcher`, by the config.

  Raises:
    ValueError: unless store.search is one of `searches`.
  """
  store = config.store
  if store.search not in searches:
    raise ValueError(
      f'store.search={store.search!r} is not one of {", ".join(searches)}'
    )
  return {
    'index': store.index,
    'search': store.search,
    'address': store.address,
    'threads': config.serve.threads,
    'gpu': config.serve.gpu,
    'mesh': sharding.local_mesh(config.mesh),
    'dtype': store.device_dtype,
    'approximate': store.approximate,
  }


@contextlib.contextmanager
def _cluster_retriever(config) -> Iterator[retrieve.Retriever]:
  # Imported here: Ray is an extra.
  from tttnn.datastore import cluster

  embedder = embed.load(**config.embedder)
  with cluster.connect(
    config.store.path,
    index=config.store.index,
    threads=config.serve.threads,
    **config.cluster,
  ) as client:
    yield retrieve.Retriever(
      embedder, client, client.texts, client.vectors, lambda: client.missing
    )


def _saving(find: Find, saver: replay_lib.Saver) -> Find:
  def find_and_save(cases):
    found = find(cases)
    for case, neighbors in zip(cases, found, strict=True):
      saver.append(case.document.doc_id, neighbors)
    return found

  return find_and_save
