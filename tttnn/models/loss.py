"""From hidden states to the vocabulary, and the loss, in float32.

No more than a chunk of [T, V] exists at a time where the vocabulary is large.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# Above this vocabulary logits are made in chunks of at most CHUNK tokens.
SMALL_VOCABULARY = 8192
CHUNK = 256


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
    normalizer_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    return _at(logits_BxTxV, targets_BxT) - normalizer_BxT

  return _in_chunks(part, hidden_BxTxD, targets_BxT, len(table_VxD), chunk)


def token_scores(
  hidden_BxTxD: jax.Array,
  table_VxD: jax.Array,
  bias_V: jax.Array | None,
  targets_BxT: jax.Array,
  *,
  chunk: int = CHUNK,
) -> jax.Array:
  """`token_log_likelihood`, and 1 where no token is likelier: [B, T, 2]."""

  def part(hidden_BxTxD, targets_BxT):
    logits_BxTxV = vocabulary_logits(hidden_BxTxD, table_VxD, bias_V)
    target_BxT = _at(logits_BxTxV, targets_BxT)
    scores_BxT = target_BxT - jax.nn.logsumexp(logits_BxTxV, axis=-1)
    # Of the maximum that logsumexp takes anyway: argmax is a pass of its own,
    # a fourth of the time of all this on CPU.
    likeliest_BxT = target_BxT >= jnp.max(logits_BxTxV, axis=-1)
    return jnp.stack([scores_BxT, likeliest_BxT.astype(jnp.float32)], axis=-1)

  return _in_chunks(part, hidden_BxTxD, targets_BxT, len(table_VxD), chunk)


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
  dtype = hidden_BxTxD.dtype

  def part(gradients, x):
    hidden_BxTxD, targets_BxT, weights_BxT = x
    logits_BxTxV = vocabulary_logits(hidden_BxTxD, table_VxD, bias_V)
    largest_BxTx1 = jnp.max(logits_BxTxV, axis=-1, keepdims=True)
    exp_BxTxV = jnp.exp(logits_BxTxV - largest_BxTx1)
    total_BxT = jnp.sum(exp_BxTxV, axis=-1)
    normalizer_BxT = largest_BxTx1[..., 0] + jnp.log(total_BxT)
    scores_BxT = _at(logits_BxTxV, targets_BxT) - normalizer_BxT
    # softmax - onehot is slope / total: exponentials are taken once, and scaled
    # where [N, D] stands for [N, V].
    total_N = total_BxT.reshape(-1)
    slope_NxV = exp_BxTxV.reshape(-1, entries)
    place = jnp.arange(total_N.size), targets_BxT.reshape(-1)
    slope_NxV = slope_NxV.at[place].add(-total_N).astype(dtype)
    factor_Nx1 = (weights_BxT / total_BxT).reshape(-1, 1)
    by_hidden_NxD = factor_Nx1 * jnp.einsum(
      'NV,VD->ND',
      slope_NxV,
      table_VxD.astype(dtype),
      preferred_element_type=jnp.float32,
    )
    by_hidden_BxTxD = by_hidden_NxD.astype(dtype).reshape(hidden_BxTxD.shape)
    scaled_NxD = factor_Nx1 * hidden_BxTxD.reshape(-1, width)
    by_table_VxD = jnp.einsum(
      'NV,ND->VD',
      slope_NxV,
      scaled_NxD.astype(dtype),
      preferred_element_type=jnp.float32,
    )
    by_bias_V = None
    if bias_V is not None:
      by_bias_V = jnp.sum(factor_Nx1 * slope_NxV, axis=0)
    if gradients is not None:
      by_table_VxD += gradients[0]
      by_bias_V = None if bias_V is None else by_bias_V + gradients[1]
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


def _at(logits_BxTxV, targets_BxT):
  """The logits of the targets, [B, T]."""
  # Not from log_softmax, whose gather has a slower gradient on CPU.
  target_BxTx1 = jnp.take_along_axis(
    logits_BxTxV, targets_BxT[..., None], axis=-1
  )
  return target_BxTx1[..., 0]


def _in_chunks(part, hidden_BxTxD, targets_BxT, entries: int, chunk: int):
  """What `part` gives, [B, T, ...], of chunks of T where there are several."""
  split = _split(targets_BxT.shape[1], entries, chunk)
  if split.count == 1:
    return part(hidden_BxTxD, targets_BxT)
  scores_CxBxT = jax.lax.map(
    lambda x: part(*x), (split(hidden_BxTxD), split(targets_BxT))
  )
  return split.join(scores_CxBxT)


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
