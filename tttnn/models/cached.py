"""Attention that keeps the keys and values of the tokens before.

So that a token of a text that is being written costs a pass of one token.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp


def attention(
  module: nn.Module,
  query_BxTxHxK: jax.Array,
  key_BxTxHxK: jax.Array,
  value_BxTxHxK: jax.Array,
  position_BxT: jax.Array,
  *,
  scale: float,
  window: int = 0,
) -> jax.Array:
  """Causal attention of new tokens to those before them, [B, T, H, K].

  The `cache` collection of `module` holds the keys and values of the tokens so
  far, heads first, and takes up those of the new tokens. A token's place there
  is its position, so that what lies behind a token's position is never seen:
  neither padding, which later tokens write over, nor what was never written.

  Args:
    module: the attention module whose cache it is; where it has none, one with
      a place for each of the T tokens is made.
    query_BxTxHxK: queries of the new tokens.
    key_BxTxHxK: their keys.
    value_BxTxHxK: their values.
    position_BxT: of the new tokens, by row; one beyond the cache is dropped.
    scale: as `layers.attention`.
    window: as `layers.attention`.
  """
  row_Bx1 = jnp.arange(position_BxT.shape[0])[:, None]

  def remember(name, new_BxTxHxK):
    past = module.variable(
      'cache', name, lambda: jnp.swapaxes(new_BxTxHxK, 1, 2)
    )
    past.value = past.value.at[row_Bx1, :, position_BxT].set(
      new_BxTxHxK, mode='drop'
    )
    return past.value

  key_BxHxSxK = remember('key', key_BxTxHxK)
  value_BxHxSxK = remember('value', value_BxTxHxK)
  scores_BxHxTxS = scale * jnp.einsum(
    'BTHK,BHSK->BHTS',
    query_BxTxHxK,
    key_BxHxSxK,
    preferred_element_type=jnp.float32,
  )
  age_BxTxS = position_BxT[..., None] - jnp.arange(key_BxHxSxK.shape[2])
  seen_BxTxS = age_BxTxS >= 0
  if window:
    seen_BxTxS &= age_BxTxS < window
  scores_BxHxTxS = jnp.where(
    seen_BxTxS[:, None], scores_BxHxTxS, jnp.finfo(jnp.float32).min
  )
  weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1)
  return jnp.einsum(
    'BHTS,BHSK->BTHK',
    weights_BxHxTxS.astype(value_BxHxSxK.dtype),
    value_BxHxSxK,
  )
