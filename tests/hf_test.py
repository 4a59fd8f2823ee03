"""Checkpoint directories: read as `transformers` writes, and the reverse."""

import json
import os
import pathlib

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from tttnn.models import hf
from tttnn.models import model as model_lib

VOCAB = 31
COMMON = {'vocab_size': VOCAB, 'bos_token_id': 0, 'eos_token_id': 0}
GPT2 = transformers.GPT2Config(
  n_positions=12, n_embd=8, n_layer=2, n_head=2, **COMMON
)
GPT_NEO = transformers.GPTNeoConfig(
  max_position_embeddings=12,
  hidden_size=8,
  num_layers=2,
  num_heads=2,
  attention_types=[[['local', 'global'], 1]],
  window_size=3,
  **COMMON,
)
ROBERTA = transformers.RobertaConfig(
  vocab_size=VOCAB,
  max_position_embeddings=14,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=16,
)
TORCH = {
  'gpt2': (transformers.GPT2LMHeadModel, GPT2),
  'gpt_neo': (transformers.GPTNeoForCausalLM, GPT_NEO),
  'roberta': (transformers.RobertaForMaskedLM, ROBERTA),
}
TOKENS = np.random.default_rng(0).integers(3, VOCAB, (2, 9))
HEAD_OF_ROBERTA = [
  'lm_head.bias',
  'lm_head.dense.bias',
  'lm_head.dense.weight',
  'lm_head.layer_norm.bias',
  'lm_head.layer_norm.weight',
]


def _oracle(name):
  torch.manual_seed(0)
  model_class, config = TORCH[name]
  model = model_class(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn_like(parameter)
  return model


def _logits(oracle):
  with torch.no_grad():
    return oracle(torch.tensor(TOKENS)).logits.numpy()


def _tensors(directory):
  return safetensors.torch.load_file(pathlib.Path(directory) / hf.WEIGHTS)


def _rewrite(directory, tensors):
  path = pathlib.Path(directory) / hf.WEIGHTS
  safetensors.torch.save_file(tensors, path, {'format': 'pt'})


def _assert_equal(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.fixture
def gpt2(tmp_path):
  """A directory as `transformers` writes it."""
  _oracle('gpt2').save_pretrained(tmp_path)
  return tmp_path


@pytest.fixture
def encoder(tmp_path):
  _oracle('roberta').save_pretrained(tmp_path)
  return tmp_path


@pytest.mark.parametrize('theirs, ours', [('1GB', 5e9), ('3KB', 3e3)])
@pytest.mark.parametrize('name', TORCH)
def test_round_trip_in_one_file_and_in_shards(name, theirs, ours, tmp_path):
  oracle = _oracle(name)
  oracle.save_pretrained(tmp_path / 'theirs', max_shard_size=theirs)
  model, params = hf.load(tmp_path / 'theirs')
  leaves = jax.tree.leaves(params)
  assert {leaf.dtype.name for leaf in leaves} == {'float32'}
  np.testing.assert_allclose(
    jax.jit(model.logits)(params, TOKENS), _logits(oracle), rtol=0, atol=1e-4
  )

  hf.save(tmp_path / 'ours', model, params, max_shard_bytes=ours)
  for side in ('theirs', 'ours'):
    assert (tmp_path / side / hf.INDEX).is_file() == (ours < 5e9)
  back = type(oracle).from_pretrained(tmp_path / 'ours')
  np.testing.assert_array_equal(_logits(back), _logits(oracle))
  again, params_again = hf.load(tmp_path / 'ours')
  assert again == model
  _assert_equal(params_again, params)


@pytest.mark.parametrize('name', TORCH)
def test_new_parameters_are_read_by_transformers(name, tmp_path):
  config = model_lib.ARCHITECTURES[name].Config.create(
    vocab_size=VOCAB, layers=2, width=8, heads=2, context=12
  )
  model = model_lib.Model(name, config)
  params = model.init(jax.random.key(0))
  hf.save(tmp_path, model, params)
  oracle, info = TORCH[name][0].from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(info.values())
  np.testing.assert_allclose(
    jax.jit(model.logits)(params, TOKENS),
    _logits(oracle.eval()),
    rtol=0,
    atol=1e-4,
  )


def test_base_model_without_prefix(tmp_path):
  oracle = _oracle('gpt2')
  oracle.transformer.save_pretrained(tmp_path)
  assert 'wte.weight' in _tensors(tmp_path)
  model, params = hf.load(tmp_path)
  np.testing.assert_allclose(
    jax.jit(model.logits)(params, TOKENS), _logits(oracle), rtol=0, atol=1e-4
  )


def test_embedder_needs_no_head_and_drops_the_one_it_finds(encoder, tmp_path):
  _, with_head = hf.load(encoder)
  model, params = hf.load(encoder, role='embedder')
  assert sorted(params) == ['embeddings', 'encoder']
  del with_head['lm_head']
  _assert_equal(params, with_head)

  # The plain encoder, with the pooler that nobody needs.
  oracle = _oracle('roberta')
  base = transformers.RobertaModel(ROBERTA)
  base.load_state_dict(oracle.roberta.state_dict(), strict=False)
  base.save_pretrained(tmp_path / 'base')
  assert 'pooler.dense.weight' in _tensors(tmp_path / 'base')
  _assert_equal(hf.load(tmp_path / 'base', role='embedder')[1], params)
  with pytest.raises(
    ValueError, match=f'missing: {", ".join(HEAD_OF_ROBERTA)}'
  ):
    hf.load(tmp_path / 'base')

  # What we write without a head is a base model, too.
  hf.save(tmp_path / 'ours', model, params)
  back = transformers.AutoModel.from_pretrained(tmp_path / 'ours').eval()
  with torch.no_grad():
    hidden = back(torch.tensor(TOKENS)).last_hidden_state.numpy()
  np.testing.assert_allclose(
    jax.jit(model.hidden)(params, TOKENS), hidden, rtol=0, atol=1e-5
  )


@pytest.mark.parametrize(
  'name, extras, tied',
  [
    (
      'gpt2',
      ['transformer.h.1.attn.bias', 'transformer.h.0.attn.masked_bias'],
      {'lm_head.weight': 'transformer.wte.weight'},
    ),
    (
      'gpt_neo',
      [
        'transformer.h.0.attn.attention.bias',
        'transformer.h.1.attn.attention.masked_bias',
      ],
      {'lm_head.weight': 'transformer.wte.weight'},
    ),
    (
      'roberta',
      ['roberta.embeddings.position_ids', 'roberta.pooler.dense.weight'],
      {
        'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
        'lm_head.decoder.bias': 'lm_head.bias',
      },
    ),
  ],
)
def test_names_that_published_checkpoints_carry(name, extras, tied, tmp_path):
  _oracle(name).save_pretrained(tmp_path)
  _, expected = hf.load(tmp_path)
  tensors = _tensors(tmp_path)
  for extra in extras:
    tensors[extra] = torch.ones(1, 3, dtype=torch.int64)
  for alias, source in tied.items():
    tensors[alias] = tensors[source].clone()
  _rewrite(tmp_path, tensors)
  _assert_equal(hf.load(tmp_path)[1], expected)

  for alias, source in tied.items():
    alone = {key: value for key, value in tensors.items() if key != source}
    _rewrite(tmp_path, alone)
    _assert_equal(hf.load(tmp_path)[1], expected)
    _rewrite(tmp_path, tensors | {alias: tensors[alias] + 1})
    with pytest.raises(ValueError, match=f'{alias} differs from'):
      hf.load(tmp_path)


def test_all_faults_are_named_at_once(gpt2):
  tensors = _tensors(gpt2)
  del tensors['transformer.h.0.ln_1.bias'], tensors['transformer.wpe.weight']
  tensors['transformer.h.2.ln_1.bias'] = torch.zeros(8)
  kernel = tensors['transformer.h.1.mlp.c_fc.weight']
  tensors['transformer.h.1.mlp.c_fc.weight'] = kernel.T.contiguous()
  _rewrite(gpt2, tensors)
  with pytest.raises(ValueError) as error:
    hf.load(gpt2)
  assert str(error.value) == (
    f'{gpt2} does not fit the model; missing: h.0.ln_1.bias, wpe.weight; '
    'extra: h.2.ln_1.bias; '
    'misshapen: h.1.mlp.c_fc.weight is (32, 8) and must be (8, 32)'
  )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(gpt2, dtype):
  tensors = {key: value.to(dtype) for key, value in _tensors(gpt2).items()}
  _rewrite(gpt2, tensors)
  _, params = hf.load(gpt2)
  weight = params['h']['0']['attn']['c_attn']['weight']
  assert weight.dtype == np.float32
  expected = tensors['transformer.h.0.attn.c_attn.weight'].float().numpy()
  np.testing.assert_array_equal(weight, expected)


def test_tensors_that_are_no_floats_are_refused(gpt2):
  tensors = _tensors(gpt2)
  tensors['transformer.ln_f.bias'] = torch.zeros(8, dtype=torch.int8)
  _rewrite(gpt2, tensors)
  with pytest.raises(ValueError, match='ln_f.bias is int8'):
    hf.load(gpt2)


def test_one_tensor_under_two_names_is_refused(gpt2):
  tensors = _tensors(gpt2)
  tensors['ln_f.bias'] = torch.zeros(8)
  _rewrite(gpt2, tensors)
  with pytest.raises(ValueError, match='ln_f.bias is there twice'):
    hf.load(gpt2)


def test_broken_directories(gpt2):
  weights = gpt2 / hf.WEIGHTS
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=f'{weights} cannot be read'):
    hf.load(gpt2)

  weights.rename(gpt2 / 'pytorch_model.bin')
  with pytest.raises(ValueError, match='refs/pr/N'):
    hf.load(gpt2)

  index = {'weight_map': {'transformer.wte.weight': 'model-1.safetensors'}}
  (gpt2 / hf.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match='names model-1.safetensors, which is'):
    hf.load(gpt2)

  config = gpt2 / hf.CONFIG
  config.write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="model_type 'bert' is not implemented"):
    hf.load(gpt2)
  config.write_text('{"model_type"')
  with pytest.raises(ValueError, match=f'{config} is not JSON'):
    hf.load(gpt2)
  config.unlink()
  with pytest.raises(ValueError, match='holds no config.json'):
    hf.load(gpt2)


def test_roles(gpt2):
  with pytest.raises(ValueError, match="role 'encoder'"):
    hf.load(gpt2, role='encoder')
  with pytest.raises(ValueError, match="dtype 'float16'"):
    hf.load(gpt2, dtype='float16')


def test_save_refuses_params_of_another_model(gpt2, tmp_path):
  model, params = hf.load(gpt2)
  params['ln_f'] = {'weight': np.zeros(9, np.float32)}
  with pytest.raises(
    ValueError, match=r'missing: ln_f.bias; misshapen: ln_f.w'
  ):
    hf.save(tmp_path / 'out', model, params)
  assert not (tmp_path / 'out').exists()


def test_save_replaces_shards_and_keeps_the_tokenizer(gpt2, tmp_path):
  model, params = hf.load(gpt2)
  out = tmp_path / 'out'
  hf.save(out, model, params, max_shard_bytes=3e3)
  (out / 'tokenizer.json').write_text('{}')
  on_devices = jax.tree.map(lambda leaf: jnp.asarray(leaf) + 1, params)
  hf.save(out, model, on_devices)
  assert sorted(os.listdir(out)) == [hf.CONFIG, hf.WEIGHTS, 'tokenizer.json']
  _assert_equal(hf.load(out)[1], on_devices)


def test_interrupted_save_leaves_the_old_or_nothing(gpt2, monkeypatch):
  model, old = hf.load(gpt2)
  new = jax.tree.map(lambda leaf: leaf + 1, old)
  replace, moves = os.replace, []

  def interrupted(source, target):
    if len(moves) == allowed:
      raise KeyboardInterrupt
    moves.append(target)
    replace(source, target)

  monkeypatch.setattr(os, 'replace', interrupted)
  allowed = 0
  while True:
    moves.clear()
    try:
      hf.save(gpt2, model, new, max_shard_bytes=3e3)
      break
    except KeyboardInterrupt:
      with pytest.raises(ValueError, match='holds no config.json'):
        hf.load(gpt2)
      allowed += 1
  assert allowed > 3
  assert not [name for name in os.listdir(gpt2) if name.startswith('.')]
  _assert_equal(hf.load(gpt2)[1], new)


def test_resolve(gpt2, tmp_path, monkeypatch):
  assert hf.resolve(str(gpt2)) == gpt2
  with pytest.raises(ValueError, match="revision 'v1' goes with a hub id"):
    hf.resolve(str(gpt2), 'v1')
  for path in ('/no/such/dir', './gone', '~/gone/x', 'a/b/c'):
    with pytest.raises(ValueError, match=f'there is no directory {path}'):
      hf.resolve(path)

  cache = tmp_path / 'cache'
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(cache))
  with pytest.raises(ValueError, match="'someone/lm' is no directory here.*v1"):
    hf.resolve('someone/lm', 'v1')
  snapshot = cache / 'models--someone--lm' / 'snapshots' / 'abc'
  snapshot.mkdir(parents=True)
  refs = cache / 'models--someone--lm' / 'refs'
  refs.mkdir()
  (refs / 'v1').write_text('abc')
  assert hf.resolve('someone/lm', 'v1') == snapshot
