"""The keys of a store of tokens: states of a language model, as float16.

The key of a token is a state of the model that has read what stands before it
in its text, in windows in which it could be scored (`scoring.rolling`).
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import checkpoint
from tttnn import prefetch
from tttnn import sharding
from tttnn.corpus import buckets
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import build_tokens
from tttnn.datastore import embed
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

LIMIT = 65504  # The largest float16; a key stays below.
# Tokens that a device computes at once, on CPU and elsewhere, at least a window
# of the model's context.
_TOKENS = 2048, 32768


class Keys:
  """A language model with its tokenizer, for its keys: a `build_tokens.Model`.

  Attributes:
    model: its functions of (params, tokens).
    kind: of the keys, see `model.Model.keys`.
    dim: components of a key.
    context: tokens of the longest window.
    start: the id that stands before a text.
    computed: the dtype that the model computes in.
    params: of the model, where it computes.
    usage: since it was made; windows stand for texts there.
  """

  def __init__(
    self,
    model: model_lib.Model,
    params: model_lib.Params,
    tokenizer,
    kind: str,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Takes a causal LM as `checkpoint.load_model` gives it.

    Args:
      model: its functions.
      params: its parameters.
      tokenizer: that goes with it; its end-of-text id stands before a text.
      kind: of the keys.
      mesh: windows spread over `data`, weights over `model`; None: one device.

    Raises:
      ValueError: the model has no such keys, or the tokenizer no end-of-text
        id, or more ids than the model.
    """
    if tokenizer.eos_token_id is None or len(tokenizer) > model.vocab_size:
      raise ValueError(
        f'the tokenizer has {len(tokenizer)} ids and end-of-text id '
        f'{tokenizer.eos_token_id}, the model has {model.vocab_size} ids'
      )
    self.model = model
    self.kind = kind
    self.context = model.context
    self.start = tokenizer.eos_token_id
    self.computed = model.dtype
    self.usage = embed.Usage()
    self._tokenizer = tokenizer
    self._mesh = mesh
    self.params = (
      sharding.shard(params, mesh) if mesh else jax.device_put(params)
    )
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    self.dim = jax.eval_shape(self._keys, self.params, one).shape[-1]
    self._compiled = jax.jit(self._keys)

  def _keys(self, params, tokens_BxT: jax.Array) -> jax.Array:
    return stored(self.model.keys(params, tokens_BxT, self.kind))

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without special ones."""
    return tokenizer_lib.encode(self._tokenizer, texts)

  def fingerprint(self) -> str:
    """sha256 of weights, config and tokenizer, see `store.check_embedder`."""
    return embed.fingerprint(self.model, self.params, self._tokenizer)

  def blocks(
    self, blocks: Iterable[Sequence[rolling.Window]], rows: int = 0
  ) -> Iterator[np.ndarray]:
    """The keys of the targets of blocks of windows, one window behind another.

    What comes of a block depends (by rounding) on its windows and `rows`, but
    not on other blocks. While a block is computed, the next one is read and
    dispatched, so that the device has no pause between them.

    Args:
      blocks: read by another thread, two ahead of what is yielded.
      rows: windows of the whole context that a device computes at once; of
        shorter ones as many more as have no more tokens. 0: what suits it.

    Yields:
      float16 [targets, D] of each block; infinite where a component is not
      below LIMIT in size.
    """
    rows = rows or max(1, at_once() // self.context)
    return in_turn(blocks, lambda block: self._dispatch(block, rows))

  def _dispatch(self, block: list[rolling.Window], rows: int):
    """(which windows, their keys to come) of each batch.

    Longest first: what the last batch has rows too many are then short ones.
    """
    order = sorted(range(len(block)), key=lambda i: -len(block[i].inputs))
    shards = self._mesh.shape['data'] if self._mesh else 1
    begun, begin = [], 0
    while begin < len(order):
      longest = len(block[order[begin]].inputs)
      size = buckets.padded(longest, self.context, fine=True)
      count = shards * (rows * self.context // size)
      chosen = order[begin : begin + count]
      batch = [block[i] for i in chosen]
      begun.append((chosen, self._batch(batch, count, size)))
      begin += count
    return begun

  def _batch(
    self, batch: list[rolling.Window], rows: int, size: int
  ) -> jax.Array:
    """Keys [rows, size, D] to come; those beyond the windows mean nothing."""
    self.usage.texts += len(batch)
    self.usage.batches += 1
    self.usage.tokens += sum(len(window.targets) for window in batch)
    self.usage.computed += rows * size
    tokens_BxT = np.zeros((rows, size), np.int32)
    for row, window in enumerate(batch):
      tokens_BxT[row, : len(window.inputs)] = window.inputs
    if self._mesh:
      axis = 'data' if rows % self._mesh.shape['data'] == 0 else None
      where = jax.NamedSharding(self._mesh, sharding.P(axis))
      tokens_BxT = jax.device_put(tokens_BxT, where)
    keys_BxTxD = self._compiled(self.params, tokens_BxT)
    keys_BxTxD.copy_to_host_async()
    return keys_BxTxD


def at_once() -> int:
  """Tokens that suit a device of the backend."""
  return _TOKENS[jax.default_backend() != 'cpu']


def stored(keys: jax.Array) -> jax.Array:
  """Keys as a store holds them, float16.

  What that cannot hold, and NaN, is infinite, by which it is found.
  """
  fits = jnp.abs(keys) < LIMIT
  return jnp.where(fits, keys, jnp.inf).astype(jnp.float16)


def in_turn(
  blocks: Iterable[Iterable[build_tokens.Piece]],
  dispatch: Callable[
    [list[build_tokens.Piece]], list[tuple[Sequence[int], jax.Array]]
  ],
) -> Iterator[np.ndarray]:
  """The keys of blocks, each being read and dispatched before it is waited for.

  Args:
    blocks: read by another thread, two ahead of what is yielded.
    dispatch: the pieces of a block -> (which of them, their keys to come
      [B, T, D]) of each batch.

  Yields:
    float16 [targets, D] of each block, in the order of its pieces.
  """
  begun = None
  for block in prefetch.prefetch(map(list, blocks), 1):
    begun, before = (block, dispatch(block)), begun
    if before is not None:
      yield _wait(*before)
  if begun is not None:
    yield _wait(*begun)


def _wait(block: list[build_tokens.Piece], begun) -> np.ndarray:
  """The keys of a block in order, when they are there."""
  places = [piece.places for piece in block]
  ends = np.cumsum([place.stop - place.start for place in places])
  dim = begun[0][1].shape[-1]
  out = np.empty((ends[-1], dim), np.float16)
  for chosen, keys_BxTxD in begun:
    keys_BxTxD = np.asarray(keys_BxTxD)
    for i, keys_TxD in zip(chosen, keys_BxTxD, strict=False):
      begin = ends[i] - (places[i].stop - places[i].start)
      out[begin : ends[i]] = keys_TxD[places[i]]
  return out


def load(
  path: str,
  kind: str,
  *,
  revision: str = '',
  dtype: str = 'float32',
  mesh: jax.sharding.Mesh | None = None,
) -> Keys:
  """The keys of a language model in a directory or at a hub id.

  Raises:
    ValueError: without a path, or as `checkpoint.load_model` or `Keys`.
  """
  if not path:
    raise ValueError(
      'model.path is empty, and store.key needs it: name a Hugging Face '
      'directory, a hub id or Orbax checkpoints of a causal LM'
    )
  model, params = checkpoint.load_model(path, revision=revision, dtype=dtype)
  return Keys(model, params, tokenizer_lib.load(path, revision), kind, mesh)
