"""Embeds and indexes a corpus: `store.path`, ready to serve; resumable.

With build.shard, .begin or .end it embeds that part only. With store.key the
store is of tokens: see `build_tokens`; with pairs.train too, of those of the
pairs' outputs.
"""

import dataclasses
import functools
import math
import os

import tqdm

from tttnn import device
from tttnn import estimate
from tttnn import sharding
from tttnn.corpus import jsonl
from tttnn.corpus import sample
from tttnn.datastore import begun
from tttnn.datastore import build
from tttnn.datastore import embed
from tttnn.datastore import index_files
from tttnn.datastore import ivf
from tttnn.datastore import store as store_lib
from tttnn.jobs import build_tokens
from tttnn.reporting import tables

_BLOCK = 1024  # Documents.
# Documents that `dry_run` tries: as few as show how long they are.
_SAMPLE = 64


def run(config, workdir: str) -> None:
  """The job; a store that is finished stays as it is.

  Raises:
    ValueError: for a wrong setting or corpus, a model that does not load, a
      store of another model, or a self-check below store.min_recall.
  """
  path = config.store.path or os.path.join(workdir, 'store')
  shards = _shards(config)
  options = config.build
  part = begun.Part(options.shard, options.begin, options.end)
  if part == begun.Part():
    part = None
  imported = ()
  if options.import_index:
    imported = jsonl.expand(options.import_index)
    if part or config.store.key:
      raise ValueError(
        f'build.import_index={options.import_index!r} leaves nothing to embed '
        f'in {part or config.store.key}'
      )
  device.keep_compiled_programs()
  mesh = sharding.from_config(config.mesh)
  if config.store.key:
    make = functools.partial(build_tokens.make, config, mesh)
  else:
    make = functools.partial(_documents, config, mesh, imported)
  store = make(path, shards, part, _options(config), _filler(config, mesh))
  if store is not None:
    print(tables.render_text(_check_table(store.index.self_check)))
  elif not config.dry_run:
    print(
      f'build: {path}: {part} is embedded; when all parts are, build without '
      'build.shard, .begin and .end writes the index'
    )


def _shards(config) -> list[str]:
  """The files that the store is of."""
  if config.store.key and config.pairs.train:
    return jsonl.expand(config.pairs.train)
  if not config.corpus.train:
    raise ValueError(
      'build needs corpus.train, JSONL paths or globs; or with store.key '
      'pairs.train, files that job=tokenize made'
    )
  return jsonl.expand(config.corpus.train)


def _documents(
  config, mesh, imported, path, shards, part, chosen, filler
) -> store_lib.Store | None:
  """Builds a store of documents; None where it is only a part, or a dry run."""
  embedder = embed.load(**config.embedder, mesh=mesh)

  def vectors(blocks):
    return embedder.blocks(blocks, config.build.batch_size)

  if config.dry_run:
    if config.build.shard >= 0:
      shards = shards[config.build.shard : config.build.shard + 1]
    _dry_run(config, embedder, vectors, shards)
    return None
  with tqdm.tqdm(desc='build', unit=' documents') as bar:

    def progress(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    store = build.build(
      path,
      shards,
      vectors,
      dim=embedder.dim,
      fingerprint=embedder.fingerprint(),
      options=dataclasses.replace(chosen, block=chosen.block or _BLOCK),
      part=part,
      imported=imported,
      filler=filler,
      progress=progress,
    )
  if store is None:
    return None
  manifest = store.manifest
  print(
    f'build: {path}: {manifest.rows:,} documents, {manifest.dim} dimensions, '
    f'index {store.index.spec}'
  )
  others = manifest.rows - manifest.searchable - manifest.malformed
  if manifest.malformed:
    print(f'  {manifest.malformed:,} malformed lines were left out')
  if others:
    print(f'  {others:,} documents whose embedding is not finite were left out')
  return store


def _options(config) -> build.Options:
  return build.Options(
    index=config.store.index or 'Flat',
    metric=config.store.metric,
    dtype=config.store.dtype,
    block=config.build.block,
    seed=config.seed,
    keep_vectors=config.store.keep_vectors,
    min_recall=config.store.min_recall,
    on_error=config.corpus.on_error,
    cache=config.corpus.cache,
    threads=config.serve.threads,
  )


def _filler(config, mesh) -> index_files.Filler:
  coarse = config.build.coarse
  if coarse not in ('host', 'device'):
    raise ValueError(f'build.coarse={coarse!r} is neither host nor device')
  if coarse == 'host':
    return index_files.ON_HOST
  return ivf.OnDevice(config.seed, mesh)


def _check_table(found) -> list[list[str]]:
  return [
    ['self-check', 'found'],
    [
      f'recall@1 of {found["queries"]} stored vectors',
      f'{found["recall_at_1"]:.4f}',
    ],
    [f'recall@{found["k"]}', f'{found["recall"]:.4f}'],
    [
      'largest relative error of a distance',
      f'{found["max_distance_error"]:.1e}',
    ],
  ]


def _dry_run(config, embedder, vectors, shards) -> None:
  texts, documents = sample.look(shards, _SAMPLE, config.corpus.on_error)
  end = config.build.end or documents
  documents = max(0, min(end, documents) - config.build.begin)
  compiling, seconds = estimate.timed(lambda: next(vectors([texts])))
  batches = embedder.usage.batches / embedder.usage.texts
  size = 4 if config.store.dtype == 'float32' else 2
  print(
    f'  on disk         {2 * documents * embedder.dim * size / 1e9:.2f} GB '
    'of vectors and Flat index'
  )
  estimate.show(
    'build',
    documents=documents,
    steps=math.ceil(documents * batches),
    memory=estimate.num_bytes(embedder.params),
    seconds=compiling + seconds * documents / len(texts),
  )
