"""Weights and moments over all of eight devices against one device."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from configs import base
from tttnn import optim
from tttnn import sharding
from tttnn.models import model as model_lib
from tttnn.models import seq2seq
from tttnn.models import t5

P = jax.sharding.PartitionSpec
MESHES = [(1, 8), (2, 4), (8, 1), (4, 2)]
VOCABULARY, WIDTH, POSITIONS = 96, 16, 24

pytestmark = pytest.mark.usefixtures('compile_fast')


def _create(kind, vocabulary=VOCABULARY):
  if kind == 't5':
    return seq2seq.Model(
      t5.Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=4,
        d_ff=32,
        num_layers=1,
        num_heads=8,
        tie_word_embeddings=False,
      )
    )
  # RoBERTa's first two positions are no context.
  config = model_lib.ARCHITECTURES[kind].Config.create(
    vocab_size=vocabulary,
    width=WIDTH,
    heads=2,
    layers=2 if kind == 'gpt_neo' else 1,
    context=POSITIONS - 2 if kind == 'roberta' else POSITIONS,
  )
  return model_lib.Model(kind, config)


def _params(model):
  """Random, on the host."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda x: (
      (x.shape == (WIDTH,)) + rng.normal(0, 0.2, x.shape).astype(np.float32)
    ),
    shapes,
  )


def _batch():
  rng = np.random.default_rng(1)
  return tuple(rng.integers(8, VOCABULARY, (2, 8, 12)))


def _loss(model, place, params, tokens_BxT, targets_BxT):
  params = place(params)
  if model.architecture is t5:
    mask_BxT = np.ones(tokens_BxT.shape, bool)
    batch = tokens_BxT, mask_BxT, targets_BxT
    log_p = model.log_likelihood(params, *batch)
    return -log_p.mean(), model.logits(params, *batch)
  if model.architecture.CAUSAL:
    log_p = model.log_likelihood(params, tokens_BxT, targets_BxT)
  else:
    positions_BxT = np.broadcast_to(np.arange(12), tokens_BxT.shape)
    log_p = model.masked_log_likelihood(
      params, tokens_BxT, None, positions_BxT, targets_BxT
    )
  return -log_p.mean(), model.logits(params, tokens_BxT)


def _step(model, optimizer, place=lambda params: params):
  """(params, moments, batch) -> what a step makes of them, and on the way."""
  loss = functools.partial(_loss, model, place)

  def step(params, moments, *batch):
    gradient, logits = jax.grad(loss, has_aux=True)(params, *batch)
    updates, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments, gradient, logits

  return step


def _assert_close(tree, expected):
  for (path, leaf), wanted in zip(
    jax.tree_util.tree_leaves_with_path(tree),
    jax.tree.leaves(expected),
    strict=True,
  ):
    error = np.linalg.norm(np.asarray(leaf) - wanted)
    # The absolute part is for key biases: their gradient is rounding noise.
    assert error <= 1e-5 * np.linalg.norm(wanted) + 1e-6, path


@functools.lru_cache
def _on_one_device(kind, vocabulary):
  model, optimizer = _create(kind, vocabulary), optim.adamw(1e-2, epsilon=1e-3)
  params = _params(model)
  step = jax.jit(_step(model, optimizer))
  return jax.device_get(step(params, optimizer.init(params), *_batch()))


@pytest.mark.parametrize(
  'kind, vocabulary, data, model_axis',
  [
    ('gpt2', 96, 4, 2),
    ('gpt2', 97, 2, 4),
    ('gpt_neo', 97, 8, 1),
    ('roberta', 96, 4, 2),
    ('t5', 96, 2, 4),
  ],
)
def test_a_step_equals_that_of_one_device(kind, vocabulary, data, model_axis):
  model, optimizer = _create(kind, vocabulary), optim.adamw(1e-2, epsilon=1e-3)
  mesh = sharding.make_mesh(data, model_axis)
  host = _params(model)
  specs = sharding.specs(host, mesh, fsdp=True)
  weights = sharding.named(specs, mesh)
  moments = sharding.named(
    sharding.optimizer_specs(optimizer, host, specs), mesh
  )
  params = sharding.shard(host, mesh, fsdp=True)
  rows = jax.NamedSharding(mesh, P('data'))
  step = jax.jit(
    _step(model, optimizer, lambda params: sharding.gathered(params, mesh)),
    out_shardings=(weights, moments, weights, rows),
    donate_argnums=(0, 1),
  )
  state = jax.jit(optimizer.init, out_shardings=moments)(params)
  _assert_spread(params, state)
  found = step(params, state, *jax.device_put(_batch(), rows))
  expected = _on_one_device(kind, vocabulary)
  _assert_spread(*found[:2])
  _assert_close(found, expected)
  # All that is left whole on each device is the optimizer's counter.
  held, whole = (
    sum(part(leaf) for leaf in jax.tree.leaves(found[:2]))
    for part in (
      lambda leaf: leaf.addressable_shards[5].data.nbytes,
      lambda leaf: leaf.nbytes,
    )
  )
  assert whole / 8 <= held < whole / 7


def _assert_spread(params, state):
  """Device by device: an eighth of every weight and of both its moments."""
  adam = next(
    part
    for part in jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(part, optax.ScaleByAdamState)
  )
  for tree in (params, adam.mu, adam.nu):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      shards = leaf.addressable_shards
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      assert {shard.device for shard in shards} == set(jax.devices())
      assert {shard.data.nbytes * 8 for shard in shards} == {leaf.nbytes}, name
      assert len({str(shard.index) for shard in shards}) == 8, name


def test_each_weight_is_gathered_once_and_nothing_else_moves():
  model, mesh = _create('gpt2'), sharding.make_mesh(8, 1)
  host = _params(model)
  weights = sharding.shardings(host, mesh, fsdp=True)
  rows = jax.NamedSharding(mesh, P('data'))
  loss = functools.partial(
    _loss, model, lambda params: sharding.gathered(params, mesh)
  )
  gradient = jax.jit(
    jax.grad(loss, has_aux=True), out_shardings=(weights, rows)
  )
  params = sharding.shard(host, mesh, fsdp=True)
  compiled = gradient.lower(params, *jax.device_put(_batch(), rows)).compile()
  found = re.findall(
    r' (all-gather|all-to-all|collective-permute)(?:-start)?\(',
    compiled.as_text(),
  )
  assert found == ['all-gather'] * len(jax.tree.leaves(host))


@pytest.mark.parametrize('data, model_axis', MESHES)
@pytest.mark.parametrize('kind', [*model_lib.ARCHITECTURES, 't5'])
def test_published_sizes_spread_over_all_devices(kind, data, model_axis):
  mesh = sharding.make_mesh(data, model_axis)
  if kind == 't5':
    model = seq2seq.Model(t5.Config())
  else:
    model = model_lib.Model(kind, model_lib.ARCHITECTURES[kind].Config())
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  places = sharding.shardings(shapes, mesh, fsdp=True)
  for (path, leaf), place in zip(
    jax.tree_util.tree_leaves_with_path(shapes),
    jax.tree.leaves(places),
    strict=True,
  ):
    parts = leaf.size // np.prod(place.shard_shape(leaf.shape))
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    # An odd vocabulary has no parts, nor have 12 heads of a bias eight.
    if name != 'lm_head.bias' and 'relative_attention_bias' not in name:
      assert parts == 8, name


def test_lora_spreads_as_far_as_it_divides():
  mesh = sharding.make_mesh(4, 2)
  shapes = {
    'h': {
      '0': {
        'attn': {
          'c_attn': {
            'lora_a': jax.ShapeDtypeStruct((16, 3), np.float32),
            'lora_b': jax.ShapeDtypeStruct((3, 48), np.float32),
            'lora_scale': jax.ShapeDtypeStruct((), np.float32),
          },
          'c_proj': {
            'lora_a': jax.ShapeDtypeStruct((16, 3), np.float32),
            'lora_b': jax.ShapeDtypeStruct((3, 16), np.float32),
          },
        }
      }
    }
  }
  found = sharding.specs(shapes, mesh, fsdp=True)['h']['0']['attn']
  both = ('model', 'data')
  assert found == {
    'c_attn': {
      'lora_a': P('data', None),
      'lora_b': P(None, both),
      'lora_scale': P(),
    },
    'c_proj': {'lora_a': P(both, None), 'lora_b': P(None, 'data')},
  }


def test_what_nothing_divides_lies_as_without_fsdp():
  mesh = sharding.make_mesh(7, 1, jax.devices()[:7])
  shapes = jax.eval_shape(_create('gpt2').init, jax.random.key(0))
  spread = sharding.specs(shapes, mesh, fsdp=True)
  assert spread == sharding.specs(shapes, mesh)


def test_where_documents_have_copies_fsdp_is_refused():
  section = base.get_config().mesh
  section.fsdp = True
  with pytest.raises(ValueError, match='mesh.data, which is 1 of 8 devices'):
    sharding.for_training(section)
  with pytest.raises(ValueError, match='mesh.fsdp=True is for training'):
    sharding.from_config(section)
