"""What the run computes on: dtype, compiled programs kept, memory there is."""

import os

import jax


def compute_dtype(name: str) -> str:
  """'float32' or 'bfloat16' for model.dtype ('auto' asks the backend).

  Raises:
    ValueError: for another name.
  """
  if name == 'auto':
    return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  if name not in ('float32', 'bfloat16'):
    raise ValueError(f'model.dtype={name!r} is not auto, float32 or bfloat16')
  return name


def keep_compiled_programs() -> None:
  """Keeps compiled programs on disk, so that the next run starts at once.

  $JAX_COMPILATION_CACHE_DIR, else ~/.cache/tttnn/jax.
  """
  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  jax.config.update(
    'jax_compilation_cache_dir', os.path.join(cache, 'tttnn', 'jax')
  )
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def memory_limit() -> int | None:
  """Bytes that a device gives this process; None on CPU, which does not say."""
  stats = jax.local_devices()[0].memory_stats()
  return stats['bytes_limit'] if stats else None
