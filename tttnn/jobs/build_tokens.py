"""The job `build` with store.key: a store of the tokens of a corpus."""

from collections.abc import Sequence
import dataclasses
import math
import time

import tqdm

from tttnn import estimate
from tttnn import pair_model
from tttnn.corpus import pairs as pairs_lib
from tttnn.corpus import sample
from tttnn.datastore import build
from tttnn.datastore import build_tokens
from tttnn.datastore import keys as keys_lib
from tttnn.datastore import pair_keys
from tttnn.datastore import pair_source
from tttnn.datastore import store as store_lib
from tttnn.datastore import text_source
from tttnn.scoring import rolling

_BLOCK = 1 << 15  # Tokens.
_SAMPLE = 64  # Documents that `dry_run` tries.


def make(
  config, mesh, path: str, shards, part, options: build.Options, filler
) -> store_lib.Store | None:
  """Builds a store of tokens; None where it is only a part, or a dry run.

  Arguments as of `build_tokens.build`, which see for errors too. Where
  pairs.train names the files, the tokens are those of the pairs' outputs.
  """
  source, keys = (_of_pairs if config.pairs.train else _of_texts)(
    config, mesh, shards
  )
  options = dataclasses.replace(
    options, dtype=build_tokens.DTYPE, block=options.block or _BLOCK
  )
  if config.dry_run:
    if config.build.shard >= 0:
      shards = shards[config.build.shard : config.build.shard + 1]
    estimated = _dry_run_pairs if config.pairs.train else _dry_run
    estimated(config, keys, options, shards)
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
      source,
      keys,
      options=options,
      rows=config.build.batch_size,
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
  texts = 'outputs' if manifest.pairs else 'documents'
  print(
    f'build: {path}: {manifest.rows:,} tokens of {manifest.sequences:,} '
    f'{texts}, keys {manifest.keys} of {manifest.dim} dimensions, index '
    f'{store.index.spec}'
  )
  if manifest.malformed:
    print(f'  {manifest.malformed:,} malformed lines were left out')
  return store


def _loading(config, mesh) -> dict:
  """Arguments that both kinds of models are loaded with."""
  return {
    'revision': config.model.revision,
    # Of bfloat16, float16 would keep eight digits in place of eleven.
    'dtype': 'float32' if config.model.dtype == 'auto' else config.model.dtype,
    'mesh': mesh,
  }


def _of_texts(config, mesh, shards) -> tuple[text_source.Texts, keys_lib.Keys]:
  del shards
  path, kind = config.model.path, config.store.key
  keys = keys_lib.load(path, kind, **_loading(config, mesh))
  source = text_source.Texts(
    keys,
    config.corpus.on_error,
    window=config.store.window,
    stride=config.store.stride,
  )
  return source, keys


def _of_pairs(
  config, mesh, shards
) -> tuple[pair_source.Outputs, pair_keys.PairKeys]:
  if config.store.window or config.store.stride:
    raise ValueError(
      f'store.window={config.store.window} and .stride={config.store.stride} '
      'are of documents, and pairs.train names pairs, which are read whole'
    )
  opened = [pairs_lib.open(path) for path in shards]
  model = pair_model.load(
    config.model.path, opened[0].kind, **_loading(config, mesh)
  )
  lengths = [model.longest(pairs) for pairs in opened]
  longest = tuple(max(side) for side in zip(*lengths, strict=True))
  keys = pair_keys.PairKeys(model, config.store.key, longest)
  return pair_source.Outputs(), keys


def _dry_run(config, keys, options: build.Options, shards) -> None:
  size, stride = config.store.window or keys.context, config.store.stride
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
  _show(config, keys, options, windows, documents, len(texts), tokens)


def _dry_run_pairs(config, keys, options: build.Options, shards) -> None:
  opened = [pairs_lib.open(path) for path in shards]
  total = sum(map(len, opened))
  pieces = []
  for pairs in opened:
    step = -(-len(pairs) * len(opened) // _SAMPLE)
    pieces += [
      pair_source.Piece(*pairs[i], 0) for i in range(len(pairs))[::step]
    ]
  tokens = sum(len(piece.output) for piece in pieces)
  tokens = round(tokens * total / len(pieces))
  _show(config, keys, options, pieces, total, len(pieces), tokens)


def _show(
  config,
  keys,
  options: build.Options,
  pieces: Sequence[build_tokens.Piece],
  documents: int,
  tried: int,
  tokens: int,
) -> None:
  """The estimate, by the pieces of so many documents of all."""
  batch_size = config.build.batch_size
  compiling, seconds = estimate.timed(
    lambda: next(keys.blocks([pieces], batch_size))
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
    seconds=compiling + seconds * documents / tried,
  )
