"""What the rest of the code sees of an encoder-decoder: functions of params.

Beside `tttnn.models.model`, whose models have one text to read, not two.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tttnn.models import layers
from tttnn.models import loss
from tttnn.models import t5

# What a token's key may be: input and output of the feed-forward network in the
# decoder's last block, after that block's norm and before the residual is
# added; or the hidden state after the final norm, before any scale of the head.
KEYS = ('ffn_input', 'ffn_output', 'final_hidden')

Params = dict[str, Any]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
  """T5 and its sizes; hashable, so it can be a static argument.

  Parameters are nested dicts of float32 arrays whose paths, joined by dots, are
  the names in a Hugging Face checkpoint.

  Targets are what the decoder is to write, `</s>` included. It reads them
  shifted to the right, behind the configuration's decoder_start_token_id: what
  a function gives at position u is of targets[u], given those before it and the
  whole input. Padding follows the targets; any token id will do there.

  Attributes:
    config: the sizes.
    dtype: what the layers compute in, as of `tttnn.models.model.Model`.
    remat: as of `tttnn.models.model.Model`.
  """

  config: t5.Config
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self):
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'dtype {self.dtype!r} is not float32 or bfloat16')

  @property
  def architecture(self) -> Any:
    """The module that implements it."""
    return t5

  @property
  def vocab_size(self) -> int:
    return self.config.vocab_size

  @property
  def width(self) -> int:
    return self.config.width

  def init(self, key: jax.Array) -> Params:
    """New float32 parameters, drawn as Hugging Face draws them."""

    def everything(module, tokens_BxT):
      return module.head(module(tokens_BxT, None, tokens_BxT)[0])

    tokens_BxT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    # Lazily: draws the parameters without running the model on anything.
    variables = self._module().lazy_init(key, tokens_BxT, method=everything)
    return variables['params']

  def encode(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states [B, T, D] of the encoder, in `dtype`.

    Args:
      params: as `init` makes them.
      inputs_BxT: token ids; one out of range gives NaN.
      mask_BxT: true at real tokens, false at padding, which is not attended to;
        None = no padding.
    """
    with layers.precision(self.dtype):
      return self._module().apply(
        {'params': params}, inputs_BxT, mask_BxT, method='encode'
      )

  def logits(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
  ) -> jax.Array:
    """Logits [B, U, V] in float32; arguments as `log_likelihood`."""
    hidden_BxUxD, _ = self._read(params, inputs_BxT, mask_BxT, targets_BxU)
    with layers.precision(self.dtype):
      return loss.vocabulary_logits(*self._head(params, hidden_BxUxD))

  def log_likelihood(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """log p(targets[u] | targets[..u-1], inputs) in nats, [B, U] float32.

    Values at padding are finite and mean nothing.

    Args:
      params: as `init` makes them.
      inputs_BxT: as `encode`.
      mask_BxT: as `encode`.
      targets_BxU: what the decoder is to write.
      dropout_key: switches the configuration's dropout on.
    """
    hidden_BxUxD, _ = self._read(
      params, inputs_BxT, mask_BxT, targets_BxU, dropout_key
    )
    return self._score(params, hidden_BxUxD, targets_BxU)

  def cross_entropy(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
    weights_BxU: jax.Array,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """-sum(weights * log_likelihood(...)) over all of B and U, in nats.

    What training goes down: cheaper to differentiate than `log_likelihood`.
    """
    hidden_BxUxD, _ = self._read(
      params, inputs_BxT, mask_BxT, targets_BxU, dropout_key
    )
    with layers.precision(self.dtype):
      head = self._head(params, hidden_BxUxD)
      return loss.cross_entropy(*head, targets_BxU, weights_BxU)

  def keys(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
    kind: str,
  ) -> jax.Array:
    """The key of each target, [B, U, D] float32.

    Args:
      params: as `init` makes them; the head need not be there.
      inputs_BxT: as `encode`.
      mask_BxT: as `encode`.
      targets_BxU: as `log_likelihood`.
      kind: one of KEYS.

    Raises:
      ValueError: another `kind`.
    """
    _, keys = self._read(params, inputs_BxT, mask_BxT, targets_BxU)
    return _of_kind(keys, kind)

  def log_likelihood_and_keys(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
    kind: str,
  ) -> tuple[jax.Array, jax.Array]:
    """What `log_likelihood` and `keys` give, in one pass."""
    hidden_BxUxD, keys = self._read(params, inputs_BxT, mask_BxT, targets_BxU)
    keys_BxUxD = _of_kind(keys, kind)
    return self._score(params, hidden_BxUxD, targets_BxU), keys_BxUxD

  def init_cache(
    self,
    params: Params,
    hidden_BxTxD: jax.Array,
    mask_BxT: jax.Array | None,
    length: int,
    beams: int = 1,
  ) -> Cache:
    """A cache for texts of up to `length` tokens, of which there are none yet.

    The keys and values of cross-attention are computed here, once.

    Args:
      params: as `init` makes them.
      hidden_BxTxD: as `encode` gives them.
      mask_BxT: as of `encode`.
      length: of the longest text, decoder_start_token_id included and the last
        token, which is not read, left out.
      beams: texts to each input. Row b * beams + i is the i-th of input b.
    """
    rows, tokens = hidden_BxTxD.shape[:2]
    if mask_BxT is None:
      mask_BxT = jnp.ones((rows, tokens), bool)
    token_Bx1 = jnp.zeros((rows, 1), jnp.int32)
    with layers.precision(self.dtype):
      # One token, for the shapes of what it leaves, which nobody else reads.
      _, kept = self._module().apply(
        {'params': params},
        token_Bx1,
        hidden_BxTxD,
        mask_BxT,
        token_Bx1,
        method='decode',
        mutable=['cache', 'source'],
      )

    def empty(x_BxHx1xK):
      _, heads, _, size = x_BxHx1xK.shape
      return jnp.zeros((rows * beams, heads, length, size), x_BxHx1xK.dtype)

    return {
      'length': jnp.zeros((), jnp.int32),
      'mask': mask_BxT,
      'source': kept['source'],
      'attention': jax.tree.map(empty, kept['cache']),
    }

  def decode(
    self,
    params: Params,
    tokens_RxU: jax.Array,
    cache: Cache,
    rows_R: jax.Array | None = None,
    *,
    kind: str = 'final_hidden',
  ) -> tuple[jax.Array, jax.Array, Cache]:
    """Reads tokens that go on from those in the cache.

    Args:
      params: as `init` makes them.
      tokens_RxU: the next tokens of each row of the cache; the first one of all
        is decoder_start_token_id.
      cache: of the tokens before; it must have places for these.
      rows_R: the row of the cache that each row goes on from, of the same
        input; None = its own.
      kind: of the key, one of KEYS.

    Returns:
      Logits [R, V] of what follows the last token of each row, that token's key
      [R, D], both float32, and the cache with the tokens.

    Raises:
      ValueError: another `kind`, rows that are not those of the cache, or more
        tokens than it has places.
    """
    rows, tokens = tokens_RxU.shape
    attention = cache['attention']
    held, _, places, _ = jax.tree.leaves(attention)[0].shape
    if rows != held or tokens > places:
      raise ValueError(
        f'{rows} rows of {tokens} tokens do not fit a cache of {held} rows of '
        f'{places} tokens'
      )
    if rows_R is not None:
      attention = jax.tree.map(lambda x: x[rows_R], attention)
    position_RxU = jnp.broadcast_to(
      cache['length'] + jnp.arange(tokens), tokens_RxU.shape
    )
    with layers.precision(self.dtype):
      (hidden_RxUxD, keys), kept = self._module().apply(
        {'params': params, 'source': cache['source'], 'cache': attention},
        tokens_RxU,
        None,
        cache['mask'],
        position_RxU,
        method='decode',
        mutable=['cache'],
      )
      head = self._head(params, hidden_RxUxD[:, -1:])
      logits_RxV = loss.vocabulary_logits(*head)[:, 0]
    new = {'length': cache['length'] + tokens, 'attention': kept['cache']}
    return logits_RxV, _of_kind(keys, kind)[:, -1], cache | new

  def _read(self, params, inputs_BxT, mask_BxT, targets_BxU, dropout_key=None):
    """(hidden states [B, U, D], keys by kind) of the decoder."""
    train = dropout_key is not None
    start_Bx1 = jnp.full_like(
      targets_BxU[:, :1], self.config.decoder_start_token_id
    )
    tokens_BxU = jnp.concatenate([start_Bx1, targets_BxU[:, :-1]], axis=1)
    with layers.precision(self.dtype):
      return self._module().apply(
        {'params': params},
        inputs_BxT,
        mask_BxT,
        tokens_BxU,
        train,
        rngs={'dropout': dropout_key} if train else None,
      )

  def _module(self) -> Any:
    return t5.Module(self.config, self.dtype, self.remat)

  def _head(self, params, hidden_BxUxD):
    return self._module().apply({'params': params}, hidden_BxUxD, method='head')

  def _score(self, params, hidden_BxUxD, targets_BxU):
    with layers.precision(self.dtype):
      head = self._head(params, hidden_BxUxD)
      return loss.token_log_likelihood(*head, targets_BxU)


def _of_kind(keys, kind: str) -> jax.Array:
  if kind not in KEYS:
    raise ValueError(f'there is no key {kind!r}; there are {list(KEYS)}')
  return keys[kind].astype(jnp.float32)
