"""The pieces that the architectures share.

Parameters carry the names of PyTorch's modules (`weight`, `bias`), so that the
dotted path of a leaf is its name in a Hugging Face checkpoint. Weights are
float32 and are cast to the compute dtype where they are used; LayerNorm,
softmax and loss compute in float32.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# A text longer than QUERY_BLOCK attends in up to QUERY_BLOCKS query blocks, so
# that a softmax goes through less memory. A causal one attends to no more keys
# than its mask leaves, which makes 5/8 of the [T, T] scores.
QUERY_BLOCK = 256
QUERY_BLOCKS = 4

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
  """f(x) @ weight + bias, weight [in, out]; f an activation, or nothing.

  Params that hold lora_a [in, rank], lora_b [rank, out] and lora_scale beside
  the weight add scale * x @ a @ b (`tttnn.methods.trainable`).
  """

  features: int
  std: float
  use_bias: bool = True
  activation: str = ''  # Of ACTIVATIONS.

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    weight = self.param('weight', nn.initializers.normal(self.std), shape)
    # As a matrix, whose gradient is faster on CPU than that of [B, T, D].
    x_NxI = x.reshape(-1, x.shape[-1])
    if self.activation:
      activate = ACTIVATIONS[self.activation]
      y = _activated_product(activate, x_NxI, weight.astype(x.dtype))
    else:
      y = x_NxI @ weight.astype(x.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(x.dtype)
    if self.has_variable('params', 'lora_a'):
      y += self._low_rank(activate(x_NxI) if self.activation else x_NxI)
    return y.reshape(*x.shape[:-1], self.features)

  def _low_rank(self, x_NxI: jax.Array) -> jax.Array:
    lora_a, lora_b, scale = (
      self.get_variable('params', name)
      for name in ('lora_a', 'lora_b', 'lora_scale')
    )
    # Never a @ b: where many a and b share a weight, x @ weight stays one
    # product. The scale goes to the smallest array, before any rounding.
    scaled = (scale * lora_a).astype(x_NxI.dtype)
    return (x_NxI @ scaled) @ lora_b.astype(x_NxI.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activated_product(activate, x_NxI, weight_IxO):
  """activate(x) @ weight, keeping x alone for the gradient."""
  return activate(x_NxI) @ weight_IxO


def _activated_product_forward(activate, x_NxI, weight_IxO):
  return activate(x_NxI) @ weight_IxO, (x_NxI, weight_IxO)


def _activated_product_backward(activate, residuals, slope_NxO):
  x_NxI, weight_IxO = residuals
  by_y_NxI = slope_NxO @ weight_IxO.T
  # Zero times the slope: XLA on CPU, which heeds no barrier, would else make
  # the activation in the forward pass, once, and keep what lies in it.
  x_NxI += 0 * by_y_NxI[:1, :1]
  y_NxI, gradient = jax.vjp(activate, x_NxI)
  return *gradient(by_y_NxI), y_NxI.T @ slope_NxO


_activated_product.defvjp(
  _activated_product_forward, _activated_product_backward
)


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
    return _layer_norm(x, weight, bias, self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, weight, bias, epsilon):
  return _layer_norm_forward(x, weight, bias, epsilon)[0]


def _layer_norm_forward(x, weight, bias, epsilon):
  wide = x.astype(jnp.float32)
  mean = _mean(wide)
  inverse = jax.lax.rsqrt(_mean(jnp.square(wide - mean)) + epsilon)
  y = (wide - mean) * inverse
  return (y * weight + bias).astype(x.dtype), (x, weight, mean, inverse)


def _layer_norm_backward(epsilon, residuals, slope):
  # Two moments a row; what autodiff makes of the formula takes 4 times as long.
  del epsilon
  x, weight, mean, inverse = residuals
  y = (x.astype(jnp.float32) - mean) * inverse
  slope = slope.astype(jnp.float32)
  by_y = slope * weight
  by_x = inverse * (by_y - _mean(by_y) - y * _mean(by_y * y))
  rows = tuple(range(x.ndim - 1))
  return by_x.astype(x.dtype), jnp.sum(slope * y, rows), jnp.sum(slope, rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class RMSNorm(nn.Module):
  """Divides the last axis by its root mean square, in float32; no bias.

  Zhang and Sennrich, "Root mean square layer normalization" (NeurIPS 2019).
  """

  epsilon: float
  initial: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    initial = nn.initializers.constant(self.initial)
    weight = self.param('weight', initial, x.shape[-1:])
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(_mean(jnp.square(wide)) + self.epsilon)
    return (wide * inverse * weight).astype(x.dtype)


def _mean(x: jax.Array) -> jax.Array:
  """Of the last axis, which stays; on CPU a product, which is faster there."""
  if jax.default_backend() != 'cpu':
    return jnp.mean(x, axis=-1, keepdims=True)
  return x @ jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)


def precision(dtype: str):
  """A context that makes the products of a float32 model exact."""
  # By default accelerators round the factors of a float32 product.
  if dtype == 'float32' and not jax.config.jax_default_matmul_precision:
    return jax.default_matmul_precision('highest')
  return contextlib.nullcontext()


def block(kind: type[nn.Module], remat: bool) -> type[nn.Module]:
  """A block (x, mask, train, ...) that may forget its activations."""
  # Arguments count from the module itself.
  return nn.remat(kind, static_argnums=(3,)) if remat else kind


def attention(
  query_BxTxHxK: jax.Array,
  key_BxTxHxK: jax.Array,
  value_BxTxHxK: jax.Array,
  mask_BxT: jax.Array | None,
  *,
  scale: float,
  causal: bool,
  window: int = 0,
  bias_HxTxT: jax.Array | None = None,
  dropout: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Softmax attention (Vaswani et al. 2017, section 3.2.1), [B, T, H, K].

  Args:
    query_BxTxHxK: queries.
    key_BxTxHxK: keys; of another text, whose length may differ, where neither
      `causal` nor `window` is asked for.
    value_BxTxHxK: values, as many as keys.
    mask_BxT: true where a token may be attended to; None = everywhere.
    scale: factor on the scores.
    causal: whether a token attends to itself and earlier tokens only.
    window: a token attends to itself and window - 1 tokens before it; 0 = all.
    bias_HxTxT: added to the scores of (query, key), float32; None = nothing.
    dropout: applied to the attention probabilities.
  """
  tokens, keys = query_BxTxHxK.shape[1], key_BxTxHxK.shape[1]
  query_T, key_T = jnp.arange(tokens), jnp.arange(keys)
  # Heads first: each product is then one of matrices that lie together.
  query_BxHxTxK, key_BxHxTxK, value_BxHxTxK = (
    jnp.swapaxes(x, 1, 2) for x in (query_BxTxHxK, key_BxTxHxK, value_BxTxHxK)
  )
  outputs = []
  step = max(QUERY_BLOCK, -(-tokens // QUERY_BLOCKS))
  for begin in range(0, tokens, step):
    end = min(begin + step, tokens)
    low = max(0, begin - window + 1) if window else 0
    high = end if causal else keys
    scores_BxHxQxT = scale * jnp.einsum(
      'BHQK,BHTK->BHQT',
      query_BxHxTxK[:, :, begin:end],
      key_BxHxTxK[:, :, low:high],
      preferred_element_type=jnp.float32,
    )
    if bias_HxTxT is not None:
      scores_BxHxQxT += bias_HxTxT[:, begin:end, low:high]
    seen = jnp.ones((1, 1, end - begin, high - low), bool)
    age_QxT = query_T[begin:end, None] - key_T[None, low:high]
    if causal:
      seen &= age_QxT >= 0
    if window:
      seen &= age_QxT < window
    if mask_BxT is not None:
      seen &= mask_BxT.astype(bool)[:, None, None, low:high]
    lowest = jnp.finfo(jnp.float32).min
    scores_BxHxQxT = jnp.where(seen, scores_BxHxQxT, lowest)
    # Normalised after the product: so is the gradient, which then needs no sum
    # over keys, and one [Q, T] array is kept for it.
    largest_BxHxQx1 = jax.lax.stop_gradient(
      jnp.max(scores_BxHxQxT, axis=-1, keepdims=True)
    )
    weights_BxHxQxT = jnp.exp(scores_BxHxQxT - largest_BxHxQx1)
    total_BxHxQx1 = jnp.sum(weights_BxHxQxT, axis=-1, keepdims=True)
    output_BxHxQxK = jnp.einsum(
      'BHQT,BHTK->BHQK',
      dropout(weights_BxHxQxT).astype(value_BxHxTxK.dtype),
      value_BxHxTxK[:, :, low:high],
      preferred_element_type=jnp.float32,
    )
    output_BxHxQxK /= total_BxHxQx1
    outputs.append(output_BxHxQxK.astype(value_BxHxTxK.dtype))
  return jnp.swapaxes(jnp.concatenate(outputs, axis=2), 1, 2)


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
