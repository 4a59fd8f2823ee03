"""AdamW with PyTorch's semantics, so that steps can be checked against it.

Loshchilov & Hutter, "Decoupled weight decay regularization" (ICLR 2019), as
`torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_` compute it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


def global_norm(tree) -> jax.Array:
  """The length of all leaves taken as one vector."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(tree)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales gradients by min(1, max_norm / (norm + 1e-6)), norm over all leaves.

  The 1e-6 is PyTorch's; `optax.clip_by_global_norm` has none, which moves
  parameters by more than rounding when the gradient is small.
  """

  def update(updates, state, params=None):
    del params
    factor = jnp.minimum(1.0, max_norm / (global_norm(updates) + 1e-6))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def adamw(
  learning_rate: float | Schedule,
  *,
  weight_decay: float = 0.01,
  clip_norm: float = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
) -> optax.GradientTransformation:
  """Clip, then AdamW; decay on every parameter, biases and norms included.

  Args:
    learning_rate: a constant, or a schedule of the 0-based step.
    weight_decay: decoupled decay; a step shrinks weights by lr * weight_decay.
    clip_norm: bound of the gradient's global norm; 0 = no clipping.
    b1: decay of the first moment.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.
  """
  adam = optax.adamw(
    learning_rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay
  )
  if not clip_norm:
    return adam
  return optax.chain(clip_by_global_norm(clip_norm), adam)
