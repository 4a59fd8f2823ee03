"""Keys of contexts: against PyTorch's activations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import tiny

MODELS = ['gpt2', 'gpt_neo']
KINDS = ['ffn_input', 'ffn_output', 'final_hidden']
CONTEXT = 32


def hooked(reference, kind):
  """A function from a list of ids to PyTorch's activations [T, D]."""
  body = reference.transformer
  module = {
    'ffn_input': body.h[-1].ln_2,
    'ffn_output': body.h[-1].mlp,
    'final_hidden': body.ln_f,
  }[kind]

  @torch.no_grad()
  def activations(ids):
    kept = []
    hook = module.register_forward_hook(
      lambda m, i, output: kept.append(output)
    )
    reference(torch.tensor(np.array([ids])))
    hook.remove()
    return kept[0][0].numpy()

  return activations


@pytest.mark.parametrize('architecture', MODELS)
@pytest.mark.parametrize('kind', KINDS)
def test_keys_are_the_activations_of_pytorch(architecture, kind):
  model, params, reference = tiny.causal(architecture, CONTEXT)
  tokens_BxT = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (3, 20))
  targets_BxT = np.roll(tokens_BxT, -1, axis=1)
  expected = np.stack([hooked(reference, kind)(row) for row in tokens_BxT])
  found = model.keys(params, tokens_BxT, kind)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  scores, found = jax.jit(model.scored_keys, static_argnums=3)(
    params, tokens_BxT, targets_BxT, kind
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  with torch.no_grad():
    logits = reference(torch.tensor(tokens_BxT)).logits
  chosen = torch.log_softmax(logits, -1).gather(
    -1, torch.tensor(targets_BxT)[..., None]
  )
  np.testing.assert_allclose(scores, chosen[..., 0], rtol=1e-4, atol=1e-5)
  again = dataclasses.replace(model, remat=True)
  np.testing.assert_allclose(
    again.keys(params, tokens_BxT, kind), expected, rtol=1e-4, atol=1e-5
  )


def test_nothing_behind_a_key_is_computed():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  tokens_BxT = jnp.zeros((2, CONTEXT), jnp.int32)

  def flops(kind):
    compiled = jax.jit(lambda p, t: model.keys(p, t, kind)).lower(
      params, tokens_BxT
    )
    return compiled.compile().cost_analysis()['flops']

  width, mlp = model.width, 2 * 2 * CONTEXT * 8 * model.width**2
  assert flops('final_hidden') - flops('ffn_input') > 0.9 * mlp
  assert flops('final_hidden') - flops('ffn_output') < 0.1 * mlp
  # And of all blocks no vocabulary: 2 T V D.
  head = 2 * 2 * CONTEXT * model.vocab_size * width
  scored = jax.jit(lambda p, t: model.logits(p, t)).lower(params, tokens_BxT)
  everything = scored.compile().cost_analysis()['flops']
  assert everything - flops('final_hidden') > 0.9 * head


def test_other_kinds_and_models_have_no_keys():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  tokens_BxT = np.zeros((1, 3), np.int32)
  with pytest.raises(ValueError, match="no keys 'last', only ffn_input, ffn_o"):
    model.keys(params, tokens_BxT, 'last')
  with pytest.raises(ValueError, match=f'{CONTEXT + 1} tokens exceed'):
    model.keys(params, np.zeros((1, CONTEXT + 1), np.int32), 'ffn_input')
