"""What trains, against PyTorch with `requires_grad_` and LoRA by hand."""

import functools

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests import tiny
from tttnn import optim
from tttnn.methods import trainable as trainable_lib
from tttnn.models import hf

CONTEXT = 32
FAMILIES = ('gpt2', 'gpt_neo')
ATTENTION = {
  'gpt2': ('attn.c_attn', 'attn.c_proj'),
  'gpt_neo': tuple(f'attn.attention.{x}_proj' for x in ('q', 'k', 'v', 'out')),
}
MLP = ('mlp.c_fc', 'mlp.c_proj')
CHOICES = ('full', 'mlp_out', 'last:1', 'lora')

pytestmark = pytest.mark.usefixtures('compile_fast')


def _parse(choice, targets='attention,mlp', rank=3, alpha=7.5):
  return trainable_lib.Trainable.parse(choice, rank, alpha, targets)


def _named(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {'.'.join(key.key for key in path): leaf for path, leaf in leaves}


def _names(family, choice, reference, targets=('attention', 'mlp')):
  """The names that should train, by reading the two models' layers."""
  every = {
    name.removeprefix('transformer.')
    for name, _ in reference.named_parameters()
  }
  if choice == 'full':
    return every
  if choice == 'mlp_out':
    return {
      f'h.{i}.mlp.c_proj.{leaf}' for i in (0, 1) for leaf in ('weight', 'bias')
    }
  if choice == 'last:1':
    return {name for name in every if name.startswith('h.1.')}
  layers = {'attention': ATTENTION[family], 'mlp': MLP}
  return {
    f'h.{i}.{layer}.lora_{leaf}'
    for i in (0, 1)
    for target in targets
    for layer in layers[target]
    for leaf in 'ab'
  }


def _perturbed(trained, seed=0):
  """Leaves with noise, so that LoRA's second matrix is not zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), trained
  )


def _tokens(seed=0, rows=2):
  rng = np.random.default_rng(seed)
  return rng.integers(0, tiny.VOCABULARY, (2, rows, 24))


def _loss(model, frozen, trained, tokens_BxT, targets_BxT):
  params = trainable_lib.combine(frozen, trained)
  return -jnp.mean(model.log_likelihood(params, tokens_BxT, targets_BxT))


class _TorchLora(torch.nn.Module):
  """base(x) + scale * B A x, in PyTorch's layout."""

  def __init__(self, base, lora_a, lora_b, scale):
    super().__init__()
    self.base, self.scale = base, scale
    self.lora_a = torch.nn.Parameter(torch.tensor(np.asarray(lora_a).T))
    self.lora_b = torch.nn.Parameter(torch.tensor(np.asarray(lora_b).T))

  def forward(self, x):
    low = torch.nn.functional.linear(x, self.lora_a)
    low = torch.nn.functional.linear(low, self.lora_b)
    return self.base(x) + self.scale * low


def _torch_gradients(family, choice, reference, trained):
  """{name: gradient in our layout} with `trained` in the PyTorch model."""
  values = _named(trained)
  for parameter in reference.parameters():
    parameter.requires_grad_(False)
  if choice == 'lora':
    for path in sorted({name.rpartition('.')[0] for name in values}):
      parent, _, child = path.rpartition('.')
      module = reference.transformer.get_submodule(parent)
      a, b = values[f'{path}.lora_a'], values[f'{path}.lora_b']
      base = getattr(module, child)
      setattr(module, child, _TorchLora(base, a, b, 7.5 / 3))
  else:
    for name, parameter in reference.named_parameters():
      if name.removeprefix('transformer.') in values:
        parameter.requires_grad_(True)
  tokens, targets = map(torch.tensor, _tokens())
  log_p = torch.log_softmax(reference(tokens).logits, -1)
  (-log_p.gather(-1, targets[..., None]).mean()).backward()
  gradients = {}
  for name, parameter in reference.named_parameters():
    name = name.removeprefix('transformer.')
    if parameter.grad is None:
      continue
    linear = family == 'gpt_neo' and ('.mlp.' in name or '.attention.' in name)
    flip = 'lora_' in name or (linear and parameter.ndim == 2)
    gradient = parameter.grad.numpy()
    gradients[name] = gradient.T if flip else gradient
  return gradients


@pytest.mark.parametrize('choice', CHOICES)
@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_equal_torch(family, choice):
  model, params, reference = tiny.causal(family, CONTEXT)
  frozen, trained = trainable_lib.split(params, _parse(choice), seed=0)
  assert _named(trained).keys() == _names(family, choice, reference)
  if choice == 'lora':
    trained = _perturbed(trained)
  gradient = jax.jit(jax.grad(functools.partial(_loss, model), argnums=1))
  actual = _named(gradient(frozen, trained, *_tokens()))
  expected = _torch_gradients(family, choice, reference, trained)
  assert actual.keys() == expected.keys()
  for name, value in actual.items():
    value, noise = _less_key_bias(name, value)
    wanted, _ = _less_key_bias(name, expected[name])
    np.testing.assert_allclose(noise, 0, atol=1e-6)
    error = np.linalg.norm(value - wanted)
    assert error <= 1e-5 * np.linalg.norm(wanted), name


def _less_key_bias(name, gradient):
  """(gradient less that of GPT-2's key bias, the latter: rounding noise)."""
  if not name.endswith('attn.c_attn.bias'):
    return gradient, np.zeros(0)
  query, key, value = np.split(gradient, 3)
  return np.concatenate([query, value]), key


@pytest.mark.parametrize('choice', CHOICES)
@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_frozen_stays(family, choice):
  model, params, _ = tiny.causal(family, CONTEXT)
  before = {name: np.array(leaf) for name, leaf in _named(params).items()}
  frozen, trained = trainable_lib.split(params, _parse(choice), seed=0)
  begin = {name: np.array(leaf) for name, leaf in _named(trained).items()}
  optimizer = optim.adamw(1e-2, weight_decay=0.1)
  moments = optimizer.init(trained)

  @jax.jit
  def step(trained, moments, tokens, targets):
    gradient = jax.grad(functools.partial(_loss, model), argnums=1)(
      frozen, trained, tokens, targets
    )
    updates, moments = optimizer.update(gradient, moments, trained)
    return jax.tree.map(jnp.add, trained, updates), moments

  for seed in range(3):
    trained, moments = step(trained, moments, *_tokens(seed))
  after = _named(trainable_lib.combine(frozen, trained))
  scales = {name for name in after if name.endswith('.lora_scale')}
  assert after.keys() - begin.keys() - scales == before.keys() - begin.keys()
  assert bool(scales) == (choice == 'lora')
  for name in after.keys() - begin.keys() - scales:
    np.testing.assert_array_equal(after[name], before[name], name)
  for name, value in begin.items():
    assert np.mean(after[name] != value) > 0.5, name


def test_full_takes_the_parameters_themselves():
  _, params, _ = tiny.causal('gpt2', CONTEXT)
  frozen, trained = trainable_lib.split(params, _parse('full'), seed=0)
  assert frozen == {} and trained is params


@pytest.mark.parametrize('family', FAMILIES)
def test_last_two_of_two_blocks_are_all_blocks(family):
  _, params, _ = tiny.causal(family, CONTEXT)
  frozen, trained = trainable_lib.split(params, _parse('last:2'), seed=0)
  assert trained == {'h': params['h']}
  assert frozen.keys() == params.keys() - {'h'}


@pytest.mark.parametrize('choice', CHOICES)
def test_no_leaf_is_copied(choice):
  _, params, _ = tiny.causal('gpt2', CONTEXT)
  halves = trainable_lib.split(params, _parse(choice), seed=0)
  combined = _named(trainable_lib.combine(*halves))
  for name, leaf in _named(params).items():
    assert combined[name] is leaf


@pytest.mark.parametrize('targets', ['attention', 'mlp', 'mlp, attention'])
@pytest.mark.parametrize('family', FAMILIES)
def test_lora_is_beside_its_targets(family, targets):
  _, params, reference = tiny.causal(family, CONTEXT)
  choice = _parse('lora', targets)
  frozen, trained = trainable_lib.split(params, choice, seed=0)
  assert _named(trained).keys() == _names(
    family, 'lora', reference, targets.split(', ')
  )
  for name, leaf in _named(trained).items():
    path = name.rpartition('.')[0]
    inputs, outputs = _named(params)[f'{path}.weight'].shape
    shape = (inputs, 3) if name.endswith('a') else (3, outputs)
    assert leaf.shape == shape
    assert _named(frozen)[f'{path}.lora_scale'] == np.float32(7.5 / 3)


def test_lora_begins_as_peft_does():
  _, params, _ = tiny.causal('gpt2', CONTEXT)

  def draw(seed, targets='attention,mlp'):
    choice = _parse('lora', targets, rank=64)
    return _named(trainable_lib.split(params, choice, seed=seed)[1])

  torch.manual_seed(0)
  drawn = draw(0)
  for name, leaf in drawn.items():
    if name.endswith('lora_b'):
      assert not leaf.any()
      continue
    oracle = torch.empty(leaf.T.shape)
    torch.nn.init.kaiming_uniform_(oracle, a=5**0.5)
    assert np.abs(leaf).max() <= leaf.shape[0] ** -0.5
    np.testing.assert_allclose(leaf.std(), oracle.std(), rtol=0.05)
    np.testing.assert_allclose(leaf.max(), oracle.max(), rtol=0.01)
    np.testing.assert_allclose(leaf.min(), oracle.min(), rtol=0.01)
  of_mlp = draw(0, 'mlp')
  for name, leaf in of_mlp.items():
    np.testing.assert_array_equal(leaf, drawn[name])
  other = draw(1)
  first, second = (f'h.{i}.mlp.c_fc.lora_a' for i in (0, 1))
  assert np.abs(drawn[first] - drawn[second]).max() > 0.01
  assert np.abs(drawn[first] - other[first]).max() > 0.01


@pytest.mark.parametrize('family', FAMILIES)
def test_zero_b_is_the_base_model(family):
  model, params, _ = tiny.causal(family, CONTEXT)
  halves = trainable_lib.split(params, _parse('lora'), seed=0)
  tokens, _ = _tokens()
  # One operation after the other: a compiled program may round elsewhere.
  with jax.disable_jit():
    actual = model.logits(trainable_lib.combine(*halves), tokens)
    np.testing.assert_array_equal(actual, model.logits(params, tokens))


@pytest.mark.parametrize('family', FAMILIES)
def test_merged_equals_unmerged_and_is_what_is_saved(family, tmp_path):
  model, params, _ = tiny.causal(family, CONTEXT)
  frozen, trained = trainable_lib.split(params, _parse('lora'), seed=0)
  adapted = trainable_lib.combine(frozen, _perturbed(trained))
  merged = trainable_lib.merge_lora(adapted)
  assert _named(merged).keys() == _named(params).keys()
  logits = jax.jit(model.logits)
  tokens, _ = _tokens()
  unmerged_logits = logits(adapted, tokens)
  scale = np.abs(unmerged_logits).max()
  assert np.abs(unmerged_logits - logits(params, tokens)).max() > 0.01 * scale
  np.testing.assert_allclose(
    logits(merged, tokens), unmerged_logits, rtol=0, atol=1e-5 * scale
  )

  with pytest.raises(ValueError, match=r'extra: h\.0\..*lora_a'):
    hf.save(tmp_path / 'unmerged', model, adapted)
  assert not (tmp_path / 'unmerged').exists()
  hf.save(tmp_path / 'merged', model, merged)
  oracle = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'merged', attn_implementation='eager'
  )
  with torch.no_grad():
    expected = oracle.eval()(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(
    unmerged_logits, expected, rtol=0, atol=1e-5 * scale
  )


def test_merging_without_lora_changes_nothing():
  _, params, _ = tiny.causal('gpt2', CONTEXT)
  merged = _named(trainable_lib.merge_lora(params))
  assert all(merged[name] is leaf for name, leaf in _named(params).items())


@pytest.mark.parametrize('choice', ['mlp_out', 'last:1', 'lora'])
@pytest.mark.parametrize('family', FAMILIES)
def test_documents_at_once_equal_one_at_a_time(family, choice):
  model, params, _ = tiny.causal(family, CONTEXT)
  frozen, trained = trainable_lib.split(params, _parse(choice), seed=0)
  each = [_perturbed(trained, seed) for seed in (1, 2)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
  tokens, targets = (part[:, None] for part in _tokens())
  one = jax.value_and_grad(functools.partial(_loss, model), argnums=1)
  values, gradients = jax.jit(jax.vmap(one, (None, 0, 0, 0)))(
    frozen, stacked, tokens, targets
  )
  for i, own in enumerate(each):
    value, gradient = jax.jit(one)(frozen, own, tokens[i], targets[i])
    np.testing.assert_allclose(values[i], value, rtol=1e-5)
    for actual, expected in zip(
      jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True
    ):
      error = np.linalg.norm(actual[i] - expected)
      assert error <= 1e-5 * np.linalg.norm(expected) + 1e-7


def test_lora_documents_share_the_products_with_frozen_weights():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  frozen, trained = trainable_lib.split(params, _parse('lora'), seed=0)
  stacked = jax.tree.map(lambda x: jnp.stack([x] * 5), trained)
  tokens, targets = (np.stack([part[:1]] * 5) for part in _tokens())
  gradient = jax.vmap(
    jax.grad(functools.partial(_loss, model), argnums=1), (None, 0, 0, 0)
  )
  traced = jax.make_jaxpr(gradient)(frozen, stacked, tokens, targets).jaxpr
  # Without what leads to no result, as it is compiled.
  jaxpr, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
  made = set(_shapes(jaxpr))
  width = model.width
  assert (5, width, 3) in made and (5, 3, 4 * width) in made
  for inputs, outputs in [(1, 3), (1, 1), (1, 4), (4, 1)]:
    inputs, outputs = inputs * width, outputs * width
    shapes = {(inputs, outputs), (outputs, inputs)}
    assert not made & {(5, *shape) for shape in shapes}


def _shapes(jaxpr):
  """The shape of every array that a jaxpr makes, inner jaxprs included."""
  for equation in jaxpr.eqns:
    yield from (var.aval.shape for var in equation.outvars)
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if hasattr(inner, 'jaxpr'):
        inner = inner.jaxpr
      if hasattr(inner, 'eqns'):
        yield from _shapes(inner)


def test_lora_computes_in_the_dtype_of_the_model():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  halves = trainable_lib.split(params, _parse('lora'), seed=0)
  adapted = trainable_lib.combine(halves[0], _perturbed(halves[1]))
  rounded = type(model)('gpt2', model.config, 'bfloat16')
  tokens, _ = _tokens()
  hidden = jax.jit(rounded.hidden)(adapted, tokens)
  exact = np.asarray(jax.jit(model.hidden)(adapted, tokens))
  base = np.asarray(jax.jit(model.hidden)(params, tokens))
  assert hidden.dtype == jnp.bfloat16
  error = np.linalg.norm(hidden.astype(np.float32) - exact)
  assert error < 0.1 * np.linalg.norm(exact - base)
  floats = {
    var.aval.dtype
    for equation in jax.make_jaxpr(rounded.hidden)(adapted, tokens).eqns
    if equation.primitive.name == 'dot_general'
    for var in equation.invars
  }
  assert floats == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('some', 3, 1.0, 'mlp'), "trainable='some' is not full, lora, mlp_out or"),
    (('last', 3, 1.0, 'mlp'), "trainable='last' is not"),
    (('last:-1', 3, 1.0, 'mlp'), "trainable='last:-1' is not"),
    (('last:0', 3, 1.0, 'mlp'), 'last:0 trains no block'),
    (('lora', 0, 1.0, 'mlp'), 'lora_rank=0'),
    (('lora', 3, 0.0, 'mlp'), 'lora_alpha=0.0'),
    (('lora', 3, float('nan'), 'mlp'), 'lora_alpha=nan'),
    (('lora', 3, 1.0, ''), "lora_targets='' must name"),
    (('lora', 3, 1.0, 'mlp,head'), "'head,mlp' must name .* attention, mlp"),
  ],
)
def test_parse_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    trainable_lib.Trainable.parse(*arguments)


def test_equal_choices_are_equal_keys():
  one, other = _parse('lora', 'mlp,attention'), _parse('lora', 'attention, mlp')
  assert one == other and hash(one) == hash(other)
  assert _parse('last:2') != _parse('last:1')
  # What only LoRA reads makes no other choice differ.
  assert _parse('mlp_out', rank=4) == _parse('mlp_out', rank=5)


def test_split_and_combine_refuse_what_does_not_fit():
  _, params, _ = tiny.causal('gpt2', CONTEXT)
  with pytest.raises(ValueError, match='last:3 .* the model has, 2'):
    trainable_lib.split(params, _parse('last:3'), seed=0)
  for choice in ('lora', 'mlp_out'):
    with pytest.raises(ValueError, match=f'{choice}.* GPT-2 .* are encoder'):
      trainable_lib.split({'encoder': {'weight': 1}}, _parse(choice), seed=0)
  with pytest.raises(ValueError, match=r'a\.b is in both'):
    trainable_lib.combine({'a': {'b': 1}}, {'a': {'b': 2}})
  with pytest.raises(ValueError, match=r'a\.b is in both'):
    trainable_lib.combine({'a': {'b': 1}}, {'a': {'b': {'c': 2}}})
