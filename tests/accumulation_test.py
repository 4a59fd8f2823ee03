"""Steps in parts and over a mesh against the step of one device at once."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tttnn import objectives
from tttnn import optim
from tttnn import sharding
from tttnn import training
from tttnn.corpus import packing
from tttnn.models import model as model_lib
from tttnn.models import roberta

pytestmark = pytest.mark.usefixtures('compile_fast')

ROWS = 8


class Tokenizer:
  bos_token_id, eos_token_id, mask_token_id = 0, 2, 4

  def __len__(self):
    return tiny.VOCABULARY


def pairs():
  rng = np.random.default_rng(0)
  # Of very different lengths: the parts do not weigh the same.
  return [
    tuple(rng.integers(4, tiny.VOCABULARY, size).tolist() for size in sizes)
    for sizes in rng.integers(1, 9, (ROWS, 2))
  ]


def stream():
  tokens = np.random.default_rng(1).integers(5, tiny.VOCABULARY, 400)
  return packing.Stream([tokens.astype(np.int32)], 1, '')


def causal():
  model, params, _ = tiny.causal('gpt2', 32)
  task = objectives.StreamTask(
    model, Tokenizer(), 'causal', ROWS, 16, 0.15, False
  )
  return task, params, stream()


def masked():
  shape = roberta.Config.create(tiny.VOCABULARY, 1, 16, 2, 32)
  model = model_lib.Model('roberta', shape)
  task = objectives.StreamTask(
    model, Tokenizer(), 'masked', ROWS, 18, 0.2, False
  )
  return task, model.init(jax.random.key(0)), stream()


def seq2seq():
  model, params, _ = tiny.seq2seq()
  return objectives.PairTask(model, ROWS, 8, 8, False), params, pairs()


def causal_pairs():
  model, params, _ = tiny.causal('gpt2', 32)
  return objectives.CausalPairTask(model, ROWS, 8, 8, False), params, pairs()


def run(task, params, texts, *, parts=1, mesh=None, fsdp=False, steps=2):
  """(losses, last state) of a few steps."""
  # A large epsilon: some gradients are nothing but rounding, which Adam would
  # make as large as all others.
  optimizer = optim.adamw(1e-2, weight_decay=0.1, clip_norm=1.0, epsilon=1e-3)
  step = training.compile_step(
    task, optimizer, 0, parts=parts, mesh=mesh, fsdp=fsdp
  )
  state = training.start(
    optimizer, jax.tree.map(np.array, params), mesh, fsdp=fsdp
  )
  losses = []
  for number in range(steps):
    batch = task.batch(texts, number, 3)
    state, loss, _ = step(state, batch, np.int32(number))
    losses.append(float(loss))
  return losses, state


def check_same(task, params, texts, **how):
  """Runs otherwise than plainly, with the same outcome; returns the state."""
  wanted, whole = run(task, params, texts)
  losses, state = run(task, params, texts, **how)
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5),
    state['params'],
    whole['params'],
  )
  return state


@pytest.mark.parametrize('make', [causal, masked, causal_pairs])
def test_parts_make_the_same_steps(make):
  check_same(*make(), parts=4)


def test_parts_over_a_mesh_make_the_same_steps():
  task, params, texts = seq2seq()
  mesh = sharding.make_mesh(2, 2, jax.devices()[:4])
  state = check_same(task, params, texts, parts=2, mesh=mesh)
  # Weights and moments still lie as the table says.
  specs = sharding.specs(params, mesh)
  places = jax.tree.map(lambda x: x.sharding.spec, state['params'])
  assert places == specs
  assert any('model' in spec for spec in jax.tree.leaves(specs))
  (moments,) = (
    x.mu
    for x in jax.tree.leaves(
      state['optimizer'], is_leaf=lambda x: hasattr(x, 'mu')
    )
    if hasattr(x, 'mu')
  )
  assert jax.tree.map(lambda x: x.sharding.spec, moments) == specs


@pytest.mark.parametrize('data, model_axis, parts', [(8, 1, 1), (4, 2, 2)])
@pytest.mark.parametrize('make', [causal, masked, causal_pairs, seq2seq])
def test_a_spread_state_makes_the_same_steps(make, data, model_axis, parts):
  mesh = sharding.make_mesh(data, model_axis)
  task, params, texts = make()
  state = check_same(task, params, texts, parts=parts, mesh=mesh, fsdp=True)
  # After two steps, too, a device has little more than an eighth of parameters
  # and moments: some sizes of these small models are odd.
  leaves = [x for x in jax.tree.leaves(state) if x.ndim]
  assert len(leaves) == 3 * len(jax.tree.leaves(params))
  whole = sum(x.nbytes for x in leaves)
  held = dict.fromkeys(jax.devices(), 0)
  for leaf in leaves:
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  assert len(set(held.values())) == 1
  assert whole / 8 <= held[jax.devices()[0]] < whole / 6


def test_validation_of_spread_parameters_is_the_same():
  task, params, texts = masked()
  mesh = sharding.make_mesh(8, 1)
  options = {'batches': 2, 'seed': 0}
  wanted = training.validate(task, texts, params, **options)
  placed = sharding.shard(params, mesh, fsdp=True)
  found = training.validate(
    task, texts, placed, **options, mesh=mesh, fsdp=True
  )
  assert found == pytest.approx(wanted, rel=1e-5)


def test_validation_over_a_mesh_is_the_same():
  task, params, texts = seq2seq()
  mesh = sharding.make_mesh(4, 1, jax.devices()[:4])
  options = {'batches': 2, 'seed': 0}
  wanted = training.validate(task, texts, params, **options)
  placed = sharding.shard(params, mesh)
  found = training.validate(task, texts, placed, **options, mesh=mesh)
  assert found == pytest.approx(wanted, rel=1e-5)


def test_each_part_has_a_dropout_of_its_own():
  model, params, _ = tiny.seq2seq()
  config = dataclasses.replace(model.config, dropout_rate=0.5)
  dropping = dataclasses.replace(model, config=config)
  task = objectives.PairTask(dropping, 2, 8, 8, True)
  texts = pairs()[:1]  # The same pair in both parts.
  (found,), _ = run(task, params, texts, parts=2, steps=1)
  batch = task.batch(texts, 0, 3)
  of_step = jax.random.fold_in(jax.random.key(0), 0)
  loss = jax.jit(task.loss)
  losses = [
    float(
      loss(
        params,
        {name: rows[part : part + 1] for name, rows in batch.items()},
        jax.random.fold_in(of_step, part),
      )
    )
    for part in range(2)
  ]
  assert losses[0] != pytest.approx(losses[1], rel=1e-3)
  assert found == pytest.approx(sum(losses), rel=1e-5)


@pytest.mark.parametrize('parts, shape', [(3, None), (0, None), (4, (4, 1))])
def test_rows_that_cannot_be_divided_are_refused(parts, shape):
  task, params, texts = causal_pairs()
  mesh = shape and sharding.make_mesh(*shape, jax.devices()[:4])
  with pytest.raises(ValueError, match=f'8 is no multiple of .*={parts}'):
    run(task, params, texts, parts=parts, mesh=mesh)
