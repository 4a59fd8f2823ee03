"""Positions as a bias on attention's scores that depends on distance alone.

Raffel et al., "Exploring the limits of transfer learning with a unified
text-to-text transformer" (JMLR 21, 2020), section 2.1.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Bias(nn.Module):
  """A scalar for each head and bucket of distances."""

  heads: int
  count: int  # Of buckets.
  longest: int
  bidirectional: bool
  std: float

  @nn.compact
  def __call__(self, query_T: jax.Array, key_S: jax.Array) -> jax.Array:
    """The bias [H, T, S], float32, between positions."""
    weight = self.param(
      'weight', nn.initializers.normal(self.std), (self.count, self.heads)
    )
    bucket_TxS = buckets(
      key_S[None, :] - query_T[:, None],
      self.count,
      self.longest,
      self.bidirectional,
    )
    return jnp.moveaxis(weight[bucket_TxS], -1, 0)


def buckets(
  distance: jax.Array, count: int, longest: int, bidirectional: bool
) -> jax.Array:
  """The bucket, 0 to count - 1, of each distance.

  One for each of the shorter distances, then ever wider ones up to `longest`.

  Args:
    distance: position of the key less that of the query.
    count: buckets in all.
    longest: from here on all distances share one.
    bidirectional: whether keys ahead have buckets, the second half of them;
      where not, they share that of distance 0.
  """
  if bidirectional:
    count //= 2
  exact = count // 2
  # From a table, or a logarithm that is nearly whole would round otherwise on
  # another device. In float32, as the published models were trained.
  near = np.arange(longest + 1)
  past = np.maximum(near, 1).astype(np.float32) / np.float32(exact)
  growth = np.log(past) / np.float32(math.log(longest / exact))
  wide = exact + (growth * np.float32(count - exact)).astype(int)
  table = np.where(near < exact, near, np.minimum(wide, count - 1))
  behind = jnp.abs(distance) if bidirectional else jnp.maximum(-distance, 0)
  bucket = jnp.asarray(table)[jnp.minimum(behind, longest)]
  return bucket + count * (distance > 0) if bidirectional else bucket
