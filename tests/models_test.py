"""The architectures against their PyTorch models, and what they promise."""

import copy
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tttnn import optim
from tttnn.models import gpt2
from tttnn.models import gpt_neo
from tttnn.models import hf
from tttnn.models import layers
from tttnn.models import loss as loss_lib
from tttnn.models import model as model_lib
from tttnn.models import roberta

VOCAB = 61
CONTEXT = 24

GPT2 = {
  'vocab_size': VOCAB,
  'n_positions': CONTEXT,
  'n_embd': 24,
  'n_layer': 2,
  'n_head': 4,
  'bos_token_id': 0,
  'eos_token_id': 0,
}
GPT_NEO = {
  'vocab_size': VOCAB,
  'max_position_embeddings': CONTEXT,
  'hidden_size': 24,
  'num_layers': 2,
  'num_heads': 4,
  'attention_types': [[['global', 'local'], 1]],
  'window_size': 5,
  'bos_token_id': 0,
  'eos_token_id': 0,
}
ROBERTA = {
  'vocab_size': VOCAB,
  'max_position_embeddings': CONTEXT + 2,
  'hidden_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 40,
}
CASES = {
  'gpt2': ('gpt2', GPT2),
  'gpt2_untied_epsilon': (
    'gpt2',
    GPT2
    | {
      'n_head': 1,
      'n_inner': 20,
      'tie_word_embeddings': False,
      'layer_norm_epsilon': 0.3,
      'activation_function': 'gelu',
    },
  ),
  'gpt2_scales': (
    'gpt2',
    GPT2
    | {
      'n_head': 3,
      'scale_attn_weights': False,
      'scale_attn_by_inverse_layer_idx': True,
      'reorder_and_upcast_attn': True,
    },
  ),
  'gpt_neo': ('gpt_neo', GPT_NEO),
  'gpt_neo_untied_epsilon': (
    'gpt_neo',
    GPT_NEO
    | {
      'num_layers': 3,
      'num_heads': 6,
      'attention_types': [[['local'], 2], [['global'], 1]],
      'window_size': 2,
      'intermediate_size': 30,
      'tie_word_embeddings': False,
      'layer_norm_epsilon': 0.1,
      'activation_function': 'relu',
    },
  ),
  'roberta': ('roberta', ROBERTA),
  'roberta_epsilon_pad': (
    'roberta',
    ROBERTA
    | {
      'num_attention_heads': 3,
      'layer_norm_eps': 0.2,
      'hidden_act': 'gelu_new',
      'type_vocab_size': 1,
      'pad_token_id': 7,
      'max_position_embeddings': CONTEXT + 8,
    },
  ),
}
TORCH = {
  'gpt2': (transformers.GPT2Config, transformers.GPT2LMHeadModel),
  'gpt_neo': (transformers.GPTNeoConfig, transformers.GPTNeoForCausalLM),
  'roberta': (transformers.RobertaConfig, transformers.RobertaForMaskedLM),
}


pytestmark = pytest.mark.usefixtures('compile_fast')

# Compiled once for each model and shape.
_hidden = jax.jit(model_lib.Model.hidden, static_argnums=0)
_score = jax.jit(model_lib.Model.log_likelihood, static_argnums=0)


class Pair(NamedTuple):
  """A PyTorch model, the Model of equal weights, and a batch through both."""

  oracle: torch.nn.Module
  model: model_lib.Model
  params: model_lib.Params
  mask_BxT: np.ndarray
  oracle_logits: np.ndarray
  logits: np.ndarray
  gradients: model_lib.Params


def _oracle(model_type, sizes):
  """A PyTorch model with random weights; its biases are not zero."""
  torch.manual_seed(0)
  config_class, model_class = TORCH[model_type]
  oracle = model_class(config_class(**sizes, attn_implementation='eager'))
  with torch.no_grad():
    for parameter in oracle.parameters():
      parameter += 0.1 * torch.randn_like(parameter)
  return oracle.eval()


@pytest.fixture(params=CASES, scope='module')
def pair(request, tmp_path_factory):
  oracle = _oracle(*CASES[request.param])
  directory = tmp_path_factory.mktemp(request.param)
  oracle.save_pretrained(directory)
  model, params = hf.load(directory)
  tokens_BxT, targets_BxT, mask_BxT = _batch(model)

  oracle_logits = oracle(
    torch.tensor(tokens_BxT), attention_mask=torch.tensor(mask_BxT)
  ).logits
  _torch_loss(oracle_logits, targets_BxT, mask_BxT).backward()

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    loss = _loss(model, params, tokens_BxT, targets_BxT, mask_BxT)
    return loss, model.logits(params, tokens_BxT, mask_BxT)

  gradients, logits = gradient(params)
  return Pair(
    *(oracle, model, params, mask_BxT),
    *(oracle_logits.detach().numpy(), logits, gradients),
  )


def _batch(model):
  """Tokens and targets [3, 20], and a mask of 20, 13 and 1 real tokens."""
  rng = np.random.default_rng(0)
  pad = getattr(model.config, 'pad_token_id', None) or 1
  tokens_BxT = rng.integers(8, VOCAB, (3, 20))
  mask_BxT = np.arange(20) < np.array([[20], [13], [1]])
  tokens_BxT = np.where(mask_BxT, tokens_BxT, pad)
  return tokens_BxT, rng.integers(8, VOCAB, (3, 20)), mask_BxT


def _torch_loss(logits, targets_BxT, mask_BxT):
  log_p = torch.log_softmax(logits, -1)
  log_p = log_p.gather(-1, torch.tensor(targets_BxT)[..., None])[..., 0]
  return -log_p[torch.tensor(mask_BxT)].mean()


def _loss(model, params, tokens_BxT, targets_BxT, mask_BxT):
  if model.architecture.CAUSAL:
    log_p = model.log_likelihood(params, tokens_BxT, targets_BxT, mask_BxT)
  else:
    positions_BxT = jnp.broadcast_to(jnp.arange(20), (3, 20))
    log_p = model.masked_log_likelihood(
      params, tokens_BxT, mask_BxT, positions_BxT, targets_BxT
    )
  return -jnp.sum(jnp.where(mask_BxT, log_p, 0)) / jnp.sum(mask_BxT)


def _named(model, oracle, attribute):
  """{our name: array in our layout} of the torch parameters or gradients."""
  arrays = {}
  for full_name, parameter in oracle.named_parameters():
    name = full_name.removeprefix(model.architecture.PREFIX)
    array = getattr(parameter, attribute).detach().numpy()
    transposed = (
      array.ndim == 2
      and model.model_type != 'gpt2'
      and 'embedding' not in name
      and name not in ('wte.weight', 'wpe.weight', 'lm_head.weight')
    )
    arrays[name] = array.T if transposed else array
  return arrays


def _leaf(params, name):
  for part in name.split('.'):
    params = params[part]
  return np.asarray(params)


def _split_key_bias(name, array):
  """(array less the key projection's bias, that bias, which has no effect)."""
  if name.endswith('attn.c_attn.bias'):
    query, key, value = np.split(array, 3)
    return np.concatenate([query, value]), key
  if name.endswith('self.key.bias'):
    return np.zeros(0), array
  return array, np.zeros(0)


def test_logits_equal_torch(pair):
  assert pair.logits.dtype == np.float32
  np.testing.assert_allclose(
    pair.logits[pair.mask_BxT],
    pair.oracle_logits[pair.mask_BxT],
    rtol=0,
    atol=1e-4,
  )


def test_gradients_equal_torch(pair):
  for name, expected in _named(pair.model, pair.oracle, 'grad').items():
    gradient, noise = _split_key_bias(name, _leaf(pair.gradients, name))
    expected, expected_noise = _split_key_bias(name, expected)
    np.testing.assert_allclose(noise, expected_noise, rtol=0, atol=1e-6)
    error = np.linalg.norm(gradient - expected)
    assert error <= 1e-4 * np.linalg.norm(expected), name


def test_adamw_step_equals_torch(pair):
  oracle = copy.deepcopy(pair.oracle)
  for new, old in zip(
    oracle.parameters(), pair.oracle.parameters(), strict=True
  ):
    new.grad = old.grad.clone()
  optimizer = torch.optim.AdamW(oracle.parameters(), lr=1e-3, weight_decay=0.01)
  torch.nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
  optimizer.step()

  @jax.jit
  def step(params, gradients):
    tx = optim.adamw(1e-3, weight_decay=0.01, clip_norm=1.0)
    updates, _ = tx.update(gradients, tx.init(params), params)
    return jax.tree.map(jnp.add, params, updates)

  params = step(pair.params, pair.gradients)
  clipped = _named(pair.model, oracle, 'grad')
  unsure = count = 0
  for name, expected in _named(pair.model, oracle, 'data').items():
    # Adam's first step is lr * g / (|g| + 1e-8): about |g| = 1e-8 and in the
    # noise that key biases have for gradients, rounding decides.
    gradient, _ = _split_key_bias(name, clipped[name])
    sure = (gradient == 0) | (np.abs(gradient) > 1e-7)
    unsure, count = unsure + np.sum(~sure), count + sure.size
    np.testing.assert_allclose(
      _split_key_bias(name, _leaf(params, name))[0][sure],
      _split_key_bias(name, expected)[0][sure],
      rtol=0,
      atol=1e-5,
      err_msg=name,
    )
  assert unsure < 0.01 * count


@pytest.mark.parametrize('name', TORCH)
def test_padding_changes_nothing(name):
  model = _create(name)
  params = model.init(jax.random.key(0))
  tokens_BxT, _, mask_BxT = _batch(model)
  padded = _hidden(model, params, tokens_BxT, mask_BxT)
  alone = _hidden(model, params, tokens_BxT[1:2, :13])
  np.testing.assert_allclose(padded[1, :13], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['gpt2_scales', 'gpt_neo', 'roberta'])
def test_init_draws_as_torch(name):
  model_type, sizes = CASES[name]
  wide = {
    key: value * 8
    for key, value in sizes.items()
    if key in ('n_embd', 'hidden_size', 'vocab_size')
  }
  config_class, model_class = TORCH[model_type]
  torch.manual_seed(0)
  oracle = model_class(config_class(**sizes | wide))
  config = model_lib.ARCHITECTURES[model_type].Config.from_hf(sizes | wide)
  model = model_lib.Model(model_type, config)
  params = model.init(jax.random.key(0))
  for name, expected in _named(model, oracle, 'data').items():
    actual = _leaf(params, name)
    assert actual.shape == expected.shape and actual.dtype == np.float32
    np.testing.assert_allclose(actual.mean(), expected.mean(), atol=4e-3)
    np.testing.assert_allclose(actual.std(), expected.std(), rtol=0.1)
    np.testing.assert_array_equal(
      actual.any(axis=-1), expected.any(axis=-1), name
    )


def _create(name='gpt2', **dropout):
  arch = model_lib.ARCHITECTURES[name]
  config = arch.Config.create(
    vocab_size=VOCAB, layers=2, width=16, heads=2, context=CONTEXT
  )
  return model_lib.Model(name, dataclasses.replace(config, **dropout))


@pytest.mark.parametrize('name', model_lib.ARCHITECTURES)
def test_sequence_length_up_to_the_context(name):
  model = _create(name)
  assert (model.context, model.vocab_size, model.width) == (CONTEXT, VOCAB, 16)
  params = model.init(jax.random.key(0))
  tokens_BxT = np.full((1, CONTEXT), 9)
  assert np.isfinite(_hidden(model, params, tokens_BxT)).all()
  with pytest.raises(ValueError, match='25 tokens exceed the context of 24'):
    model.hidden(params, np.full((1, CONTEXT + 1), 9))


def test_token_out_of_range_is_not_silent():
  model = _create()
  params = model.init(jax.random.key(0))
  for token, finite in [(VOCAB - 1, True), (VOCAB, False)]:
    hidden = _hidden(model, params, np.array([[3, token]]))
    assert np.isfinite(hidden[0, 1]).all() == finite


@pytest.mark.parametrize('name', ['gpt2', 'gpt_neo'])
def test_log_likelihood_is_causal(name):
  model = _create(name)
  params = model.init(jax.random.key(0))
  tokens_BxT = np.arange(10)[None]

  @jax.jit
  @jax.grad
  def at_6(params):
    return model.log_likelihood(params, tokens_BxT, tokens_BxT + 1)[0, 6]

  per_position = jnp.abs(at_6(params)['wpe']['weight']).sum(axis=1)
  np.testing.assert_array_equal(per_position > 0, np.arange(CONTEXT) <= 6)


def test_local_layer_reaches_one_window_back():
  config = gpt_neo.Config.create(
    vocab_size=VOCAB, layers=1, width=16, heads=2, context=CONTEXT
  )
  assert config.attention_layers == ('global',)
  config = dataclasses.replace(
    config, attention_types=((('local',), 1),), window_size=3
  )
  model = model_lib.Model('gpt_neo', config)
  params = model.init(jax.random.key(0))
  tokens_BxT = np.arange(10)[None]
  hidden = _hidden(model, params, tokens_BxT)
  changed = _hidden(model, params, tokens_BxT + (np.arange(10) == 4))
  differs = np.abs(hidden - changed).max(axis=(0, 2)) > 1e-7
  assert np.flatnonzero(differs).tolist() == [4, 5, 6]


@pytest.mark.parametrize('tokens', [1, 7, 23])
@pytest.mark.parametrize(
  'causal, window', [(False, 0), (True, 0), (True, 1), (True, 4), (True, 50)]
)
def test_attention_equals_a_loop(causal, window, tokens, monkeypatch):
  monkeypatch.setattr(layers, 'QUERY_BLOCK', 2)
  rng = np.random.default_rng(0)
  query, key, value = rng.normal(size=(3, 2, tokens, 3, 5)).astype(np.float32)
  mask_BxT = rng.random((2, tokens)) < 0.7
  mask_BxT[:, 0] = True
  attention = functools.partial(
    layers.attention,
    scale=0.6,
    causal=causal,
    window=window,
    dropout=lambda weights: weights,
  )
  actual = np.asarray(jax.jit(attention)(query, key, value, mask_BxT))
  for b, t, h in np.ndindex(2, tokens, 3):
    seen = [
      s
      for s in range(t + 1 if causal else tokens)
      if mask_BxT[b, s] and (not window or t - s < window)
    ]
    if not seen:
      assert np.isfinite(actual[b, t, h]).all()
      continue
    weights = np.exp(0.6 * key[b, seen, h] @ query[b, t, h])
    expected = weights @ value[b, seen, h] / weights.sum()
    np.testing.assert_allclose(actual[b, t, h], expected, rtol=0, atol=2e-6)


def _arrays_in(jaxpr):
  """The shape of every array that a jaxpr makes, inner jaxprs included."""
  for equation in jaxpr.eqns:
    yield from (var.aval.shape for var in equation.outvars)
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if hasattr(inner, 'eqns'):
        yield from _arrays_in(inner)


@pytest.mark.parametrize('tokens, chunk', [(1, 8), (21, 8), (24, 8), (5, 8)])
def test_chunked_log_likelihood_equals_torch(tokens, chunk, monkeypatch):
  monkeypatch.setattr(loss_lib, 'SMALL_VOCABULARY', 50)
  rng = np.random.default_rng(0)
  hidden, table, bias = (
    rng.normal(size=shape).astype(np.float32)
    for shape in [(2, tokens, 6), (VOCAB, 6), VOCAB]
  )
  targets_BxT = rng.integers(0, VOCAB, (2, tokens))
  weight_BxT = rng.normal(size=(2, tokens)).astype(np.float32)

  def total(hidden, table, bias):
    log_p = loss_lib.token_log_likelihood(
      hidden, table, bias, targets_BxT, chunk=chunk
    )
    return jnp.sum(log_p * weight_BxT), log_p

  inputs = [torch.tensor(x, requires_grad=True) for x in (hidden, table, bias)]
  expected = torch.log_softmax(inputs[0] @ inputs[1].T + inputs[2], -1)
  expected = expected.gather(-1, torch.tensor(targets_BxT)[..., None])[..., 0]
  (expected * torch.tensor(weight_BxT)).sum().backward()

  gradient = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
  gradients, log_p = gradient(hidden, table, bias)
  np.testing.assert_allclose(
    log_p, expected.detach().numpy(), rtol=0, atol=1e-5
  )
  for actual, x in zip(gradients, inputs, strict=True):
    np.testing.assert_allclose(actual, x.grad.numpy(), rtol=0, atol=1e-5)
  if tokens > chunk:
    jaxpr = jax.make_jaxpr(gradient)(hidden, table, bias)
    largest = max(np.prod(shape) for shape in _arrays_in(jaxpr.jaxpr))
    assert largest <= 2 * chunk * VOCAB < 2 * tokens * VOCAB


@pytest.mark.parametrize(
  'name, rates',
  [
    ('gpt2', ('embd_pdrop', 'attn_pdrop', 'resid_pdrop')),
    ('gpt_neo', ('embed_dropout', 'attention_dropout', 'resid_dropout')),
    ('roberta', ('hidden_dropout_prob', 'attention_probs_dropout_prob')),
  ],
)
def test_dropout_is_active_only_with_a_key(name, rates):
  off = dict.fromkeys(rates, 0.0)
  model = _create(name, **off)
  params = model.init(jax.random.key(0))
  tokens_BxT = np.arange(8, 18)[None]
  key_a, key_b = jax.random.split(jax.random.key(1))
  clean = _hidden(model, params, tokens_BxT)
  for rate in rates:
    model = _create(name, **(off | {rate: 0.3}))
    a, again, b = (
      _hidden(model, params, tokens_BxT, dropout_key=key)
      for key in (key_a, key_a, key_b)
    )
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - clean).max() > 1e-4 < np.abs(a - b).max(), rate
  np.testing.assert_array_equal(clean, _hidden(model, params, tokens_BxT))


def test_bfloat16_rounds_and_scores_in_float32():
  model = _create()
  rounded = dataclasses.replace(model, dtype='bfloat16')
  params = model.init(jax.random.key(0))
  tokens_BxT = np.arange(20)[None]

  @functools.partial(jax.jit, static_argnums=0)
  def run(model, params):
    def total(params):
      log_p = model.log_likelihood(params, tokens_BxT, tokens_BxT + 1)
      return log_p.sum(), (log_p, model.hidden(params, tokens_BxT))

    return jax.grad(total, has_aux=True)(params)

  gradients, (log_p, hidden) = run(rounded, params)
  assert hidden.dtype == jnp.bfloat16 and log_p.dtype == jnp.float32
  assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {'float32'}
  _, (exact_log_p, exact_hidden) = run(model, params)
  np.testing.assert_allclose(
    hidden.astype(np.float32), exact_hidden, rtol=0, atol=0.05
  )
  np.testing.assert_allclose(log_p, exact_log_p, rtol=0, atol=0.02)


def test_vmap_over_params_equals_one_at_a_time():
  model = _create()
  each = [model.init(jax.random.key(seed)) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
  tokens_BxT = np.random.default_rng(0).integers(0, VOCAB, (3, 12))

  @jax.jit
  @jax.vmap
  def together(params, tokens_T):
    return model.log_likelihood(params, tokens_T[None], tokens_T[None])

  rows = together(stacked, tokens_BxT)
  for params, tokens_T, row in zip(each, tokens_BxT, rows, strict=True):
    alone = _score(model, params, tokens_T[None], tokens_T[None])
    np.testing.assert_allclose(row, alone, rtol=0, atol=1e-5)


def test_masked_log_likelihood_at_the_given_positions():
  model = _create('roberta')
  params = model.init(jax.random.key(0))
  tokens_BxT = np.random.default_rng(0).integers(8, VOCAB, (2, 12))
  positions_BxK = np.array([[0, 11, 4], [7, 7, 2]])
  targets_BxK = np.array([[9, 10, 11], [12, 13, 14]])
  actual = jax.jit(model.masked_log_likelihood)(
    params, tokens_BxT, None, positions_BxK, targets_BxK
  )
  log_p = jax.nn.log_softmax(jax.jit(model.logits)(params, tokens_BxT))
  for b, k in np.ndindex(2, 3):
    expected = log_p[b, positions_BxK[b, k], targets_BxK[b, k]]
    np.testing.assert_allclose(actual[b, k], expected, rtol=0, atol=1e-5)


def test_likelihoods_are_refused_to_the_other_kind():
  tokens_BxT = np.array([[9, 10]])
  encoder, causal = _create('roberta'), _create('gpt2')
  with pytest.raises(ValueError, match='roberta sees later tokens'):
    encoder.log_likelihood({}, tokens_BxT, tokens_BxT)
  with pytest.raises(ValueError, match='gpt2 is a causal LM'):
    causal.masked_log_likelihood({}, tokens_BxT, None, tokens_BxT, tokens_BxT)


@pytest.mark.parametrize(
  'config, values, message',
  [
    (gpt2.Config, {'add_cross_attention': True}, 'add_cross_attention=True'),
    (gpt2.Config, {'n_embd': 10, 'n_head': 3}, '10 is not a multiple of 3'),
    (gpt2.Config, {'activation_function': 'mish'}, "activation 'mish'"),
    (gpt_neo.Config, {'num_layers': 5}, 'num_layers=5'),
    (
      gpt_neo.Config,
      {'num_layers': 1, 'attention_types': [[['strided'], 1]]},
      'strided',
    ),
    (roberta.Config, {'is_decoder': True}, 'is_decoder=True'),
    (roberta.Config, {'tie_word_embeddings': False}, 'tie_word_embeddings'),
    (
      roberta.Config,
      {'position_embedding_type': 'relative_key'},
      "position_embedding_type='relative_key'",
    ),
    (roberta.Config, {'pad_token_id': None}, 'pad_token_id=None'),
  ],
)
def test_config_refuses_what_is_not_implemented(config, values, message):
  with pytest.raises(ValueError, match=message):
    config.from_hf(values)


@pytest.mark.parametrize('name', model_lib.ARCHITECTURES)
def test_config_defaults_and_round_trip(name):
  config_class = model_lib.ARCHITECTURES[name].Config
  values = TORCH[name][0]().to_dict()
  assert config_class.from_hf(values) == config_class()
  assert config_class.from_hf(config_class().to_hf()) == config_class()
  assert hash(_create(name)) == hash(_create(name))


def test_model_refuses_what_does_not_go_together():
  with pytest.raises(ValueError, match="model_type 'bert'"):
    model_lib.Model('bert', gpt2.Config())
  with pytest.raises(ValueError, match='does not go with a tttnn.models.gpt2'):
    model_lib.Model('roberta', gpt2.Config())
  with pytest.raises(ValueError, match="dtype 'float16'"):
    model_lib.Model('gpt2', gpt2.Config(), 'float16')
