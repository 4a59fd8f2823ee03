"""Models on meshes of eight devices against the same on one."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tttnn import sharding
from tttnn.methods import trainable as trainable_lib
from tttnn.models import model as model_lib

P = jax.sharding.PartitionSpec
MESHES = [(1, 8), (2, 4), (8, 1), (4, 2)]
WIDTH, POSITIONS = 16, 24
# What every device holds a whole copy of, by the end of the name.
REPLICATED = (
  *('ln_1.weight', 'ln_1.bias', 'ln_2.weight', 'ln_2.bias'),
  *('ln_f.weight', 'ln_f.bias', 'LayerNorm.weight', 'LayerNorm.bias'),
  *('layer_norm.weight', 'layer_norm.bias', 'c_proj.bias', 'out_proj.bias'),
  *('output.dense.bias', 'token_type_embeddings.weight'),
)

pytestmark = pytest.mark.usefixtures('compile_fast')


def _create(kind, vocabulary=96, **sizes):
  shape = {'layers': 2 if kind == 'gpt_neo' else 1, 'heads': 2}
  # RoBERTa's first two positions are no context.
  shape['context'] = POSITIONS - 2 if kind == 'roberta' else POSITIONS
  config = model_lib.ARCHITECTURES[kind].Config.create(
    vocab_size=vocabulary, width=WIDTH, **(shape | sizes)
  )
  return model_lib.Model(kind, config)


def _shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0))


def _named(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {'.'.join(key.key for key in path): leaf for path, leaf in leaves}


def _params(model, seed=0):
  """Random parameters on the host; no bias or norm as it begins."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (
      (x.shape == (WIDTH,)) + rng.normal(0, 0.2, x.shape).astype(np.float32)
    ),
    _shapes(model),
  )


def _batch(rows=8):
  rng = np.random.default_rng(0)
  return rng.integers(8, 96, (2, rows, 12))


def _loss(model, params, tokens_BxT, targets_BxT):
  if model.architecture.CAUSAL:
    log_p = model.log_likelihood(params, tokens_BxT, targets_BxT)
  else:
    positions_BxT = jnp.broadcast_to(jnp.arange(12), tokens_BxT.shape)
    log_p = model.masked_log_likelihood(
      params, tokens_BxT, None, positions_BxT, targets_BxT
    )
  return -jnp.mean(log_p), model.logits(params, tokens_BxT)


@functools.lru_cache
def _on_one_device(kind, vocabulary):
  model = _create(kind, vocabulary)
  gradient = jax.grad(functools.partial(_loss, model), has_aux=True)
  return jax.jit(gradient)(_params(model), *_batch())


def _assert_close(actual, expected):
  actual, expected = _named(actual), _named(expected)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    error = np.linalg.norm(np.asarray(actual[name]) - value)
    # The absolute part is for key biases: their gradient is rounding noise.
    assert error <= 1e-5 * np.linalg.norm(value) + 1e-7, name


@pytest.mark.parametrize(
  'kind, vocabulary, data, model_axis',
  [(kind, 96, *mesh) for kind in model_lib.ARCHITECTURES for mesh in MESHES]
  + [('gpt2', 97, 2, 4)],
)
def test_logits_and_gradients_equal_one_device(
  kind, vocabulary, data, model_axis
):
  model = _create(kind, vocabulary)
  mesh = sharding.make_mesh(data, model_axis)
  host = _params(model)
  params = sharding.shard(host, mesh)
  _assert_placed(params, host, model_axis)
  rows = jax.NamedSharding(mesh, P('data'))
  gradient = jax.jit(
    jax.grad(functools.partial(_loss, model), has_aux=True),
    out_shardings=(sharding.shardings(host, mesh), rows),
  )
  batch = jax.device_put(tuple(_batch()), rows)
  gradients, logits = gradient(params, *batch)
  _assert_placed(gradients, host, model_axis)
  expected, expected_logits = _on_one_device(kind, vocabulary)
  scale = np.abs(expected_logits).max()
  np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-5 * scale)
  _assert_close(gradients, expected)


def _assert_placed(tree, host, size):
  """Each of 8 devices holds 1 / size of a leaf, or all of one of REPLICATED."""
  for name, leaf in _named(tree).items():
    shards = leaf.addressable_shards
    assert {shard.device for shard in shards} == set(jax.devices())
    part = 1 if name.endswith(REPLICATED) else size
    for shard in shards:
      assert shard.data.nbytes * part == leaf.nbytes, name
    assert len({str(shard.index) for shard in shards}) == part, name
    assert leaf.shape == _named(host)[name].shape


@pytest.mark.parametrize(
  'kind, vocabulary, shapes',
  [
    (
      'gpt2',
      96,
      {
        'wte.weight': (24, 16),
        'wpe.weight': (6, 16),
        'h.0.attn.c_attn.weight': (16, 12),
        'h.0.attn.c_attn.bias': (12,),
        'h.0.attn.c_proj.weight': (4, 16),
        'h.0.mlp.c_fc.weight': (16, 16),
        'h.0.mlp.c_proj.weight': (16, 16),
        'h.0.mlp.c_proj.bias': (16,),
        'ln_f.weight': (16,),
      },
    ),
    ('gpt2', 97, {'wte.weight': (97, 4)}),
    (
      'gpt_neo',
      96,
      {
        'wte.weight': (24, 16),
        'h.1.attn.attention.q_proj.weight': (16, 4),
        'h.1.attn.attention.out_proj.weight': (4, 16),
        'h.0.mlp.c_fc.bias': (16,),
      },
    ),
    (
      'roberta',
      96,
      {
        'embeddings.word_embeddings.weight': (24, 16),
        'embeddings.position_embeddings.weight': (6, 16),
        'encoder.layer.0.attention.self.key.weight': (16, 4),
        'encoder.layer.0.attention.output.dense.weight': (4, 16),
        'encoder.layer.0.intermediate.dense.weight': (16, 16),
        'encoder.layer.0.output.dense.weight': (16, 16),
        'lm_head.dense.weight': (16, 4),
        'lm_head.bias': (24,),
      },
    ),
    (
      'roberta',
      97,
      {'embeddings.word_embeddings.weight': (97, 4), 'lm_head.bias': (97,)},
    ),
  ],
)
def test_shape_on_a_device_of_four(kind, vocabulary, shapes):
  mesh = sharding.make_mesh(2, 4)
  params = _named(sharding.shard(_params(_create(kind, vocabulary)), mesh))
  for name, shape in shapes.items():
    assert params[name].addressable_shards[3].data.shape == shape, name


@pytest.mark.parametrize('data, model_axis', MESHES)
@pytest.mark.parametrize('kind', model_lib.ARCHITECTURES)
def test_every_parameter_fits_one_row(kind, data, model_axis):
  """To mend: add the names of the new architecture to `sharding.TABLE`."""
  config_class = model_lib.ARCHITECTURES[kind].Config
  mesh = sharding.make_mesh(data, model_axis)
  configs = [config_class()]
  if 'tie_word_embeddings' in config_class.__dataclass_fields__:
    configs.append(config_class(tie_word_embeddings=False))
  for config in configs:
    shapes = _shapes(model_lib.Model(kind, config))
    for spec, leaf in zip(
      jax.tree.leaves(sharding.specs(shapes, mesh)),
      jax.tree.leaves(shapes),
      strict=True,
    ):
      if leaf.size > 1e6:
        assert 'model' in spec
    names = jax.tree.leaves(sharding.shardings(shapes, mesh))
    assert all(name.mesh == mesh for name in names)


def test_what_of_the_published_models_does_not_divide():
  mesh = sharding.make_mesh(2, 4)
  for kind, name, shape, spec in [
    ('gpt2', 'wte.weight', (50257, 768), P(None, 'model')),
    ('gpt_neo', 'wte.weight', (50257, 2048), P(None, 'model')),
    (
      'roberta',
      'embeddings.word_embeddings.weight',
      (50265, 768),
      P(None, 'model'),
    ),
    (
      'roberta',
      'embeddings.position_embeddings.weight',
      (514, 768),
      P(),
    ),
    ('roberta', 'lm_head.bias', (50265,), P()),
  ]:
    sizes = {'max_position_embeddings': 514} if kind == 'roberta' else {}
    config = model_lib.ARCHITECTURES[kind].Config(**sizes)
    shapes = _shapes(model_lib.Model(kind, config))
    assert _named(shapes)[name].shape == shape
    assert _named(sharding.specs(shapes, mesh))[name] == spec


def test_where_nothing_divides_everything_is_whole():
  shapes = _shapes(_create('gpt2'))
  mesh = sharding.make_mesh(1, 7, jax.devices()[:7])
  assert set(jax.tree.leaves(sharding.specs(shapes, mesh))) == {P()}


def test_lora_lies_as_the_matrix_beside_it():
  mesh = sharding.make_mesh(2, 4)
  choice = trainable_lib.Trainable('lora', 0, 3, 6.0, ('attention', 'mlp'))
  for kind, column, row in [
    ('gpt2', 'h.0.attn.c_attn', 'h.0.mlp.c_proj'),
    ('gpt_neo', 'h.1.attn.attention.v_proj', 'h.1.attn.attention.out_proj'),
  ]:
    frozen, trained = jax.eval_shape(
      lambda params: trainable_lib.split(params, choice, seed=0),
      _shapes(_create(kind)),
    )
    whole = _named(sharding.specs(trainable_lib.combine(frozen, trained), mesh))
    assert whole[f'{column}.lora_a'] == P()
    assert whole[f'{column}.lora_b'] == P(None, 'model')
    assert whole[f'{row}.lora_a'] == P('model', None)
    assert whole[f'{row}.lora_b'] == P()
    assert whole[f'{column}.lora_scale'] == whole[f'{row}.lora_scale'] == P()
    parts = _named(sharding.specs(frozen, mesh)) | _named(
      sharding.specs(trained, mesh)
    )
    assert parts == whole


def test_batched_puts_axes_in_front():
  tree = {'a': P(None, 'model'), 'b': {'c': P()}}
  assert sharding.batched(tree, 'data') == {
    'a': P('data', None, 'model'),
    'b': {'c': P('data')},
  }
  assert sharding.batched(tree, 'data', None) == {
    'a': P('data', None, None, 'model'),
    'b': {'c': P('data', None)},
  }


def test_a_block_costs_two_sums():
  mesh = sharding.make_mesh(2, 4)

  def traffic(layers):
    model = _create('gpt_neo', layers=layers, heads=4)
    params = sharding.shard(_params(model), mesh)
    rows = jax.NamedSharding(mesh, P('data'))
    batch = jax.device_put(tuple(_batch()), rows)
    text = jax.jit(model.log_likelihood).lower(params, *batch).compile()
    found = re.findall(
      r' (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)'
      r'(?:-start)?\(',
      text.as_text(),
    )
    return collections.Counter(found)

  more = traffic(4)
  more.subtract(traffic(2))
  assert {kind: count for kind, count in more.items() if count} == {
    'all-reduce': 4
  }


@pytest.mark.parametrize('choice', ['full', 'lora'])
def test_copies_of_documents_equal_one_at_a_time(choice):
  model = _create('gpt2')
  mesh = sharding.make_mesh(4, 2)
  chosen = trainable_lib.Trainable.parse(choice, 4, 8.0, 'attention,mlp')

  def halves(seed):
    frozen, trained = trainable_lib.split(_params(model), chosen, seed=0)
    rng = np.random.default_rng(seed)
    return frozen, jax.tree.map(
      lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), trained
    )

  def gradient(frozen, trained, tokens_T, targets_T):
    return jax.grad(
      lambda trained: _loss(
        model,
        trainable_lib.combine(frozen, trained),
        tokens_T[None],
        targets_T[None],
      )[0]
    )(trained)

  each = [halves(seed) for seed in range(4)]
  frozen = each[0][0]
  trained_spec = sharding.specs(each[0][1], mesh)
  copies = sharding.named(sharding.batched(trained_spec, 'data'), mesh)
  stacked = jax.device_put(
    jax.tree.map(lambda *leaves: np.stack(leaves), *(own for _, own in each)),
    copies,
  )
  batch = _batch(4)
  together = jax.jit(jax.vmap(gradient, (None, 0, 0, 0)), out_shardings=copies)(
    sharding.shard(frozen, mesh),
    stacked,
    *jax.device_put(tuple(batch), jax.NamedSharding(mesh, P('data'))),
  )
  for leaf, spec in zip(
    jax.tree.leaves(stacked) + jax.tree.leaves(together),
    jax.tree.leaves(trained_spec) * 2,
    strict=True,
  ):
    part = 4 * (2 if 'model' in spec else 1)
    assert all(
      shard.data.nbytes * part == leaf.nbytes
      for shard in leaf.addressable_shards
    )
  alone = jax.jit(gradient)
  for i, (_, own) in enumerate(each):
    expected = alone(frozen, own, batch[0, i], batch[1, i])
    _assert_close(jax.tree.map(lambda x, i=i: x[i], together), expected)


@pytest.mark.parametrize(
  'asked, shape',
  [
    ((0, 1), (8, 1)),
    ((0, 2), (4, 2)),
    ((2, 0), (2, 4)),
    ((1, 1), (1, 1)),
    ((2, 2), (2, 2)),
  ],
)
def test_make_mesh(asked, shape):
  mesh = sharding.make_mesh(*asked)
  assert mesh.axis_names == ('data', 'model')
  assert mesh.devices.shape == shape
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  used = shape[0] * shape[1]
  assert set(mesh.devices.flat) == set(jax.devices()[:used])


@pytest.mark.parametrize(
  'asked, message',
  [
    ((3, 2), 'data=3 x mesh.model=2 does not divide the 8 devices'),
    ((4, 4), 'data=4 x mesh.model=4 does not divide the 8 devices'),
    ((0, 3), 'data=0 x mesh.model=3 does not divide the 8 devices'),
    ((0, 16), 'data=0 x mesh.model=16 does not divide the 8 devices'),
    ((0, 0), 'data=0 and mesh.model=0'),
    ((-1, 8), 'data=-1 and mesh.model=8'),
  ],
)
def test_make_mesh_refuses(asked, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(*asked)


def test_specs_refuse_what_fits_no_row_or_several(monkeypatch):
  mesh = sharding.make_mesh(2, 4)
  leaf = jax.ShapeDtypeStruct((16, 16), jnp.float32)
  with pytest.raises(ValueError, match=r'h\.0\.attn\.c_odd.weight .*0: none'):
    sharding.specs({'h': {'0': {'attn': {'c_odd': {'weight': leaf}}}}}, mesh)
  stacked = jax.ShapeDtypeStruct((4, 16, 16), jnp.float32)
  with pytest.raises(ValueError, match=r'wte\.weight .*\(4, 16, 16\)'):
    sharding.specs({'wte': {'weight': stacked}}, mesh)
  again = (r'wte\..*', (P(),))
  monkeypatch.setattr(sharding, 'TABLE', (*sharding.TABLE, again))
  with pytest.raises(ValueError, match=r'wte\.weight .* fits 2: .*wte\\\.\.\*'):
    sharding.specs({'wte': {'weight': leaf}}, mesh)
