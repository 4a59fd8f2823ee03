"""T5 against its PyTorch model, and what an encoder-decoder promises."""

import copy
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from transformers.models.t5 import modeling_t5

from tests import tiny
from tttnn import checkpoint
from tttnn import sharding
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf
from tttnn.models import relative
from tttnn.models import seq2seq
from tttnn.models import t5

CASES = [
  ('relu', True),
  ('relu', False),
  ('gated-gelu', True),
  ('gated-gelu', False),
]
LENGTHS_B = np.array([25, 13, 1])
TARGETS_B = np.array([30, 1, 18])  # Beyond the longest distance, 20.
# Of each kind of parameter one; shared is in all three places.
GRADIENTS = (
  'shared.weight',
  'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
  'encoder.block.1.layer.0.SelfAttention.k.weight',
  'encoder.block.2.layer.1.layer_norm.weight',
  'encoder.final_layer_norm.weight',
  'decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
  'decoder.block.0.layer.1.EncDecAttention.v.weight',
  'decoder.block.1.layer.0.SelfAttention.q.weight',
  'decoder.block.1.layer.1.EncDecAttention.o.weight',
  'decoder.block.1.layer.2.DenseReluDense.wo.weight',
)

pytestmark = pytest.mark.usefixtures('compile_fast')


# Compiled once for each model and shape.
@functools.partial(jax.jit, static_argnums=0)
def _run_all(model, params, *batch):
  """(logits, log-likelihoods, keys by kind)."""
  score_BxU = model.log_likelihood(params, *batch)
  keys = {kind: model.keys(params, *batch, kind) for kind in seq2seq.KEYS}
  return model.logits(params, *batch), score_BxU, keys


_begin = jax.jit(
  lambda model, params, inputs_BxT, mask_BxT, *sizes: model.init_cache(
    params, model.encode(params, inputs_BxT, mask_BxT), mask_BxT, *sizes
  ),
  static_argnums=(0, 4, 5),
)


def _batch(seed=0):
  """Inputs [3, 25], their mask, targets [3, 30] and their mask."""
  rng = np.random.default_rng(seed)
  mask_BxT = np.arange(25) < LENGTHS_B[:, None]
  inputs_BxT = rng.integers(4, tiny.VOCABULARY, mask_BxT.shape)
  real_BxU = np.arange(30) < TARGETS_B[:, None]
  targets_BxU = rng.integers(4, tiny.VOCABULARY, real_BxU.shape)
  return (
    np.where(mask_BxT, inputs_BxT, 0),
    mask_BxT,
    np.where(real_BxU, targets_BxU, 0),
    real_BxU,
  )


def _run(reference, inputs_BxT, mask_BxT, targets_BxU, real_BxU):
  labels = np.where(real_BxU, targets_BxU, -100)
  return reference(
    torch.tensor(inputs_BxT),
    attention_mask=torch.tensor(mask_BxT).long(),
    labels=torch.tensor(labels),
  )


def _named(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {'.'.join(key.key for key in path): leaf for path, leaf in leaves}


def _random_params(model):
  """On the host, no norm as it begins."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda x: (
      (len(x.shape) == 1) + rng.normal(0, 0.2, x.shape).astype(np.float32)
    ),
    shapes,
  )


@pytest.mark.parametrize('case', CASES)
def test_logits_and_loss_equal_torch(case):
  model, params, reference = tiny.seq2seq(*case)
  inputs_BxT, mask_BxT, targets_BxU, real_BxU = _batch()
  with torch.no_grad():
    output = _run(reference, *_batch())
  logits, score_BxU, _ = _run_all(
    model, params, inputs_BxT, mask_BxT, targets_BxU
  )
  assert logits.dtype == np.float32
  np.testing.assert_allclose(
    logits[real_BxU], output.logits.numpy()[real_BxU], rtol=0, atol=1e-4
  )
  np.testing.assert_allclose(
    -np.mean(score_BxU[real_BxU]), output.loss.item(), rtol=0, atol=1e-5
  )


@pytest.mark.parametrize('case', [CASES[0], CASES[3]])
def test_gradients_equal_torch(case):
  model, params, reference = tiny.seq2seq(*case)
  *batch, real_BxU = _batch()
  reference.zero_grad()
  output = _run(reference, *_batch())
  output.loss.backward()
  weights_BxU = real_BxU / np.float32(real_BxU.sum())
  # That which computes activations again, where it is there to be tested.
  model = dataclasses.replace(model, remat=case[1])
  loss, gradients = jax.jit(jax.value_and_grad(model.cross_entropy))(
    params, *batch, weights_BxU
  )
  np.testing.assert_allclose(loss, output.loss.item(), rtol=0, atol=1e-5)
  expected = dict(reference.named_parameters())
  gradients = _named(gradients)
  for name in (*GRADIENTS, *([] if case[1] else ['lm_head.weight'])):
    gradient = expected[name].grad.numpy()
    if name.split('.')[-2] in ('q', 'k', 'v', 'o', 'wo'):
      gradient = gradient.T
    error = np.linalg.norm(gradients[name] - gradient)
    assert error <= 1e-4 * np.linalg.norm(gradient), name


@pytest.mark.parametrize('count, longest', [(32, 128), (8, 20), (6, 7)])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_buckets_of_distances_equal_torch(count, longest, bidirectional):
  distance = np.arange(-3 * longest, 3 * longest)
  np.testing.assert_array_equal(
    relative.buckets(jnp.asarray(distance), count, longest, bidirectional),
    modeling_t5.T5Attention._relative_position_bucket(
      torch.tensor(distance), bidirectional, count, longest
    ),
  )


@pytest.mark.parametrize('case', [CASES[0], CASES[3]])
def test_keys_equal_activations_that_torch_passes_on(case):
  model, params, reference = tiny.seq2seq(*case)
  # In float64: what torch rounds in float32 is as much as we do.
  reference = copy.deepcopy(reference).double()
  inputs_BxT, mask_BxT, targets_BxU, real_BxU = _batch()
  last = reference.decoder.block[-1].layer[2]
  captured = {}
  hooks = [
    last.DenseReluDense.register_forward_hook(
      lambda module, args, out: captured.update(
        ffn_input=args[0], ffn_output=out
      )
    ),
    reference.decoder.final_layer_norm.register_forward_hook(
      lambda module, args, out: captured.update(final_hidden=out)
    ),
  ]
  with torch.no_grad():
    _run(reference, *_batch())
  for hook in hooks:
    hook.remove()
  _, score_BxU, keys = _run_all(
    model, params, inputs_BxT, mask_BxT, targets_BxU
  )
  assert captured.keys() == keys.keys()
  for kind, activations in captured.items():
    assert keys[kind].dtype == np.float32
    np.testing.assert_allclose(
      keys[kind][real_BxU], activations.numpy()[real_BxU], rtol=0, atol=1e-4
    )
  one_pass = jax.jit(model.log_likelihood_and_keys, static_argnums=4)
  both = one_pass(params, inputs_BxT, mask_BxT, targets_BxU, 'ffn_output')
  np.testing.assert_allclose(both[0], score_BxU, rtol=0, atol=1e-5)
  np.testing.assert_allclose(both[1], keys['ffn_output'], rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match="no key 'hidden'; there are .*ffn_i"):
    model.keys(params, inputs_BxT, mask_BxT, targets_BxU, 'hidden')


def test_a_key_depends_on_earlier_targets_and_the_whole_input():
  model, params, _ = tiny.seq2seq()
  inputs_BxT, mask_BxT, targets_BxU, _ = _batch()

  def keys():
    found = _run_all(model, params, inputs_BxT, mask_BxT, targets_BxU)[2]
    return found['final_hidden']

  before = keys()
  targets_BxU[:, 7] = 90
  after = keys()
  differs_U = np.abs(after - before).max(axis=(0, 2)) > 1e-6
  np.testing.assert_array_equal(differs_U, np.arange(30) > 7)
  inputs_BxT[0, 24] = 90
  assert (np.abs(keys() - after)[0].max(axis=1) > 1e-6).all()


def test_padding_changes_nothing():
  model, params, _ = tiny.seq2seq('gated-gelu', False)
  inputs_BxT, mask_BxT, targets_BxU, real_BxU = _batch()
  logits, score_BxU, keys = _run_all(
    model, params, inputs_BxT, mask_BxT, targets_BxU
  )
  # Of other tokens first, then none.
  inputs_BxT = np.where(mask_BxT, inputs_BxT, 50)
  others = _run_all(
    model,
    params,
    inputs_BxT,
    mask_BxT,
    np.where(real_BxU, targets_BxU, 50),
  )
  np.testing.assert_array_equal(others[0][real_BxU], logits[real_BxU])
  row, tokens, targets = 2, LENGTHS_B[2], TARGETS_B[2]
  _, alone, its_keys = _run_all(
    model,
    params,
    inputs_BxT[row : row + 1, :tokens],
    None,
    targets_BxU[row : row + 1, :targets],
  )
  np.testing.assert_allclose(
    score_BxU[row, :targets], alone[0], rtol=0, atol=2e-5
  )
  for kind in seq2seq.KEYS:
    np.testing.assert_allclose(
      keys[kind][row, :targets], its_keys[kind][0], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize('case', [CASES[0], CASES[3]])
def test_decoding_by_the_cache_equals_the_whole_text(case):
  model, params, _ = tiny.seq2seq(*case)
  inputs_BxT, mask_BxT, targets_BxU, _ = _batch()
  whole_BxUxV, _, keys = _run_all(
    model, params, inputs_BxT, mask_BxT, targets_BxU
  )
  cache = _begin(model, params, inputs_BxT, mask_BxT, 30)
  decode = jax.jit(functools.partial(model.decode, kind='ffn_output'))
  start_Bx1 = np.full((3, 1), model.config.decoder_start_token_id)
  tokens_BxU = np.concatenate([start_Bx1, targets_BxU[:, :-1]], axis=1)
  # The first five at once, the others one by one.
  for begin, stop in [(0, 5), *((u, u + 1) for u in range(5, 30))]:
    logits_BxV, key_BxD, cache = decode(
      params, tokens_BxU[:, begin:stop], cache
    )
    np.testing.assert_allclose(
      logits_BxV, whole_BxUxV[:, stop - 1], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(
      key_BxD, keys['ffn_output'][:, stop - 1], rtol=0, atol=1e-4
    )
  with pytest.raises(ValueError, match='2 rows of 1 tokens .* of 3 rows'):
    model.decode(params, start_Bx1[:2], cache)
  with pytest.raises(ValueError, match='3 rows of 31 tokens .* of 30 tokens'):
    model.decode(params, np.zeros((3, 31), int), cache)


def test_rows_go_on_from_rows_of_the_same_input():
  model, params, _ = tiny.seq2seq()
  inputs_BxT, mask_BxT, _, _ = _batch()
  empty = _begin(model, params, inputs_BxT, mask_BxT, 3, 2)
  decode = jax.jit(model.decode)
  rng = np.random.default_rng(0)
  tokens_RxU = rng.integers(4, tiny.VOCABULARY, (6, 3))
  texts_RxU = np.empty((6, 0), int)
  cache = empty
  # Both rows of input 0 come from its second, those of input 1 change places.
  for step, rows in enumerate(['012345', '113245', '103254']):
    rows_R = np.array(list(map(int, rows)))
    new_Rx1 = tokens_RxU[:, step, None]
    texts_RxU = np.concatenate([texts_RxU[rows_R], new_Rx1], axis=1)
    logits_RxV, key_RxD, cache = decode(params, new_Rx1, cache, rows_R)
  expected_RxV, expected_RxD, _ = decode(params, texts_RxU, empty)
  np.testing.assert_allclose(logits_RxV, expected_RxV, rtol=0, atol=1e-5)
  np.testing.assert_allclose(key_RxD, expected_RxD, rtol=0, atol=1e-5)


def test_dropout_is_active_only_with_a_key():
  model, params, _ = tiny.seq2seq()
  config = dataclasses.replace(model.config, dropout_rate=0.3)
  dropping = dataclasses.replace(model, config=config)
  batch = _batch()[:3]
  key_a, key_b = jax.random.split(jax.random.key(1))
  score = jax.jit(dropping.log_likelihood)
  clean = score(params, *batch)
  expected = _run_all(model, params, *batch)[1]
  np.testing.assert_allclose(clean, expected, rtol=0, atol=1e-5)
  a, again, b = (score(params, *batch, key) for key in (key_a, key_a, key_b))
  np.testing.assert_array_equal(a, again)
  assert np.abs(a - clean).max() > 1e-2 < np.abs(a - b).max()


def test_bfloat16_rounds_and_scores_in_float32():
  model, params, _ = tiny.seq2seq('gated-gelu', True)
  half = dataclasses.replace(model, dtype='bfloat16')
  inputs_BxT, mask_BxT, targets_BxU, real_BxU = _batch()
  _, exact, _ = _run_all(model, params, inputs_BxT, mask_BxT, targets_BxU)
  logits, rough, keys = _run_all(
    half, params, inputs_BxT, mask_BxT, targets_BxU
  )
  assert logits.dtype == rough.dtype == np.float32
  for key in keys.values():
    assert key.dtype == np.float32
    np.testing.assert_array_equal(key, key.astype(jnp.bfloat16))
  error = np.abs(rough - exact)[real_BxU]
  assert 1e-4 < error.max() < 0.2
  with pytest.raises(ValueError, match="dtype 'float16'"):
    dataclasses.replace(model, dtype='float16')


@pytest.mark.parametrize(
  'case, data, model_axis',
  [(CASES[0], 2, 4), (CASES[3], 1, 8)],
)
def test_eight_devices_equal_one(case, data, model_axis):
  feed_forward, tied = case
  model = seq2seq.Model(
    t5.Config(
      vocab_size=96,
      d_model=16,
      d_kv=4,
      d_ff=32,
      num_layers=1,
      num_heads=8,
      feed_forward_proj=feed_forward,
      tie_word_embeddings=tied,
    )
  )
  rng = np.random.default_rng(0)
  mask_BxT = np.arange(12) < rng.integers(1, 13, (8, 1))
  inputs_BxT, targets_BxU = rng.integers(4, 96, (2, 8, 12))
  batch = (inputs_BxT, mask_BxT, targets_BxU)
  host = _random_params(model)
  mesh = sharding.make_mesh(data, model_axis)
  params = sharding.shard(host, mesh)
  for name, leaf in _named(params).items():
    part = 1 if name.endswith('layer_norm.weight') else model_axis
    for shard in leaf.addressable_shards:
      assert shard.data.nbytes * part == leaf.nbytes, name
  rows = jax.NamedSharding(mesh, sharding.P('data'))

  def total(params, *batch):
    weights_BxU = jnp.full(batch[2].shape, 1 / batch[2].size)
    return model.cross_entropy(params, *batch, weights_BxU)

  together = jax.jit(
    jax.value_and_grad(total),
    out_shardings=(None, sharding.shardings(host, mesh)),
  )
  loss, gradients = together(params, *jax.device_put(batch, rows))
  expected_loss, expected = jax.jit(jax.value_and_grad(total))(host, *batch)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  for name, gradient in _named(expected).items():
    error = np.linalg.norm(np.asarray(_named(gradients)[name]) - gradient)
    assert error <= 1e-5 * np.linalg.norm(gradient) + 1e-7, name


@pytest.mark.parametrize('feed_forward, tied', CASES)
def test_every_parameter_fits_one_row_of_the_table(feed_forward, tied):
  model = seq2seq.Model(
    t5.Config(feed_forward_proj=feed_forward, tie_word_embeddings=tied)
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  specs = _named(sharding.specs(shapes, sharding.make_mesh(2, 4)))
  for name, leaf in _named(shapes).items():
    assert ('model' in specs[name]) == (len(leaf.shape) == 2), name


@pytest.mark.parametrize('case', [CASES[0], CASES[3]])
def test_new_parameters_are_drawn_as_torch_draws_them(case, tmp_path):
  sizes = {
    'vocab_size': 500,
    'd_model': 64,
    'd_kv': 12,
    'd_ff': 160,
    'num_layers': 1,
    'num_heads': 9,
    'initializer_factor': 0.5,
    'feed_forward_proj': case[0],
    'tie_word_embeddings': case[1],
  }
  torch.manual_seed(0)
  oracle = transformers.T5ForConditionalGeneration(
    transformers.T5Config(**sizes)
  )
  model = seq2seq.Model(t5.Config(**sizes))
  params = model.init(jax.random.key(0))
  found, expected = _named(params), dict(oracle.named_parameters())
  # The oracle has one head in any case.
  assert found.keys() - {'lm_head.weight'} == expected.keys()
  for name, parameter in expected.items():
    actual, array = np.asarray(found[name]), parameter.detach().numpy()
    assert actual.dtype == np.float32 and actual.size == array.size
    few = actual.size < 1000
    np.testing.assert_allclose(
      actual.std(), array.std(), rtol=0.2 if few else 0.1, err_msg=name
    )
    if actual.ndim == 1:
      np.testing.assert_array_equal(actual, array)
  if not case[1]:
    np.testing.assert_allclose(found['lm_head.weight'].std(), 0.5, rtol=0.1)

  hf.save(tmp_path, model, params)
  _, info = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(info.values())


@pytest.mark.parametrize(
  'case, theirs, ours',
  [*((case, '1GB', 5e9) for case in CASES), (CASES[3], '9KB', 9e3)],
)
def test_checkpoint_round_trip(case, theirs, ours, tmp_path):
  model, params, reference = tiny.seq2seq(*case)
  reference.save_pretrained(tmp_path / 'theirs', max_shard_size=theirs)
  read = hf.load(tmp_path / 'theirs', role='seq2seq')
  assert read[0] == model
  jax.tree.map(np.testing.assert_array_equal, read[1], params)
  hf.save(tmp_path / 'ours', model, params, max_shard_bytes=ours)
  for side in ('theirs', 'ours'):
    assert (tmp_path / side / hf.INDEX).is_file() == (ours < 5e9)
  back = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path / 'ours', attn_implementation='eager'
  ).eval()
  with torch.no_grad():
    assert torch.equal(
      _run(back, *_batch()).logits, _run(reference, *_batch()).logits
    )
  again, params_again = hf.load(tmp_path / 'ours', role='seq2seq')
  assert again == model
  jax.tree.map(np.testing.assert_array_equal, params_again, params)


def _directory(tmp_path, tied=True):
  """(path, its tensors, params) of a checkpoint to be changed."""
  model, params, _ = tiny.seq2seq('relu', tied)
  hf.save(tmp_path, model, params)
  return tmp_path, safetensors.torch.load_file(tmp_path / hf.WEIGHTS), params


def _rewrite(directory, tensors):
  safetensors.torch.save_file(tensors, directory / hf.WEIGHTS, {'format': 'pt'})


def test_names_that_published_checkpoints_carry(tmp_path):
  directory, tensors, expected = _directory(tmp_path)
  cross = 'decoder.block.0.layer.1.EncDecAttention.'
  tensors[f'{cross}relative_attention_bias.weight'] = torch.ones(8, 4)
  aliases = ['encoder.embed_tokens', 'decoder.embed_tokens', 'lm_head']
  for alias in aliases:
    tensors[f'{alias}.weight'] = tensors['shared.weight'].clone()
  _rewrite(directory, tensors)
  _, params = hf.load(directory, role='seq2seq')
  jax.tree.map(np.testing.assert_array_equal, params, expected)

  without = {k: v for k, v in tensors.items() if k != 'shared.weight'}
  _rewrite(directory, without)
  _, params = hf.load(directory, role='seq2seq')
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  for alias in aliases:
    name = f'{alias}.weight'
    _rewrite(directory, tensors | {name: tensors[name] + 1})
    with pytest.raises(ValueError, match=f'{name} differs from shared.weight'):
      hf.load(directory, role='seq2seq')


def test_missing_and_extra_tensors_are_refused(tmp_path):
  directory, tensors, _ = _directory(tmp_path, tied=False)
  block = 'decoder.block.1.layer.2.DenseReluDense'
  del tensors['lm_head.weight'], tensors[f'{block}.wo.weight']
  tensors[f'{block}.wi_0.weight'] = torch.ones(40, 24)
  # Such a bias is let pass in the decoder's first block alone.
  extra = 'decoder.block.1.layer.1.EncDecAttention.relative_attention_bias'
  tensors[f'{extra}.weight'] = torch.ones(8, 4)
  key = 'encoder.block.0.layer.0.SelfAttention.k.weight'
  tensors[key] = tensors[key].T.contiguous()
  _rewrite(directory, tensors)
  with pytest.raises(ValueError) as error:
    hf.load(directory, role='seq2seq')
  assert str(error.value).endswith(
    f'missing: {block}.wo.weight, lm_head.weight; '
    f'extra: {extra}.weight, {block}.wi_0.weight; '
    f'misshapen: {key} is (20, 24) and must be (24, 20)'
  )


def test_roles(tmp_path):
  directory, _, _ = _directory(tmp_path / 't5')
  for role in ('lm', 'embedder'):
    with pytest.raises(ValueError, match=f"a t5 is not for the role '{role}'"):
      checkpoint.load_model(str(directory), role=role)
  tiny.causal('gpt2', 64)[2].save_pretrained(tmp_path / 'gpt2')
  with pytest.raises(ValueError, match="a gpt2 is not .* 'seq2seq'"):
    checkpoint.load_model(str(tmp_path / 'gpt2'), role='seq2seq')


def test_orbax_checkpoints_are_read(tmp_path):
  model, params, _ = tiny.seq2seq('gated-gelu', False)
  run = checkpoint.Checkpoints(str(tmp_path), every=1, keep=1)
  run.save(1, {'params': params, 'optimizer': {'count': jnp.zeros(2)}}, {})
  run.close()
  (tmp_path / 'config.json').write_text(json.dumps(model.config.to_hf()))
  read, found = checkpoint.load_model(str(tmp_path), role='seq2seq')
  assert read == model
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize('class_name', ['PreTrainedTokenizerFast', 'T5'])
def test_the_tokenizer_beside_a_checkpoint_is_read(class_name, tmp_path):
  directory, _, _ = _directory(tmp_path)
  unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
  unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  unigram.decoder = tokenizers.decoders.Metaspace()
  unigram.train_from_iterator(
    tiny.documents(30),
    tokenizers.trainers.UnigramTrainer(
      vocab_size=90,
      special_tokens=['<pad>', '</s>', '<unk>'],
      unk_token='<unk>',
      show_progress=False,
    ),
  )
  roles = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  made = transformers.PreTrainedTokenizerFast(tokenizer_object=unigram, **roles)
  made.save_pretrained(directory)
  if class_name == 'T5':
    path = directory / 'tokenizer_config.json'
    config = json.loads(path.read_text())
    config |= {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}
    path.write_text(json.dumps(config))
  tokenizer = tokenizer_lib.load(str(directory))
  assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
  rows = tokenizer_lib.encode(tokenizer, ['quick brown fox', 'daft zebras'])
  assert [tokenizer.decode(row) for row in rows] == [
    'quick brown fox',
    'daft zebras',
  ]
  assert tokenizer.eos_token_id not in rows[0]
  shutil.rmtree(directory)


@pytest.mark.parametrize('case', CASES)
def test_config_is_read_of_any_version(case):
  feed_forward, tied = case
  ours = t5.Config(feed_forward_proj=feed_forward, tie_word_embeddings=tied)
  newest = transformers.T5Config(
    feed_forward_proj=feed_forward,
    tie_word_embeddings=tied,
    decoder_start_token_id=0,
  ).to_dict()
  assert newest['tie_word_embeddings']  # Whether it is or not.
  oldest = {
    'model_type': 't5',
    'feed_forward_proj': feed_forward,
    'tie_word_embeddings': tied,
    'n_positions': 512,
  }
  for values in (newest, oldest, ours.to_hf()):
    assert t5.Config.from_hf(values) == ours
  back = transformers.T5Config(**ours.to_hf())
  assert back.scale_decoder_outputs == tied
  assert back.is_gated_act == feed_forward.startswith('gated')
  assert back.dense_act_fn == ours.activation
  assert hash(seq2seq.Model(ours)) == hash(seq2seq.Model(ours))


@pytest.mark.parametrize(
  'values, message',
  [
    ({'feed_forward_proj': 'gated-mish'}, "activation 'mish'"),
    ({'feed_forward_proj': 'odd-gelu'}, "activation 'odd-gelu'"),
    ({'is_decoder': True}, 'is_decoder=True'),
    ({'dense_act_fn': 'silu'}, "dense_act_fn='silu', but only .*'relu'"),
    ({'is_gated_act': True}, 'is_gated_act=True'),
    ({'decoder_start_token_id': None}, 'decoder_start_token_id=None'),
  ],
)
def test_config_refuses_what_is_not_implemented(values, message):
  with pytest.raises(ValueError, match=message):
    t5.Config.from_hf({'model_type': 't5', **values})
