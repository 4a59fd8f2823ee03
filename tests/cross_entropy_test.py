"""The loss whose gradient comes with its value, against the plain formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tttnn.models import loss as loss_lib

WIDTH = 16


def plain(hidden_BxTxD, table_VxD, bias_V, targets_BxT, weights_BxT):
  logits = hidden_BxTxD @ table_VxD.T + (0 if bias_V is None else bias_V)
  scores = jax.nn.log_softmax(logits)
  scores = jnp.take_along_axis(scores, targets_BxT[..., None], -1)[..., 0]
  return -jnp.sum(weights_BxT * scores)


def make_inputs(rows, tokens, entries, with_bias):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(rows, tokens, WIDTH)).astype(np.float32),
    rng.normal(size=(entries, WIDTH)).astype(np.float32),
    rng.normal(size=entries).astype(np.float32) if with_bias else None,
    rng.integers(0, entries, (rows, tokens)),
    rng.uniform(size=(rows, tokens)).astype(np.float32),
  )


@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize(
  ('rows', 'tokens', 'entries'),
  [
    (2, 7, 50),
    (1, 40, loss_lib.SMALL_VOCABULARY + 8),  # Chunks, the last one filled up.
    (2, 32, loss_lib.SMALL_VOCABULARY + 8),
    (1, 16, loss_lib.SMALL_VOCABULARY + 8),  # A single one.
  ],
)
def test_value_and_gradient_equal_the_formula(rows, tokens, entries, with_bias):
  inputs = make_inputs(rows, tokens, entries, with_bias)
  wrt = (0, 1, 2, 4) if with_bias else (0, 1, 4)

  def scaled(loss):  # So that the slope that comes in is not 1.
    return jax.value_and_grad(lambda *args: 3 * loss(*args), wrt)

  found = scaled(lambda *args: loss_lib.cross_entropy(*args, 16))(*inputs)
  expected = scaled(plain)(*inputs)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  for one, other in zip(found[1], expected[1], strict=True):
    scale = np.abs(other).max(initial=0)
    np.testing.assert_allclose(one, other, atol=2e-6 * scale)
  np.testing.assert_allclose(
    loss_lib.cross_entropy(*inputs, 16), found[0] / 3, rtol=1e-5
  )


@pytest.mark.parametrize('entries', [50, loss_lib.SMALL_VOCABULARY + 8])
def test_scores_say_which_targets_are_likeliest(entries):
  hidden, table, bias, targets, _ = make_inputs(2, 40, entries, with_bias=True)
  logits = hidden.astype(np.float64) @ table.T.astype(np.float64) + bias
  targets[:, ::3] = logits.argmax(-1)[:, ::3]
  scores = loss_lib.token_scores(hidden, table, bias, targets, chunk=16)
  at = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  total = np.log(np.exp(logits).sum(-1))
  np.testing.assert_allclose(scores[..., 0], at - total, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(scores[..., 1], logits.argmax(-1) == targets)
  assert 0 < scores[..., 1].sum() < scores[..., 1].size
  # Of equally likely tokens all are.
  table[:], bias[:] = 1, 0
  scores = loss_lib.token_scores(hidden, table, bias, targets, chunk=16)
  assert scores[..., 1].all()


def test_logits_of_a_large_vocabulary_exist_in_chunks_alone():
  entries, tokens, chunk = 4 * loss_lib.SMALL_VOCABULARY, 256, 32
  inputs = make_inputs(1, tokens, entries, with_bias=False)

  def loss(hidden, table, *rest):
    return loss_lib.cross_entropy(hidden, table, None, *rest, chunk)

  step = jax.jit(jax.value_and_grad(loss, (0, 1)))
  arguments = (*inputs[:2], *inputs[3:])
  about = step.lower(*arguments).compile().memory_analysis()
  whole = 4 * tokens * entries
  assert about.temp_size_in_bytes < whole


@pytest.mark.parametrize('with_dropout', [False, True])
@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_remat_changes_no_number(kind, with_dropout):
  model, params, _ = tiny.causal(kind, 64)
  key = jax.random.key(1) if with_dropout else None
  tokens = np.random.default_rng(0).integers(0, 96, (1, 60))
  weights = np.ones((1, 60), np.float32)
  values = []
  for remat in (False, True):
    chosen = dataclasses.replace(model, remat=remat)
    loss = jax.jit(
      jax.value_and_grad(
        lambda params, model=chosen: model.cross_entropy(
          params, tokens, tokens, weights, dropout_key=key
        )
      )
    )
    values.append(loss(params))
    again = 'remat' in str(loss.trace(params).jaxpr)
    assert again == remat
  assert values[0][0] == values[1][0]
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5),
    *(gradient for _, gradient in values),
  )
