"""How far documents are from their nearest neighbours in parts of a store.

Whole documents are the queries. One pass over the stored vectors measures
everything, so it needs no search host. Leaves in the work directory
`distances.npz`, all distances and what they depend on, and made from it
`distances.jsonl`, a document's nearest in each fraction, `.json`, `.md`, `.png`
and `.pdf`. What is there already is not measured again.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import time

import numpy as np
import tqdm

from tttnn import device
from tttnn import estimate
from tttnn import files
from tttnn import settings
from tttnn import summary
from tttnn.corpus import choice
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.datastore import check as check_lib
from tttnn.datastore import distances as distances_lib
from tttnn.datastore import embed
from tttnn.datastore import fractions as fractions_lib
from tttnn.datastore import index as index_lib
from tttnn.datastore import store as store_lib
from tttnn.reporting import distances as shown
from tttnn.reporting import plots
from tttnn.reporting import tables

_BATCH = 64  # Documents embedded between two steps of the progress bar.
# What `dry_run` tries: documents to embed, queries, and vectors of the store.
_SAMPLE, _SAMPLE_QUERIES, _SAMPLE_ROWS = 16, 256, 1 << 15


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, document, embedder or store, also one whose
      vectors are not on this host; a work directory that holds another study.
  """
  store = _open(config)
  fractions = fractions_lib.draw(
    store.manifest, _values(config.distances.fractions), config.seed
  )
  documents = documents_lib.read(
    config.eval.documents, choice.Choice.create(config.eval)
  )
  if len(documents) < 2 or config.distances.pairs < 1:
    raise ValueError(
      f'distances.pairs={config.distances.pairs} of {len(documents)} documents'
    )
  if config.dry_run:
    _dry_run(config, store, fractions, documents)
    return
  path = os.path.join(workdir, 'distances.npz')
  about = identity(config, store)
  if os.path.exists(path):
    study = _load(path, about)
    print(f'distances: {path} is there, nothing to measure')
  else:
    study = _measure(config, store, fractions, documents)
    _save(path, about, study)
  _write(config, workdir, study, documents)


def identity(config, store: store_lib.Store) -> dict:
  """What the distances depend on, flat: settings, and digests of what is read.

  The store says which embedder made its vectors.
  """
  chosen = dataclasses.asdict(choice.Choice.create(config.eval))
  return {
    'store': store.fingerprint(),
    'eval.documents': jsonl.digest(config.eval.documents),
    **{f'eval.{key}': value for key, value in chosen.items()},
    'retrieval.neighbors': config.retrieval.neighbors,
    'retrieval.exclude_self': config.retrieval.exclude_self,
    'distances.fractions': list(_values(config.distances.fractions)),
    'distances.pairs': config.distances.pairs,
    'seed': config.seed,
  }


def _values(spec: str) -> tuple[float, ...]:
  try:
    return tuple(float(part) for part in spec.split(','))
  except ValueError:
    raise ValueError(
      f'distances.fractions={spec!r} is not numbers as 0.1,0.5,1'
    ) from None


def _open(config) -> store_lib.Store:
  """The store, all of whose vectors are here."""
  if not config.store.path:
    raise ValueError('distances needs store.path (what `build` made)')
  if config.store.search == 'cluster':
    raise ValueError(
      'distances reads all vectors on this host, but store.search is '
      "'cluster', whose hosts hold parts: take a host that has them all"
    )
  store = store_lib.open(
    config.store.path, config.store.index, kind=store_lib.DOCUMENTS
  )
  distances_lib.check_metric(store.manifest.metric)
  for number in store.here:
    store.mapped_vectors(number)
  return store


def _measure(
  config,
  store: store_lib.Store,
  fractions: fractions_lib.Fractions,
  documents: Sequence[documents_lib.Document],
) -> distances_lib.Study:
  texts = [document.text for document in documents]
  excluded = fractions_lib.NONE
  if config.retrieval.exclude_self:
    with _bar('copies') as progress:
      excluded = fractions_lib.copies(store.corpus, fractions, texts, progress)
  # Before the embedder takes its time.
  fractions_lib.check_enough(
    fractions, config.retrieval.neighbors, excluded, len(texts)
  )
  device.keep_compiled_programs()
  queries_QxD = _embed(config, store, texts)
  random = distances_lib.random_pairs(
    store.manifest.metric, queries_QxD, config.distances.pairs, config.seed
  )
  with _bar('distances') as progress:
    distances_FxQxk = distances_lib.nearest(
      store,
      queries_QxD,
      config.retrieval.neighbors,
      fractions,
      excluded=excluded,
      threads=index_lib.set_threads(config.serve.threads),
      progress=progress,
    )
  return distances_lib.Study(
    store.manifest.metric,
    np.array(fractions.values),
    fractions.documents,
    distances_FxQxk,
    random,
  )


def _embed(config, store: store_lib.Store, texts: list[str]) -> np.ndarray:
  """Embeddings [Q, D], of each text alone, as a search does."""
  embedder = embed.load(**config.embedder)
  store_lib.check_embedder(store.info(), embedder.fingerprint(), embedder.dim)
  parts = []
  with _bar('embed') as progress:
    for begin in range(0, len(texts), _BATCH):
      parts.append(embedder(texts[begin : begin + _BATCH]))
      progress(min(begin + _BATCH, len(texts)), len(texts))
  return np.concatenate(parts)


@contextlib.contextmanager
def _bar(name: str) -> Iterator[fractions_lib.Progress]:
  with tqdm.tqdm(desc=name, unit=' documents') as bar:

    def progress(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    yield progress


def _save(path: str, about: dict, study: distances_lib.Study) -> None:
  with files.atomic(path) as file:
    np.savez(
      file,
      identity=json.dumps(about),
      metric=study.metric,
      fractions=study.fractions,
      documents=study.documents,
      distances=study.distances_FxQxk,
      random=study.random,
    )


def _load(path: str, about: dict) -> distances_lib.Study:
  """Raises `ValueError`, with the difference, for another study."""
  with np.load(path, allow_pickle=False) as held:
    differ = settings.difference(json.loads(str(held['identity'])), about)
    if differ:
      raise ValueError(
        f'{path} holds another study ({differ}): take another --workdir, or '
        'delete it'
      )
    return distances_lib.Study(
      str(held['metric']),
      held['fractions'],
      held['documents'],
      held['distances'],
      held['random'],
    )


def _write(config, workdir: str, study, documents) -> None:
  """Shows the study, and writes the files that are made from it."""
  cells, said = shown.table(study), shown.sentences(study)
  fig = shown.draw(study)
  rows = (
    {'doc_id': d.doc_id, 'task': d.task, 'nearest': nearest_F.tolist()}
    for d, nearest_F in zip(
      documents, study.distances_FxQxk[:, :, 0].T, strict=True
    )
  )
  about = {
    **shown.to_json(study),
    'config': config.to_dict(),
    'versions': summary.versions(),
    'git_revision': summary.git_revision(),
  }
  markdown = [tables.render_markdown(cells)]
  markdown += [f'{tables.escape(line)}\n' for line in said]
  for ending, content in (
    ('jsonl', ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)),
    ('json', json.dumps(about, indent=2) + '\n'),
    ('md', '\n'.join(markdown)),
    ('png', plots.png(fig)),
    ('pdf', plots.pdf(fig)),
  ):
    path = os.path.join(workdir, f'distances.{ending}')
    files.write_if_changed(path, content)
  print(tables.render_text(cells))
  print('\n'.join(said))
  names = os.path.join(workdir, 'distances.{npz,jsonl,json,md,png,pdf}')
  print(f'distances: {names}')


def _dry_run(config, store: store_lib.Store, fractions, documents) -> None:
  """Embeds some documents, and passes over the first vectors of the store.

  Stored vectors stand for queries; the nearest settle in the beginning of a
  pass, so that the time of a large store is overestimated.
  """
  embedder = embed.load(**config.embedder)
  step = -(-len(documents) // _SAMPLE)
  texts = [document.text for document in documents[::step]]
  compiling, embedding = estimate.timed(lambda: embedder(texts))
  manifest = store.manifest
  queries_QxD = check_lib.sample(
    store,
    min(len(documents), _SAMPLE_QUERIES),
    np.random.default_rng(config.seed),
  )
  passed = []
  begin = time.monotonic()
  best_FxQxk = distances_lib.nearest(
    store,
    queries_QxD,
    config.retrieval.neighbors,
    fractions,
    excluded=fractions_lib.NONE,
    threads=index_lib.set_threads(config.serve.threads),
    rows=_SAMPLE_ROWS,
    progress=lambda done, total: passed.append(done),
  )
  seconds = time.monotonic() - begin
  share = len(documents) / len(queries_QxD)
  estimate.show(
    'distances',
    documents=len(documents),
    steps=manifest.rows,
    memory=estimate.num_bytes((embedder.params, fractions.group))
    + int(share * (best_FxQxk.nbytes + queries_QxD.nbytes)),
    seconds=compiling
    + embedding * len(documents) / len(texts)
    + seconds * share * manifest.rows / passed[-1],
  )
