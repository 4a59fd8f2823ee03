"""What the machine can do at most, measured where it is to be compared with."""

from collections.abc import Callable
import time

import jax
import jax.numpy as jnp
import numpy as np

# [1024, 768] x [768, 3072], the up-projection of GPT-2 small, in float32.
_SHAPE = (1024, 768, 3072)
# On accelerators, in bfloat16: so large that starting it counts for nothing.
_LARGE = (8192, 8192, 8192)
_COPIED = 2**28, 2**31  # Bytes, on CPU and on accelerators.
_TRIALS = 20


def seconds(call: Callable[[], object], trials: int = _TRIALS) -> float:
  """The median time of a call, after one that may compile."""
  jax.block_until_ready(call())
  taken = []
  for _ in range(trials):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(time.perf_counter() - begin)
  return float(np.median(taken))


def matmul(trials: int = _TRIALS) -> float:
  """Operations a second of a product.

  Of two float32 matrices as a step has them, on CPU; else of two large bfloat16
  ones. Of random numbers: products of constants can be faster.
  """
  on_cpu = jax.default_backend() == 'cpu'
  rows, inner, columns = _SHAPE if on_cpu else _LARGE
  dtype = jnp.float32 if on_cpu else jnp.bfloat16
  key_a, key_b = jax.random.split(jax.random.key(0))
  a = jax.random.normal(key_a, (rows, inner), dtype)
  b = jax.random.normal(key_b, (inner, columns), dtype)
  product = jax.jit(jnp.matmul)
  taken = seconds(lambda: product(a, b), trials)
  return 2 * rows * inner * columns / taken


def bandwidth() -> float:
  """Bytes a second that a copy in device memory reads and writes."""
  size = _COPIED[jax.default_backend() != 'cpu']
  x = jnp.arange(size // 4, dtype=jnp.float32)
  copy = jax.jit(lambda x: x + 1)  # XLA leaves a plain copy out.
  return 2 * size / seconds(lambda: copy(x))
