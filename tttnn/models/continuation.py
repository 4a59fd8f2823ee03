"""A causal LM seen as an encoder-decoder: its output goes on from the input.

With the functions of `seq2seq.Model`, so that whatever reads or writes pairs
takes either. There is no encoder: an input is read with the output behind it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tttnn.models import model as model_lib

Params = model_lib.Params
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
  """A causal LM; hashable, so it can be a static argument.

  Inputs stand at the beginning of their rows, each with a token at least. What
  a function gives at position u is of targets[u], given those before it and the
  whole input: at u = 0 that is what the input's last token predicts. Padding
  follows the targets; any token id will do there.

  Attributes:
    lm: the model itself.
  """

  lm: model_lib.Model

  @property
  def config(self) -> Any:
    return self.lm.config

  @property
  def dtype(self) -> str:
    return self.lm.dtype

  @property
  def vocab_size(self) -> int:
    return self.lm.vocab_size

  @property
  def width(self) -> int:
    return self.lm.width

  def encode(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """The inputs as they are, for `init_cache`."""
    del params, mask_BxT
    return inputs_BxT

  def log_likelihood(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
  ) -> jax.Array:
    """log p(targets[u] | targets[..u-1], inputs) in nats, [B, U] float32.

    Values at padding are finite and mean nothing.

    Args:
      params: of the LM.
      inputs_BxT: token ids.
      mask_BxT: true at real tokens, false at the padding behind them; None = no
        padding.
      targets_BxU: what goes on.

    Raises:
      ValueError: nothing fits the context; where padding alone exceeds it, what
        it holds means nothing.
    """
    # Of all kinds of keys the one that costs nothing, and is not used.
    return self.log_likelihood_and_keys(
      params, inputs_BxT, mask_BxT, targets_BxU, 'final_hidden'
    )[0]

  def keys(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
    kind: str,
  ) -> jax.Array:
    """The key of each target, [B, U, D] float32; see `model.Model.keys`."""
    tokens_BxS, positions_BxU = self._join(inputs_BxT, mask_BxT, targets_BxU)
    keys_BxSxD = self.lm.keys(params, tokens_BxS, kind)
    keys_BxUxD = jnp.take_along_axis(
      keys_BxSxD, positions_BxU[..., None], axis=1
    )
    return keys_BxUxD.astype(jnp.float32)

  def log_likelihood_and_keys(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    targets_BxU: jax.Array,
    kind: str,
  ) -> tuple[jax.Array, jax.Array]:
    """What `log_likelihood` and `keys` give, in one pass."""
    tokens_BxS, positions_BxU = self._join(inputs_BxT, mask_BxT, targets_BxU)
    scores_BxU, keys_BxUxD = self.lm.scored_keys(
      params, tokens_BxS, targets_BxU, kind, positions_BxK=positions_BxU
    )
    return scores_BxU, keys_BxUxD.astype(jnp.float32)

  def init_cache(
    self,
    params: Params,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    length: int,
    beams: int = 1,
  ) -> Cache:
    """A cache for outputs of up to `length` tokens, of which there are none.

    All of an input but its last token is read here, once.

    Args:
      params: of the LM.
      inputs_BxT: as `log_likelihood`.
      mask_BxT: as `log_likelihood`.
      length: of the longest output. A token that exceeds the context, behind
        the longest input, is not kept: nothing that follows it means anything.
      beams: outputs to each input. Row b * beams + i is the i-th of input b.
    """
    rows, tokens = inputs_BxT.shape
    length_B = _lengths(inputs_BxT, mask_BxT)
    # The last token is the first to be decoded.
    cache = self.lm.init_cache(rows, min(tokens + length, self.lm.context))
    _, cache = self.lm.decode(params, inputs_BxT, cache, length_B - 1)
    last_Bx1 = jnp.take_along_axis(inputs_BxT, length_B[:, None] - 1, axis=1)
    return jax.tree.map(
      lambda x: jnp.repeat(x, beams, axis=0),
      {'cache': cache, 'last': last_Bx1, 'begun': jnp.zeros(rows, bool)},
    )

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
      params: of the LM.
      tokens_RxU: the next tokens of each row of the cache. The first one of all
        stands for the last token of the input, whatever it is.
      cache: of the tokens before.
      rows_R: the row of the cache that each row goes on from; None = its own.
      kind: of the key.

    Returns:
      Logits [R, V] of what follows the last token of each row, that token's key
      [R, D], both float32, and the cache with the tokens.

    Raises:
      ValueError: as `model.Model.decode_keys`.
    """
    if rows_R is not None:
      cache = jax.tree.map(lambda x: x[rows_R], cache)
    first_Rx1 = jnp.where(
      cache['begun'][:, None], tokens_RxU[:, :1], cache['last']
    )
    tokens_RxU = jnp.concatenate([first_Rx1, tokens_RxU[:, 1:]], axis=1)
    logits_RxV, keys_RxD, lm_cache = self.lm.decode_keys(
      params, tokens_RxU, cache['cache'], kind=kind
    )
    new = {'cache': lm_cache, 'begun': jnp.ones_like(cache['begun'])}
    return logits_RxV, keys_RxD.astype(jnp.float32), cache | new

  def _join(self, inputs_BxT, mask_BxT, targets_BxU):
    """(inputs with targets behind [B, S], where each target is predicted)."""
    tokens, targets = inputs_BxT.shape[1], targets_BxU.shape[1]
    length_Bx1 = _lengths(inputs_BxT, mask_BxT)[:, None]
    # The last target is predicted, not read.
    size = min(tokens + targets - 1, self.lm.context)
    place_BxS = jnp.arange(size) - length_Bx1  # Among the targets.
    inputs_BxS = jnp.pad(inputs_BxT, ((0, 0), (0, targets)))[:, :size]
    behind_BxS = jnp.take_along_axis(
      targets_BxU, jnp.clip(place_BxS, 0, targets - 1), axis=1
    )
    tokens_BxS = jnp.where(place_BxS < 0, inputs_BxS, behind_BxS)
    positions_BxU = length_Bx1 - 1 + jnp.arange(targets)
    return tokens_BxS, jnp.minimum(positions_BxU, size - 1)


def _lengths(inputs_BxT, mask_BxT) -> jax.Array:
  """Tokens of each input, [B]; at least one."""
  if mask_BxT is None:
    return jnp.full(len(inputs_BxT), inputs_BxT.shape[1])
  return jnp.maximum(jnp.sum(mask_BxT, axis=1, dtype=jnp.int32), 1)
