"""Looks texts up in a store; shows whether its server is up; shuts it down.

In a store of tokens what could follow a text is looked up: see `query_tokens`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import pathlib
import sys

import tqdm

from tttnn import files
from tttnn import prefetch
from tttnn.datastore import client as client_lib
from tttnn.datastore import store as store_lib
from tttnn.datastore import tokens as tokens_lib

_BATCH = 64  # Texts of one search.


def run(config, workdir: str) -> None:
  """The job; `workdir` is not used.

  Raises:
    ValueError: for a wrong setting, or a store or server that is not there.
  """
  del workdir
  actions = {'search': _search, 'status': _status, 'shutdown': _shutdown}
  if config.query.action not in actions:
    raise ValueError(
      f'query.action={config.query.action!r} is not one of {", ".join(actions)}'
    )
  if not config.store.path and not config.store.address:
    raise ValueError('query needs store.path, or store.address of a server')
  if config.store.search == 'cluster' and config.query.action != 'search':
    _see_cluster(config)
    return
  actions[config.query.action](config)


def _address(config) -> str:
  return config.store.address or client_lib.default_address(
    config.store.path, config.store.index
  )


def _status(config) -> None:
  address = _address(config)
  with client_lib.Client(address) as client:
    print(f'server at {address}: up')
    for key, value in client.status().items():
      print(f'  {key:<24} {value}')


def _shutdown(config) -> None:
  address = _address(config)
  with client_lib.Client(address) as client:
    client.shutdown()
  print(f'server at {address}: shut down')


def _see_cluster(config) -> None:
  """Status and shutdown of a store's actors."""
  # Imported here: Ray is an extra.
  from tttnn.datastore import actors

  path, index, timeout = (
    config.store.path,
    config.store.index,
    config.cluster.timeout,
  )
  address = config.cluster.address or actors.served_at(path, index)
  if not address:
    raise ValueError(
      f'no cluster serves {path} from this host: start one by the job serve, '
      'or name one by cluster.address'
    )
  store = store_lib.open(path, index, shards=())
  with actors.joined(address):
    replicas = actors.plan(store, timeout)['replicas']
    if config.query.action == 'shutdown':
      actors.shutdown(store)
      print(f'{path} in the cluster {address}: shut down')
      return
    print(f'{path} in the cluster {address}: index {store.index.spec}')
    print(actors.table(actors.states(store, replicas)))


def _search(config) -> None:
  # Only a search needs a model, and with it JAX.
  from tttnn import device
  from tttnn.corpus import documents
  from tttnn.datastore import replay
  from tttnn.jobs import query_tokens

  query = config.query
  if bool(query.text) == bool(query.input):
    raise ValueError('query needs either query.text or query.input')
  if query.text:
    texts = [documents.Document(0, '', query.text)]
  else:
    texts = documents.read(query.input)
  device.keep_compiled_programs()
  manifest = store_lib.read_manifest(pathlib.Path(config.store.path))
  if manifest.kind == tokens_lib.KIND:
    opened, show, line = (
      query_tokens.opened,
      query_tokens.show,
      query_tokens.line,
    )
  else:
    opened, show, line = _documents, _show, replay.line
  with opened(config) as find:
    if not query.output:
      for text in texts:
        show(text.doc_id, find([text.text])[0])
      return
    with (
      files.atomic(query.output) as file,
      tqdm.tqdm(total=len(texts), desc='query', unit=' texts') as bar,
    ):
      for batch in prefetch.batches(texts, _BATCH):
        found = find([text.text for text in batch])
        for text, nearest in zip(batch, found, strict=True):
          file.write(line(text.doc_id, nearest).encode())
        bar.update(len(batch))
  k = config.retrieval.neighbors
  print(f'query: {query.output}: {len(texts)} texts, {k} neighbours each')


@contextlib.contextmanager
def _documents(config) -> Iterator[Callable]:
  """Finds the nearest documents of texts, for the length of a context."""
  from tttnn.jobs import neighbors

  with neighbors.retriever(config) as retriever:
    yield lambda texts: retriever(texts, config.retrieval.neighbors)


def _show(doc_id, neighbors) -> None:
  width = 60
  if sys.stdout.isatty():
    width = max(20, os.get_terminal_size().columns - 24)
  print(f'doc_id {doc_id}')
  if neighbors.missing_shards:
    print(f'without shards {neighbors.missing_shards}, which are missing')
  print(f'{"rank":>4} {"distance":>9} {"id":>8}  text')
  for rank, neighbor in enumerate(neighbors, 1):
    text = ' '.join(neighbor.text.split())
    text = ''.join(c if c.isprintable() else '\ufffd' for c in text)
    print(
      f'{rank:>4} {neighbor.distance:>9.4f} {neighbor.id:>8}  {text[:width]}'
    )
