"""The pieces that the architectures share.

Parameters carry the names of PyTorch's modules (`weight`, `bias`), so that the
dotted path of a leaf is its name in a Hugging Face checkpoint. Weights are
float32 and are cast to the compute dtype where they are used; LayerNorm,
softmax and loss compute in float32.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# A causal text longer than QUERY_BLOCK attends in up to QUERY_BLOCKS blocks of
# queries, each to no more keys than its mask leaves: 5/8 of the [T, T] scores.
QUERY_BLOCK = 256
QUERY_BLOCKS = 4

# Up to this vocabulary the [B, T, V] logits are kept; above, they are made in
# chunks of at most CHUNK tokens and made again for the gradient.
SMALL_VOCABULARY = 8192
CHUNK = 256

_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_new': _tanh_gelu,
  'gelu_fast': _tanh_gelu,
  'gelu_pytorch_tanh': _tanh_gelu,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'swish': jax.nn.silu,
}


class Linear(nn.Module):
  """x @ weight + bias, weight [in, out]."""

  features: int
  std: float
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    weight = self.param('weight', nn.initializers.normal(self.std), shape)
    # As a matrix, whose gradient is faster on CPU than that of [B, T, D].
    y = x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
  """Rows of a table [entries, features] by id; NaN for an id out of range."""

  entries: int
  features: int
  std: float
  dtype: str
  zero_row: int | None = None  # RoBERTa starts its padding rows at zero.

  def setup(self):
    self.weight = self.param(
      'weight', self._initial, (self.entries, self.features)
    )

  def _initial(self, key, shape):
    weight = nn.initializers.normal(self.std)(key, shape)
    if self.zero_row is not None:
      weight = weight.at[self.zero_row].set(0)
    return weight

  def __call__(self, ids: jax.Array) -> jax.Array:
    rows = jnp.take(self.weight, ids, axis=0, mode='fill')
    return rows.astype(self.dtype)


class LayerNorm(nn.Module):
  """Normalises the last axis in float32; returns the dtype it was given."""

  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    weight = self.param('weight', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    y = x.astype(jnp.float32)
    y -= y.mean(axis=-1, keepdims=True)
    variance = jnp.mean(y * y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(variance + self.epsilon)
    return (y * weight + bias).astype(x.dtype)


def attention(
  query_BxTxHxK: jax.Array,
  key_BxTxHxK: jax.Array,
  value_BxTxHxK: jax.Array,
  mask_BxT: jax.Array | None,
  *,
  scale: float,
  causal: bool,
  window: int = 0,
  dropout: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Softmax attention (Vaswani et al. 2017, section 3.2.1), [B, T, H, K].

  Args:
    query_BxTxHxK: queries.
    key_BxTxHxK: keys.
    value_BxTxHxK: values.
    mask_BxT: true where a token may be attended to; None = everywhere.
    scale: factor on the scores.
    causal: whether a token attends to itself and earlier tokens only.
    window: a token attends to itself and window - 1 tokens before it; 0 = all.
    dropout: applied to the attention probabilities.
  """
  tokens = query_BxTxHxK.shape[1]
  position_T = jnp.arange(tokens)
  # Heads first: each product is then one of matrices that lie together.
  query_BxHxTxK, key_BxHxTxK, value_BxHxTxK = (
    jnp.swapaxes(x, 1, 2) for x in (query_BxTxHxK, key_BxTxHxK, value_BxTxHxK)
  )
  outputs = []
  step = max(QUERY_BLOCK, -(-tokens // QUERY_BLOCKS)) if causal else tokens
  for begin in range(0, tokens, step):
    end = min(begin + step, tokens)
    low = max(0, begin - window + 1) if window else 0
    high = end if causal else tokens
    scores_BxHxQxT = scale * jnp.einsum(
      'BHQK,BHTK->BHQT',
      query_BxHxTxK[:, :, begin:end],
      key_BxHxTxK[:, :, low:high],
      preferred_element_type=jnp.float32,
    )
    seen = jnp.ones((1, 1, end - begin, high - low), bool)
    age_QxT = position_T[begin:end, None] - position_T[None, low:high]
    if causal:
      seen &= age_QxT >= 0
    if window:
      seen &= age_QxT < window
    if mask_BxT is not None:
      seen &= mask_BxT.astype(bool)[:, None, None, low:high]
    lowest = jnp.finfo(jnp.float32).min
    scores_BxHxQxT = jnp.where(seen, scores_BxHxQxT, lowest)
    weights_BxHxQxT = dropout(jax.nn.softmax(scores_BxHxQxT, axis=-1))
    outputs.append(
      jnp.einsum(
        'BHQT,BHTK->BHQK',
        weights_BxHxQxT.astype(value_BxHxTxK.dtype),
        value_BxHxTxK[:, :, low:high],
      )
    )
  return jnp.swapaxes(jnp.concatenate(outputs, axis=2), 1, 2)


def vocabulary_logits(
  hidden_BxTxD: jax.Array, table_VxD: jax.Array, bias_V: jax.Array | None
) -> jax.Array:
  """Logits [B, T, V] in float32, the products in the dtype of `hidden`."""
  rows, tokens, width = hidden_BxTxD.shape
  logits_NxV = jnp.einsum(
    'ND,VD->NV',
    hidden_BxTxD.reshape(-1, width),
    table_VxD.astype(hidden_BxTxD.dtype),
    preferred_element_type=jnp.float32,
  )
  logits_BxTxV = logits_NxV.reshape(rows, tokens, -1)
  return logits_BxTxV if bias_V is None else logits_BxTxV + bias_V


def token_log_likelihood(
  hidden_BxTxD: jax.Array,
  table_VxD: jax.Array,
  bias_V: jax.Array | None,
  targets_BxT: jax.Array,
  *,
  chunk: int = CHUNK,
) -> jax.Array:
  """log softmax(hidden @ table.T + bias) at the targets: [B, T] float32, nats.

  A vocabulary above SMALL_VOCABULARY is passed in chunks along T, forward and
  backward, so that no more than [B, chunk, V] logits exist at a time.
  """

  def log_likelihood(hidden_BxTxD, targets_BxT):
    logits_BxTxV = vocabulary_logits(hidden_BxTxD, table_VxD, bias_V)
    # Not a gather from log_softmax, whose gradient is slower on CPU.
    target_BxTx1 = jnp.take_along_axis(
      logits_BxTxV, targets_BxT[..., None], axis=-1
    )
    return target_BxTx1[..., 0] - jax.nn.logsumexp(logits_BxTxV, axis=-1)

  rows, tokens = targets_BxT.shape
  if table_VxD.shape[0] <= SMALL_VOCABULARY or tokens <= chunk:
    return log_likelihood(hidden_BxTxD, targets_BxT)
  count = -(-tokens // chunk)
  chunk = -(-tokens // count)

  def chunks(x_BxTx):
    pad = [(0, 0), (0, count * chunk - tokens)] + [(0, 0)] * (x_BxTx.ndim - 2)
    x_BxTx = jnp.pad(x_BxTx, pad).reshape(rows, count, chunk, *x_BxTx.shape[2:])
    return jnp.moveaxis(x_BxTx, 1, 0)

  output_CxBxT = jax.lax.map(
    jax.checkpoint(lambda part: log_likelihood(*part)),
    (chunks(hidden_BxTxD), chunks(targets_BxT)),
  )
  return jnp.moveaxis(output_CxBxT, 0, 1).reshape(rows, -1)[:, :tokens]


def read_config(
  config_class: type, values: Mapping[str, Any], only: Mapping[str, Any]
) -> Any:
  """A Config from the dict of a Hugging Face config.json.

  Args:
    config_class: a dataclass whose fields are named as the file's keys; a key
      that is not in the file takes the field's default.
    values: the file's content; keys that are no fields are left out.
    only: keys of which one value alone is implemented, and that value.

  Raises:
    ValueError: the file asks for something else than `only`.
  """
  for key, value in only.items():
    if values.get(key, value) != value:
      raise ValueError(
        f'config.json has {key}={values[key]!r}, but only {key}={value!r} is '
        f'implemented for {values.get("model_type")!r}'
      )
  names = {field.name for field in dataclasses.fields(config_class)}
  return config_class(
    **{key: _hashable(values[key]) for key in values if key in names}
  )


def check_config(width: int, heads: int, activation: str) -> None:
  """Raises ValueError for heads or an activation that do not go."""
  if width % heads:
    raise ValueError(f'width {width} is not a multiple of {heads} heads')
  if activation not in ACTIVATIONS:
    raise ValueError(
      f'activation {activation!r} is not implemented; there are '
      f'{sorted(ACTIVATIONS)}'
    )


def _hashable(value: Any) -> Any:
  return tuple(map(_hashable, value)) if isinstance(value, list) else value
