"""What the run computes on: dtype, compiled programs, memory and peak rate."""

import functools
import os

import jax

from tttnn.benchmarks import peak as peak_lib

# Operations a second of dense bfloat16 products (of float16 where there is no
# bfloat16), as the makers' data sheets have them, by the beginning of JAX's
# `device_kind`; the first that fits counts.
_PEAKS = (
  ('NVIDIA B200', 2.25e15),
  ('NVIDIA GH200', 989e12),
  ('NVIDIA H200 NVL', 835e12),
  ('NVIDIA H200', 989e12),
  ('NVIDIA H100 NVL', 835e12),
  ('NVIDIA H100 PCIe', 756e12),
  ('NVIDIA H100', 989e12),
  ('NVIDIA A100', 312e12),
  ('NVIDIA A10G', 70e12),
  ('NVIDIA L40S', 362e12),
  ('NVIDIA L4', 121e12),
  ('Tesla V100', 125e12),
  ('Tesla T4', 65e12),
  ('TPU v6 lite', 918e12),
  ('TPU v6e', 918e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5', 459e12),
  ('TPU v4 lite', 138e12),
  ('TPU v4', 275e12),
  # Half a chip, which is a device to JAX.
  ('TPU v3', 61.5e12),
  ('TPU v2', 22.5e12),
)


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


def peak(devices: int) -> float:
  """Operations a second that so many of the devices can do at most.

  Of bfloat16, by a table. On CPU, where devices share the host, and where the
  table has no such device, of products that are measured once.
  """
  rate = documented_peak(jax.devices()[0].device_kind)
  if rate is not None:
    return devices * rate
  if jax.default_backend() == 'cpu':
    return _measured_peak()
  return devices * _measured_peak()


def documented_peak(kind: str) -> float | None:
  """Operations a second of a device of JAX's `device_kind`; None = unknown."""
  for beginning, rate in _PEAKS:
    if kind.startswith(beginning):
      return rate
  return None


@functools.lru_cache(maxsize=1)
def _measured_peak() -> float:
  return peak_lib.matmul(trials=5)
