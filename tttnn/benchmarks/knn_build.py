"""The `knn_lm` benchmark: making the keys of a store beside the forward pass.

Both sides read the same tokens, in windows of the whole context. The forward
pass alone has its batches ready, ends where the keys are, and keeps nothing.
"""

from collections.abc import Sequence
import os
import shutil
import time

import jax
import numpy as np

from tttnn import language_model
from tttnn.benchmarks import bench
from tttnn.benchmarks import knn_world
from tttnn.corpus import buckets
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.datastore import build as build_lib
from tttnn.datastore import build_tokens
from tttnn.datastore import keys as keys_lib
from tttnn.datastore import store as store_lib
from tttnn.datastore import text_source
from tttnn.jobs import knn
from tttnn.scoring import rolling

FORWARD, STORE, WHOLE = 'forward pass', 'store', 'with index'
# Of a batch of the forward pass, on CPU and elsewhere: as `keys` has them.
_TOKENS = 2048, 32768
_CHECKED = 4  # Texts.
# Largest difference of a component, of the length of a key. float16 keeps 11
# digits of it.
TOLERANCE = 1e-3


def measure(world: knn_world.World) -> dict:
  """Seconds of each side, in turns.

  Raises:
    ValueError: if keys in the store are not those of the model.
  """
  model = world.config.model
  kind = world.config.store.key
  keys = keys_lib.load(model.path, kind, dtype=_dtype(model.dtype))
  texts, encoded = _part(world, keys)
  path = world.directory / 'part.jsonl'
  knn_world.write_texts(path, texts)
  prepared = batches(
    [
      window
      for ids in encoded
      for window in rolling.windows(ids, keys.context, keys.start)
    ],
    keys.context,
  )
  forward = jax.jit(lambda *args: keys.model.keys(*args, kind))

  def pass_alone():
    begin = time.perf_counter()
    jax.block_until_ready([forward(keys.params, batch) for batch in prepared])
    return {FORWARD: time.perf_counter() - begin}

  def store(check: bool = False):
    try:
      return _build(world, keys, os.fspath(path), texts if check else ())
    finally:
      shutil.rmtree(world.directory / 'part', ignore_errors=True)

  knn_world.say('making keys')
  sides = {FORWARD: pass_alone, STORE: store}
  pass_alone()  # Compiles, as the next one does.
  store(check=True)
  padding = keys.usage.padding
  seconds = {FORWARD: [], STORE: [], WHOLE: []}
  for repeat in range(world.config.benchmark.repeats):
    for side in bench.rotated(list(sides), repeat):
      for name, taken in sides[side]().items():
        seconds[name].append(taken)
  return {
    'tokens': sum(map(len, encoded)),
    'texts': len(texts),
    'padding': padding,
    'forward_padding': 1
    - sum(map(len, encoded)) / sum(batch.size for batch in prepared),
    'seconds': seconds,
  }


def batches(
  windows: Sequence[rolling.Window], context: int
) -> list[np.ndarray]:
  """Inputs in batches of about as many tokens each, the longest first."""
  most = max(context, _TOKENS[jax.default_backend() != 'cpu'])
  inputs = sorted((window.inputs for window in windows), key=len, reverse=True)
  made, begin = [], 0
  while begin < len(inputs):
    size = buckets.padded(len(inputs[begin]), context, fine=True)
    rows = inputs[begin : begin + most // size]
    tokens_BxT = np.zeros((most // size, size), np.int32)
    for row, ids in enumerate(rows):
      tokens_BxT[row, : len(ids)] = ids
    made.append(tokens_BxT)
    begin += len(rows)
  return made


def _dtype(name: str) -> str:
  """As `build` with store.key has it."""
  return 'float32' if name == 'auto' else name


def _part(world: knn_world.World, keys: keys_lib.Keys):
  """The first texts of the store that have so many tokens, and these."""
  texts, encoded, count = [], [], 0
  corpus = jsonl.read([world.config.corpus.train])
  for text in corpus.iter_texts():
    if count >= world.shape.part:
      break
    (ids,) = keys.encode([text])
    texts.append(text)
    encoded.append(ids)
    count += len(ids)
  return texts, encoded


def _build(
  world: knn_world.World, keys: keys_lib.Keys, path: str, checked: Sequence[str]
) -> dict[str, float]:
  """Seconds until the keys are written, and until the store is finished."""
  begin = end = time.perf_counter()

  def progress(done: int, total: int) -> None:
    nonlocal end
    end = time.perf_counter()

  store = build_tokens.build(
    world.directory / 'part',
    [path],
    text_source.Texts(keys, 'error'),
    keys,
    options=build_lib.Options(dtype=build_tokens.DTYPE, block=1 << 15),
    progress=progress,
  )
  whole = time.perf_counter() - begin
  if checked:
    _check(world, store, checked[:_CHECKED])
  return {STORE: end - begin, WHOLE: whole}


def _check(
  world: knn_world.World, store: store_lib.Store, texts: Sequence[str]
) -> None:
  """Raises `ValueError` unless the store begins with the keys of the texts."""
  model = language_model.load(world.config)
  reader = knn.Reader(model, world.config.store.key)
  begin = 0
  for text in texts:
    case = model.case(documents_lib.Document(0, '', text), 'whole', 0)
    read = reader(case)
    ids = np.arange(begin, begin + len(case.tokens))
    stored_TxD = store.gather(ids)
    apart = (
      np.abs(stored_TxD - read.keys_TxD).max()
      / np.linalg.norm(read.keys_TxD, axis=1).mean()
    )
    values = store.tokens.values(ids).tolist()
    if values != list(case.tokens) or not apart <= TOLERANCE:
      raise ValueError(
        f'keys of the store from {begin} on are {apart:.1e} of their length '
        f'away from those of the model, more than {TOLERANCE:.0e}'
      )
    begin += len(case.tokens)
