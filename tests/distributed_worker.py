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


def fit(workdir: str, overrides: dict) -> None:
  """The job `train`; writes which files and rows this process has read."""
  from tttnn.corpus import packing
  from tttnn.corpus import pieces

  config = base.get_config()
  for key, value in overrides.items():
    settings.override(config, key, value)
  made, batched, seen = pieces.make, packing.batch, {}

  def make(recipe, piece, stop=None):
    seen.setdefault('files', []).append(piece.path)
    return made(recipe, piece, stop)

  def batch(*args, **options):
    rows = batched(*args, **options)
    seen['rows'] = len(rows)
    return rows

  pieces.make, packing.batch = make, batch
  try:
    jobs.run(config, workdir)
  finally:
    path = os.path.join(workdir, f'seen.{os.environ["TTTNN_PROCESS"]}.json')
    with open(path, 'w') as file:
      json.dump(seen, file)


TRAINED = {'rows': 8, 'length': 12, 'steps': 3, 'rate': 0.3}


def model():
  """(a small model, its parameters on the host)."""
  import jax
  import numpy as np

  from tttnn.models import model as model_lib

  gpt2 = model_lib.ARCHITECTURES['gpt2']
  config = gpt2.Config.create(
    vocab_size=97, width=16, layers=1, heads=2, context=16
  )
  made = model_lib.Model('gpt2', config)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  return made, jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes
  )


def row(step: int, number: int):
  """Tokens of a row of a step's batch, and one more."""
  import numpy as np

  rng = np.random.default_rng([step, number])
  return rng.integers(97, size=TRAINED['length'] + 1)


def loss(model, params, tokens_BxT):
  log_p = model.log_likelihood(params, tokens_BxT[:, :-1], tokens_BxT[:, 1:])
  return -log_p.mean()


def train(path: str) -> None:
  """Steps of gradient descent, each process reading rows of its own."""
  import jax
  import numpy as np

  from tttnn import sharding

  made, host = model()
  mesh, count = sharding.make_mesh(0, 2), TRAINED['rows']
  params = sharding.shard(host, mesh, fsdp=True)
  places = sharding.shardings(host, mesh, fsdp=True)

  def descend(params, tokens_BxT):
    value, gradient = jax.value_and_grad(
      lambda params: loss(made, sharding.gathered(params, mesh), tokens_BxT)
    )(params)
    rate = TRAINED['rate']
    return jax.tree.map(lambda x, g: x - rate * g, params, gradient), value

  descend = jax.jit(descend, out_shardings=(places, None))
  losses, own = [], sharding.own_rows(mesh, count)
  assert len(own) == count // 2
  for step in range(TRAINED['steps']):
    mine = np.stack([row(step, number) for number in own])
    params, value = descend(params, sharding.from_own_rows(mine, mesh, count))
    losses.append(float(value))
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(params)
    for shard in leaf.addressable_shards
  )
  whole = sharding.to_host(params)
  if distributed.is_main():
    np.savez(path, *jax.tree.leaves(whole), losses=losses, held=held)


def collective(processes: dict, path: str, victim: int) -> None:
  """Trains, prints a sum over all devices; then one dies and others sum on."""
  import jax
  import numpy as np

  from tttnn import sharding

  with distributed.session(distributed.Settings(**processes)):
    train(path)
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
  {'evaluate': evaluate, 'fit': fit, 'collective': collective}[what](
    *map(json.loads, arguments)
  )
