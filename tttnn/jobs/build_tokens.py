"""The job `build` with store.key: a store of the tokens of a corpus."""

import dataclasses
import math
import time

import tqdm

from tttnn import estimate
from tttnn.corpus import sample
from tttnn.datastore import build
from tttnn.datastore import build_tokens
from tttnn.datastore import keys as keys_lib
from tttnn.datastore import store as store_lib
from tttnn.scoring import rolling

_BLOCK = 1 << 15  # Tokens.
_SAMPLE = 64  # Documents that `dry_run` tries.


def make(
  config, mesh, path: str, shards, part, options: build.Options, filler
) -> store_lib.Store | None:
  """Builds a store of tokens; None where it is only a part, or a dry run.

  Arguments as of `build_tokens.build`, which see for errors too.
  """
  model = config.model
  keys = keys_lib.load(
    model.path,
    config.store.key,
    revision=model.revision,
    # Of bfloat16, float16 would keep eight digits in place of eleven.
    dtype='float32' if model.dtype == 'auto' else model.dtype,
    mesh=mesh,
  )
  options = dataclasses.replace(
    options, dtype=build_tokens.DTYPE, block=options.block or _BLOCK
  )
  if config.dry_run:
    if config.build.shard >= 0:
      shards = shards[config.build.shard : config.build.shard + 1]
    _dry_run(config, keys, options, shards)
    return None
  begin = end = time.monotonic()
  with tqdm.tqdm(desc='build', unit=' tokens', unit_scale=True) as bar:

    def progress(done: int, total: int) -> None:
      nonlocal end
      end = time.monotonic()
      bar.total = total
      bar.update(done - bar.n)

    store = build_tokens.build(
      path,
      shards,
      keys,
      options=options,
      rows=config.build.batch_size,
      window=config.store.window,
      stride=config.store.stride,
      part=part,
      filler=filler,
      progress=progress,
    )
  made = keys.usage.tokens
  if made:
    print(
      f'build: {made:,} keys in {estimate.duration(end - begin)}, '
      f'{made / (end - begin):,.0f} tokens/s, {keys.usage.padding:.0%} of what '
      'was computed is padding or context'
    )
  if store is None:
    return None
  manifest = store.manifest
  print(
    f'build: {path}: {manifest.rows:,} tokens of {manifest.sequences:,} '
    f'documents, keys {manifest.keys} of {manifest.dim} dimensions, index '
    f'{store.index.spec}'
  )
  if manifest.malformed:
    print(f'  {manifest.malformed:,} malformed lines were left out')
  return store


def _dry_run(config, keys, options: build.Options, shards) -> None:
  size, stride = config.store.window or keys.context, config.store.stride
  rolling.check(size, stride, keys.context, 'store')
  texts, documents = sample.look(shards, _SAMPLE, config.corpus.on_error)
  encoded = keys.encode(texts)
  tokens = round(sum(map(len, encoded)) * documents / len(texts))
  windows = [
    window
    for ids in encoded
    for window in rolling.windows(ids, size, keys.start, stride=stride)
  ]
  if not windows:
    raise ValueError(f'not one token in {len(texts)} documents of the corpus')
  batch_size = config.build.batch_size
  compiling, seconds = estimate.timed(
    lambda: next(keys.blocks([windows], batch_size))
  )
  size = keys.dim * (2 + 4 * (options.index == store_lib.FLAT)) + 4
  print(f'  tokens          {tokens:,}')
  print(
    f'  on disk         {tokens * size / 1e9:.2f} GB of keys, values and, '
    'where it is Flat, the index'
  )
  estimate.show(
    'build',
    documents=documents,
    steps=math.ceil(tokens / options.block),
    memory=estimate.num_bytes(keys.params),
    seconds=compiling + seconds * documents / len(texts),
  )
