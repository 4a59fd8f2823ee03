"""Attention that keeps the keys and values of the tokens before.

So that a token of a text that is being written costs a pass of one token.
"""

from collections.abc import Callable

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
  bias_HxTxS: jax.Array | None = None,
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
    bias_HxTxS: as `layers.attention`, for each place of the cache.
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
  age_BxTxS = position_BxT[..., None] - jnp.arange(key_BxHxSxK.shape[2])
  seen_BxTxS = age_BxTxS >= 0
  if window:
    seen_BxTxS &= age_BxTxS < window
  return _attend(
    query_BxTxHxK, key_BxHxSxK, value_BxHxSxK, seen_BxTxS, scale, bias_HxTxS
  )


def places(module: nn.Module, tokens: int) -> int:
  """The tokens that the cache of `module` has places for.

  As many as the `tokens` that are new where it has none.
  """
  if not module.has_variable('cache', 'key'):
    return tokens
  return module.get_variable('cache', 'key').shape[2]


def cross_attention(
  module: nn.Module,
  query_RxTxHxK: jax.Array,
  make: Callable[[str], jax.Array],
  mask_BxS: jax.Array,
  *,
  scale: float,
) -> jax.Array:
  """Attention to another text that stays the same, [R, T, H, K].

  The `source` collection of `module` holds the keys and values of B texts. Each
  is attended to by R / B rows, which lie together.

  Args:
    module: the attention module whose cache it is.
    query_RxTxHxK: queries.
    make: 'key' or 'value' -> those of the texts, [B, S, H, K]; not called where
      the collection has them.
    mask_BxS: true where a token of a text may be attended to.
    scale: as `layers.attention`.
  """
  key_BxHxSxK, value_BxHxSxK = (
    module.variable('source', n, lambda n=n: jnp.swapaxes(make(n), 1, 2)).value
    for n in ('key', 'value')
  )
  # No query sees another: those of a text may pass as one sequence.
  query_BxTxHxK = query_RxTxHxK.reshape(
    len(mask_BxS), -1, *query_RxTxHxK.shape[2:]
  )
  y_BxTxHxK = _attend(
    query_BxTxHxK,
    key_BxHxSxK,
    value_BxHxSxK,
    mask_BxS[:, None].astype(bool),
    scale,
  )
  return y_BxTxHxK.reshape(query_RxTxHxK.shape)


def _attend(
  query_BxTxHxK, key_BxHxSxK, value_BxHxSxK, seen_BxTxS, scale, bias=None
):
  scores_BxHxTxS = scale * jnp.einsum(
    'BTHK,BHSK->BHTS',
    query_BxTxHxK,
    key_BxHxSxK,
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    scores_BxHxTxS += bias
  scores_BxHxTxS = jnp.where(
    seen_BxTxS[:, None], scores_BxHxTxS, jnp.finfo(jnp.float32).min
  )
  weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1)
  return jnp.einsum(
    'BHTS,BHSK->BTHK',
    weights_BxHxTxS.astype(value_BxHxSxK.dtype),
    value_BxHxSxK,
  )
