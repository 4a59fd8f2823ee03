"""A process of `tests/distributed_test.py`: `python -m ... WHAT ARGUMENTS`.

TTTNN_PROCESS says which one of several it is.
"""

import json
import os
import signal
import sys
import time

from configs import base
from tttnn import distributed
from tttnn import jobs
from tttnn import settings


def evaluate(workdir: str, overrides: dict, stall: int = -1) -> None:
  """The job; process `stall` stands still after two documents."""
  from tttnn.scoring import results

  config = base.get_config()
  for key, value in overrides.items():
    settings.override(config, key, value)
  append = results.Results.append

  def append_two(self, row):
    before = len(self.rows)
    append(self, row)
    if distributed.index() == stall and before == 1:
      time.sleep(600)

  results.Results.append = append_two
  jobs.run(config, workdir)


def collective(processes: dict, victim: int) -> None:
  """Prints a sum over all devices; process `victim` dies before the next."""
  import jax
  import numpy as np

  from tttnn import sharding

  with distributed.session(distributed.Settings(**processes)):
    mesh = sharding.make_mesh(0, 1)
    assert jax.local_device_count() == 4
    rows = jax.NamedSharding(mesh, sharding.P('data'))
    summed = jax.jit(
      jax.shard_map(
        lambda x: jax.lax.psum(x, 'data'),
        mesh=mesh,
        in_specs=sharding.P('data'),
        out_specs=sharding.P(),
      )
    )
    x = jax.make_array_from_callback((8,), rows, lambda at: np.arange(8.0)[at])
    print(f'the sum over {mesh.size} devices is {float(summed(x)[0])}', end='')
    sys.stdout.flush()
    distributed.meet('the sum')
    if distributed.index() == victim:
      os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(10**9):
      summed(x).block_until_ready()


if __name__ == '__main__':
  what, *arguments = sys.argv[1:]
  {'evaluate': evaluate, 'collective': collective}[what](
    *map(json.loads, arguments)
  )
