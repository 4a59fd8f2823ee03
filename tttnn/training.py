"""The training loop's parts: schedule, state, compiled step, validation."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tttnn import objectives
from tttnn import optim
from tttnn import sharding

_P = sharding.P


def schedule(train) -> Callable[[jax.Array], jax.Array]:
  """Learning rate by step, counted from 0: linear warm-up, then by schedule.

  constant; cosine, to a tenth at `train.steps`; step, times `decay_factor` each
  `decay_every` steps, which count from step 0, as torch's StepLR has it.

  Raises:
    ValueError: for another `train.schedule`, or a step without an interval.
  """
  kinds = 'constant', 'cosine', 'step'
  if train.schedule not in kinds:
    raise ValueError(
      f'train.schedule={train.schedule!r} is not one of {", ".join(kinds)}'
    )
  if train.schedule == 'step' and train.decay_every < 1:
    raise ValueError(
      "train.schedule='step' needs train.decay_every, the steps between two "
      f'decays, which is {train.decay_every}'
    )
  peak, warmup = train.learning_rate, max(1, train.warmup_steps)
  left = max(1, train.steps - train.warmup_steps)

  def rate(step):
    # The first step, number 0, already moves.
    rise = jnp.minimum(1.0, (step + 1) / warmup)
    if train.schedule == 'cosine':
      done = jnp.clip((step - train.warmup_steps) / left, 0.0, 1.0)
      share = 0.1 + 0.9 * (1 + jnp.cos(jnp.pi * done)) / 2
    elif train.schedule == 'step':
      share = jnp.float32(train.decay_factor) ** (step // train.decay_every)
    else:
      share = 1.0
    return peak * rise * share

  return rate


def start(
  optimizer,
  params,
  mesh: jax.sharding.Mesh | None = None,
  *,
  fsdp: bool = False,
) -> dict:
  """The state before the first step: {'params', 'optimizer'}, on the mesh.

  With `fsdp`, both spread over the axis `data`, too.
  """

  def make(params):
    return {'params': params, 'optimizer': optimizer.init(params)}

  if mesh is None:
    return make(params)
  places = _places(optimizer, params, mesh, fsdp)
  params = sharding.shard(params, mesh, fsdp=fsdp)
  return jax.jit(make, out_shardings=places)(params)


def compile_step(
  task: objectives.Task,
  optimizer,
  seed: int,
  *,
  parts: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  fsdp: bool = False,
) -> Callable:
  """(state, batch, step) -> (state, loss, gradient norm), compiled.

  The state is used up. The norm is that of all gradients before clipping.

  Args:
    task: what is trained.
    optimizer: an optax transformation.
    seed: of dropout; each step, and each part of it, has a key of its own.
    parts: of a step's rows, which go through the model one after another. Their
      gradients add up to that of all rows at once.
    mesh: where the state lies, as `start` places it; rows spread over `data`.
    fsdp: whether the state does, too. Each device then gathers a weight where
      it is used, and updates its own part of it.

  Raises:
    ValueError: the rows cannot be divided so.
  """
  share = parts * (mesh.shape['data'] if mesh else 1)
  if parts < 1 or task.rows % share:
    over = f' x mesh.data={share // parts}' if parts and share > parts else ''
    raise ValueError(
      f'train.batch_size={task.rows} is no multiple of '
      f'train.accumulation={parts}{over}'
    )

  places = None
  if mesh is not None:
    shapes = jax.eval_shape(task.model.init, jax.random.key(0))
    places = _places(optimizer, shapes, mesh, fsdp), None, None

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=places)
  def step(state, batch, number):
    key = None
    if task.dropout:
      key = jax.random.fold_in(jax.random.key(seed), number)
    params = state['params']
    loss = _loss(task, mesh, fsdp)
    loss, gradient = _gradient(loss, params, batch, key, parts)
    updates, moments = optimizer.update(gradient, state['optimizer'], params)
    params = optax.apply_updates(params, updates)
    state = {'params': params, 'optimizer': moments}
    return state, loss, optim.global_norm(gradient)

  return step


def _loss(task: objectives.Task, mesh, fsdp: bool) -> Callable:
  """(params, rows, dropout key) -> their share of the loss, on the mesh."""

  def loss(params, rows, key=None):
    if fsdp:
      params = sharding.gathered(params, mesh)
    return task.loss(params, _spread(rows, mesh), key)

  return loss


def _gradient(loss, params, batch, key, parts):
  """(loss, gradient) of all rows, part after part."""

  def add(total, part):
    number, rows = part
    own = None if key is None else jax.random.fold_in(key, number)
    return jax.tree.map(jnp.add, total, of(params, rows, own)), None

  of = jax.value_and_grad(loss)
  if parts == 1:
    return of(params, batch, key)
  batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
  zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
  return jax.lax.scan(add, zero, (jnp.arange(parts), batch))[0]


def validate(
  task: objectives.Task,
  data,
  params,
  *,
  batches: int,
  seed: int,
  mesh: jax.sharding.Mesh | None = None,
  fsdp: bool = False,
) -> float:
  """Mean loss of what `batches` batches predict, in nats, without dropout.

  Of several processes each reads its rows; all get the same.
  """
  loss = _compile_loss(task, mesh, fsdp)
  losses, counts = [], []
  for number in range(batches):
    value, count = loss(params, batch(task, data, number, seed, mesh))
    losses.append(float(value))
    counts.append(int(count))
  return float(np.average(losses, weights=counts))


def batch(task: objectives.Task, data, step: int, seed: int, mesh) -> dict:
  """The arrays of a step, of which each of several processes reads its rows."""
  if mesh is None or not mesh.is_multi_process:
    return task.batch(data, step, seed)
  own = sharding.own_rows(mesh, task.rows)
  return sharding.from_own_rows(
    task.batch(data, step, seed, own), mesh, task.rows
  )


@functools.lru_cache(maxsize=1)
def _compile_loss(task: objectives.Task, mesh, fsdp: bool) -> Callable:
  def of(params, batch):
    return loss(params, batch), task.predicted(batch)

  loss = _loss(task, mesh, fsdp)
  return jax.jit(of)


def _spread(batch, mesh):
  """Rows over the mesh's `data`."""
  if mesh is None:
    return batch
  rows = jax.NamedSharding(mesh, _P('data'))
  return jax.lax.with_sharding_constraint(batch, rows)


def _places(optimizer, params, mesh, fsdp: bool) -> dict:
  """Where the state lies: moments as the parameters that they are of."""
  specs = sharding.specs(params, mesh, fsdp=fsdp)
  moments = sharding.optimizer_specs(optimizer, params, specs)
  return sharding.named({'params': specs, 'optimizer': moments}, mesh)
