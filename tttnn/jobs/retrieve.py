"""Looks the neighbours of documents up once, for many runs to replay.

Leaves in the work directory `neighbors.jsonl`, which `retrieval.replay` takes:
as many candidates of each document as the method and selection of the config
want, without texts, which a replay finds in the store (with them, where the
store is on other hosts); and `summary.json`, written last. Rerunning goes on.
"""

import json
import os
import time

import tqdm

from configs import base
from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import files
from tttnn import language_model
from tttnn import prefetch
from tttnn.corpus import choice
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.datastore import replay
from tttnn.jobs import neighbors
from tttnn.scoring import results as results_lib

NAME = 'neighbors'  # Of the file.
_BATCH = 64  # Documents of one search.
_SAMPLE = 8  # Documents that an estimate looks up.


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, document, store or server; a work directory
      that holds other neighbours.
  """
  most = neighbors.candidates(config)
  if config.dry_run:
    _dry_run(config, most)
    return
  count = look_up(config, most, workdir, NAME)
  files.write_if_changed(
    os.path.join(workdir, 'summary.json'),
    json.dumps({'documents': count, 'candidates': most}, indent=2) + '\n',
  )
  path = os.path.join(workdir, f'{NAME}.jsonl')
  print(f'retrieve: {path} has the {most} nearest of {count} documents')


def look_up(config, most: int, directory: str, name: str) -> int:
  """Writes the nearest `most` of all documents to a file of the directory.

  Args:
    config: its model, eval, store, embedder, serve, cluster and mesh sections,
      and retrieval.exclude_self.
    most: how many.
    directory: is made; what it holds already is not looked up again.
    name: of the file, without its `.jsonl`.

  Returns:
    How many documents there are.

  Raises:
    ValueError: as `run`.
  """
  search, documents = _search(config, most), _documents(config)
  os.makedirs(directory, exist_ok=True)
  found = results_lib.Results(directory, _identity(search), name)
  todo = [d for d in documents if d.doc_id not in found.rows]
  if todo:
    device.keep_compiled_programs()
    model = _model(search)
    # Of a store on other hosts, the texts cannot be read again later.
    texts = search.store.search == 'cluster'
    with (
      neighbors.finder(search, documents, found.rows) as find,
      tqdm.tqdm(
        total=len(todo), desc=f'look up ({name})', unit=' documents'
      ) as bar,
    ):
      for batch in prefetch.batches(todo, _BATCH):
        cases = _cases(search, model, batch)
        for case, candidates in zip(cases, find(cases), strict=True):
          doc_id = case.document.doc_id
          found.append(replay.record(doc_id, candidates, texts=texts))
          bar.update()
  found.close()
  return len(documents)


def _documents(config) -> list[documents_lib.Document]:
  return documents_lib.read(
    config.eval.documents, choice.Choice.create(config.eval)
  )


def _model(config) -> language_model.LanguageModel:
  """Which says where the parts of a document are, and is not trained."""
  config = config.copy_and_resolve_references()
  config.method = 'base'
  return language_model.load(config)


def _cases(config, model: language_model.LanguageModel, documents):
  return [
    model.case(document, config.eval.protocol, config.eval.split_prefix)
    for document in documents
  ]


def _search(config, most: int):
  """A config that finds the nearest `most`, and leaves all of them."""
  search, defaults = config.copy_and_resolve_references(), base.get_config()
  search.method = 'ttt'
  search.selection = defaults.selection
  for key in ('min_distance', 'max_distance', 'max_overlap', 'overlap_words'):
    search.retrieval[key] = defaults.retrieval[key]
  search.retrieval.neighbors = most
  return search


def _identity(search) -> dict:
  """What the file depends on, but for the choice of documents."""
  identity = neighbors.identity(search) | {
    'documents': jsonl.digest(search.eval.documents),
    'protocol': search.eval.protocol,
    'prefix': search.eval.split_prefix,
  }
  if search.eval.protocol == 'split':  # Where its tokenizer and context count.
    path, revision = search.model.path, search.model.revision
    identity['model'] = checkpoint.digest(path, revision)
  return identity


def _dry_run(config, most: int) -> None:
  """Looks some documents up and keeps nothing."""
  search, documents = _search(config, most), _documents(config)
  search.retrieval.save = ''
  model = _model(search)
  cases = _cases(search, model, documents[:_SAMPLE])
  with neighbors.finder(search, documents, ()) as find:
    find(cases)  # Compiles.
    begin = time.monotonic()
    find(cases)
    each = (time.monotonic() - begin) / len(cases)
  estimate.show(
    'retrieve',
    documents=len(documents),
    steps=0,
    memory=estimate.num_bytes(model.params),
    seconds=each * len(documents),
  )
