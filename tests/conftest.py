"""Eight CPU devices for every test, and no network.

Set before JAX's first backend use, here and (by the environment) in the
processes that tests start.
"""

import atexit
import os
import shutil
import tempfile

_cache = tempfile.mkdtemp(prefix='tttnn-test-cache-')
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ |= {
  'HF_HUB_OFFLINE': '1',
  'JAX_COMPILATION_CACHE_DIR': _cache,
  'JAX_NUM_CPU_DEVICES': '8',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  'JAX_PLATFORMS': 'cpu',
  'TOKENIZERS_PARALLELISM': 'false',
}

import jax  # noqa: E402
import pytest  # noqa: E402

assert len(jax.devices()) == 8


@pytest.fixture(scope='module')
def compile_fast():
  """Programs of this module compile faster and run slower."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  # Or other tests would go on with these programs, which round otherwise.
  jax.clear_caches()


@pytest.fixture(scope='session')
def world(tmp_path_factory):
  """See `tests/world.py`; to be changed in copies alone."""
  from tests import world as world_lib

  return world_lib.make(tmp_path_factory.mktemp('world'))
