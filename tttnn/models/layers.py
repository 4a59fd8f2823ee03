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

# Above this vocabulary logits are made in chunks of at most CHUNK tokens.
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
  """x @ weight + bias, weight [in, out].

  Params that hold lora_a [in, rank], lora_b [rank, out] and lora_scale beside
  the weight add scale * x @ a @ b (`tttnn.methods.trainable`).
  """

  features: int
  std: float
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    weight = self.param('weight', nn.initializers.normal(self.std), shape)
    # As a matrix, whose gradient is faster on CPU than that of [B, T, D].
    x_NxI = x.reshape(-1, x.shape[-1])
    y = x_NxI @ weight.astype(x.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(x.dtype)
    if self.has_variable('params', 'lora_a'):
      y += self._low_rank(x_NxI)
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

  A vocabulary above SMALL_VOCABULARY is passed in chunks along T, so that no
  more than [B, chunk, V] logits exist at a time, in its gradient too. For
  training there is `cross_entropy`.
  """

  @jax.checkpoint
  def part(hidden_BxTxD, targets_BxT):
    logits_BxTxV = vocabulary_logits(hidden_BxTxD, table_VxD, bias_V)
    return _log_softmax_at(logits_BxTxV, targets_BxT)[0]

  split = _split(targets_BxT.shape[1], table_VxD.shape[0], chunk)
  if split.count == 1:
    return part(hidden_BxTxD, targets_BxT)
  scores_CxBxT = jax.lax.map(
    lambda x: part(*x), (split(hidden_BxTxD), split(targets_BxT))
  )
  return split.join(scores_CxBxT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def cross_entropy(
  hidden_BxTxD: jax.Array,
  table_VxD: jax.Array,
  bias_V: jax.Array | None,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  chunk: int = CHUNK,
) -> jax.Array:
  """-sum(weights * log softmax(hidden @ table.T + bias) at the targets), nats.

  Differentiated, it makes the gradient together with the value, chunk by chunk,
  from the logits while they are there: three products with the vocabulary where
  a gradient after the fact takes four or keeps [B, T, V].
  """
  scores_BxT = token_log_likelihood(
    hidden_BxTxD, table_VxD, bias_V, targets_BxT, chunk=chunk
  )
  return -jnp.sum(weights_BxT * scores_BxT)


def _cross_entropy_forward(
  hidden_BxTxD, table_VxD, bias_V, targets_BxT, weights_BxT, chunk
):
  entries, width = table_VxD.shape

  def part(gradients, x):
    hidden_BxTxD, targets_BxT, weights_BxT = x
    logits_BxTxV = vocabulary_logits(hidden_BxTxD, table_VxD, bias_V)
    scores_BxT, normalizer_BxT = _log_softmax_at(logits_BxTxV, targets_BxT)
    softmax_BxTxV = jnp.exp(logits_BxTxV - normalizer_BxT[..., None])
    hit_BxTxV = jnp.arange(entries) == targets_BxT[..., None]
    slope_BxTxV = weights_BxT[..., None] * (softmax_BxTxV - hit_BxTxV)
    slope_NxV = slope_BxTxV.reshape(-1, entries).astype(hidden_BxTxD.dtype)
    by_hidden_NxD = slope_NxV @ table_VxD.astype(hidden_BxTxD.dtype)
    by_table_VxD = jnp.einsum(
      'NV,ND->VD',
      slope_NxV,
      hidden_BxTxD.reshape(-1, width),
      preferred_element_type=jnp.float32,
    )
    by_bias_V = None if bias_V is None else jnp.sum(slope_BxTxV, (0, 1))
    if gradients is not None:
      by_table_VxD += gradients[0]
      by_bias_V = None if bias_V is None else by_bias_V + gradients[1]
    by_hidden_BxTxD = by_hidden_NxD.reshape(hidden_BxTxD.shape)
    return (by_table_VxD, by_bias_V), (scores_BxT, by_hidden_BxTxD)

  split = _split(targets_BxT.shape[1], entries, chunk)
  inputs = (hidden_BxTxD, targets_BxT, weights_BxT)
  if split.count == 1:
    by_table, (scores_BxT, by_hidden_BxTxD) = part(None, inputs)
  else:
    parts = jax.tree.map(split, inputs)
    # The first chunk outside the loop, which then needs no zeros to add to.
    carry, first = part(None, jax.tree.map(lambda x: x[0], parts))
    by_table, rest = jax.lax.scan(
      part, carry, jax.tree.map(lambda x: x[1:], parts)
    )
    scores_BxT, by_hidden_BxTxD = (
      split.join(jnp.concatenate([one[None], others]))
      for one, others in zip(first, rest, strict=True)
    )
  value = -jnp.sum(weights_BxT * scores_BxT)
  return value, (by_hidden_BxTxD, *by_table, scores_BxT)


def _cross_entropy_backward(chunk, residuals, slope):
  del chunk
  by_hidden_BxTxD, by_table_VxD, by_bias_V, scores_BxT = residuals
  return (
    slope.astype(by_hidden_BxTxD.dtype) * by_hidden_BxTxD,
    slope * by_table_VxD,
    None if by_bias_V is None else slope * by_bias_V,
    None,
    -slope * scores_BxT,
  )


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _log_softmax_at(logits_BxTxV, targets_BxT):
  """(log softmax at the targets [B, T], its normaliser [B, T])."""
  # Not a gather from log_softmax, whose gradient is slower on CPU.
  target_BxTx1 = jnp.take_along_axis(
    logits_BxTxV, targets_BxT[..., None], axis=-1
  )
  normalizer_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  return target_BxTx1[..., 0] - normalizer_BxT, normalizer_BxT


@dataclasses.dataclass(frozen=True)
class _Chunks:
  """Cuts axis T of [B, T, ...] into `count` chunks of `size`: [C, B, T, ...].

  The last one is filled up with zeros, whose weight is zero.
  """

  tokens: int
  count: int
  size: int

  def __call__(self, x_BxT: jax.Array) -> jax.Array:
    pad = [(0, 0)] * x_BxT.ndim
    pad[1] = (0, self.count * self.size - self.tokens)
    shape = (len(x_BxT), self.count, self.size, *x_BxT.shape[2:])
    return jnp.moveaxis(jnp.pad(x_BxT, pad).reshape(shape), 1, 0)

  def join(self, x_CxBxT: jax.Array) -> jax.Array:
    x_BxCxT = jnp.moveaxis(x_CxBxT, 0, 1)
    shape = (len(x_BxCxT), self.count * self.size, *x_BxCxT.shape[3:])
    return x_BxCxT.reshape(shape)[:, : self.tokens]


def _split(tokens: int, entries: int, chunk: int) -> _Chunks:
  """How `tokens` pass a vocabulary of `entries`."""
  whole = entries <= SMALL_VOCABULARY
  count = 1 if whole else max(1, -(-tokens // chunk))
  return _Chunks(tokens, count, -(-tokens // count) if tokens else 0)


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
