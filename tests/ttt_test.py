"""Adaptation against the reference's loop, written in PyTorch."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch

from tests import tiny
from tttnn.methods import ttt
from tttnn.models import gpt2
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

CONTEXT, EOT = 64, 96


def make_settings(**changes) -> ttt.Settings:
  return ttt.Settings(
    **{
      'learning_rate': 1e-3,
      'weight_decay': 0.01,
      'adam_epsilon': 1e-8,
      'clip_norm': 1.0,
      'max_length': CONTEXT,
      'stride': CONTEXT,
      'max_windows': 0,
      'short_windows': 'skip',
      'optimizer_state': 'fresh',
      'reset_weights': True,
      'dropout': False,
    }
    | changes
  )


def reference_optimizer(reference, settings):
  return torch.optim.AdamW(
    reference.parameters(),
    lr=settings.learning_rate,
    eps=settings.adam_epsilon,
    weight_decay=settings.weight_decay,
  )


def reference_run(reference, document, neighbors, settings, optimizer=None):
  """One AdamW step a window, scored after every neighbour."""
  optimizer = optimizer or reference_optimizer(reference, settings)

  def score():
    return tiny.rolling_log_likelihood(reference, document, CONTEXT, EOT)

  scores, losses = [score()], []
  for tokens in neighbors:
    values = []
    for begin in range(0, len(tokens), settings.stride):
      window = tokens[begin : begin + settings.max_length]
      if len(window) < 2 and settings.short_windows == 'skip':
        continue
      optimizer.zero_grad()
      ids = torch.tensor([window])
      if len(window) > 1:
        logits = reference(ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        loss.backward()
        values.append(loss.item())
      else:
        for parameter in reference.parameters():
          parameter.grad = torch.zeros_like(parameter)
        values.append(float('nan'))
      torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.clip_norm)
      optimizer.step()
    losses.append(np.mean(values) if values else 0.0)
    scores.append(score())
  return scores, losses


def random_tokens(length, seed):
  return np.random.default_rng(seed).integers(0, 96, length).tolist()


@pytest.mark.parametrize('short_windows', ['skip', 'step'])
@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_scores_after_every_neighbor_equal_a_torch_loop(kind, short_windows):
  model, params, reference = tiny.causal(kind, CONTEXT)
  settings = make_settings(short_windows=short_windows)
  program = ttt.compile_program(model.log_likelihood, settings, CONTEXT)
  # One window, several, a tail of one token, nothing, and a short one.
  lengths = [40, 150, CONTEXT + 1, 0, 10]
  neighbors = [random_tokens(n, seed) for seed, n in enumerate(lengths)]
  document = random_tokens(100, 99)
  expected, losses = reference_run(reference, document, neighbors, settings)
  outcome, state = ttt.run(
    program,
    params,
    rolling.windows(document, CONTEXT, EOT),
    [ttt.windows(tokens, settings) for tokens in neighbors],
    range(6),
  )
  assert state is None
  assert outcome.at == [0, 1, 2, 3, 4, 5]
  np.testing.assert_allclose(outcome.log_likelihood, expected, rtol=1e-4)
  np.testing.assert_allclose(outcome.train_loss, losses, rtol=1e-4)
  extra = short_windows == 'step'
  assert outcome.steps == [1, 3, 1 + extra, 0, 1]


@pytest.mark.parametrize('optimizer_state', ['fresh', 'carry'])
@pytest.mark.parametrize('reset_weights', [True, False])
@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_documents_in_order_equal_a_torch_loop(
  kind, reset_weights, optimizer_state
):
  model, params, reference = tiny.causal(kind, CONTEXT)
  settings = make_settings(
    short_windows='step',
    reset_weights=reset_weights,
    optimizer_state=optimizer_state,
  )
  program = ttt.compile_program(model.log_likelihood, settings, CONTEXT)
  base = copy.deepcopy(reference.state_dict())
  optimizer, carried = None, None
  # (document, its neighbours): one has none, one an empty one.
  lengths = [(30, [40, CONTEXT + 1]), (100, []), (10, [0, 90]), (70, [20])]
  for number, (length, neighbor_lengths) in enumerate(lengths):
    document = random_tokens(length, number)
    neighbors = [random_tokens(n, n) for n in neighbor_lengths]
    if optimizer is None or optimizer_state == 'fresh':
      optimizer = reference_optimizer(reference, settings)
    expected, _ = reference_run(
      reference, document, neighbors, settings, optimizer
    )
    if reset_weights:
      reference.load_state_dict(base)
    outcome, carried = ttt.run(
      program,
      params,
      rolling.windows(document, CONTEXT, EOT),
      [ttt.windows(tokens, settings) for tokens in neighbors],
      range(3),
      carried=carried,
    )
    np.testing.assert_allclose(outcome.log_likelihood, expected, rtol=1e-4)


def test_dropout_is_that_of_its_keys():
  config = gpt2.Config.create(97, 1, 32, 4, CONTEXT)
  model = model_lib.Model('gpt2', config)
  params = model.init(jax.random.key(0))
  settings = make_settings(dropout=True)
  program = ttt.compile_program(model.log_likelihood, settings, CONTEXT)
  tokens = random_tokens(CONTEXT, 0)
  document = rolling.windows(random_tokens(30, 1), CONTEXT, EOT)

  def run(key):
    return ttt.run(program, params, document, [[tokens]], {0, 1}, key=key)[0]

  one, again, other, off = (
    run(key) for key in (*map(jax.random.key, (1, 1, 2)), None)
  )
  assert one == dataclasses.replace(
    again, adapt_seconds=one.adapt_seconds, score_seconds=one.score_seconds
  )
  losses = {outcome.train_loss[0] for outcome in (one, other, off)}
  assert len(losses) == 3
  # The loss of the first step, by the model itself with the step's key.
  ids = np.array([tokens])
  scores = model.log_likelihood(
    params,
    ids,
    np.roll(ids, -1, axis=1),
    dropout_key=jax.random.fold_in(jax.random.key(1), 0),
  )
  expected = -float(np.mean(scores[0, :-1]))
  assert one.train_loss[0] == pytest.approx(expected, rel=1e-5)
  assert one.log_likelihood[0] == off.log_likelihood[0]


def test_base_parameters_stay_as_they_are():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  before = jax.tree.map(np.array, params)
  settings = make_settings()
  program = ttt.compile_program(model.log_likelihood, settings, CONTEXT)
  document = rolling.windows(random_tokens(30, 1), CONTEXT, EOT)
  neighbors = [ttt.windows(random_tokens(50, 2), settings)]
  first, _ = ttt.run(program, params, document, neighbors, {0, 1})
  again, _ = ttt.run(program, params, document, neighbors, {0, 1})
  jax.tree.map(np.testing.assert_array_equal, before, params)
  assert first.log_likelihood == again.log_likelihood
  assert first.log_likelihood[0] != first.log_likelihood[1]


def test_only_the_counts_asked_for_are_scored():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  settings = make_settings()
  program = ttt.compile_program(model.log_likelihood, settings, CONTEXT)
  document = rolling.windows(random_tokens(30, 1), CONTEXT, EOT)
  neighbors = [ttt.windows(random_tokens(50, s), settings) for s in range(3)]
  everything, _ = ttt.run(program, params, document, neighbors, range(4))
  some, _ = ttt.run(program, params, document, neighbors, {0, 2, 7})
  assert some.at == [0, 2]
  assert len(some.train_loss) == len(some.steps) == 3
  np.testing.assert_allclose(
    some.log_likelihood,
    [everything.log_likelihood[0], everything.log_likelihood[2]],
    rtol=1e-6,
  )


def test_windows_follow_length_stride_and_bound():
  def cut(n, **changes):
    settings = make_settings(**{'max_length': 4, 'stride': 4} | changes)
    return ttt.windows(list(range(n)), settings)

  assert cut(0) == []
  assert cut(9) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert cut(9, short_windows='step')[-1] == [8]
  assert cut(6, stride=2) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5]]
  assert cut(12, max_windows=2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'stride': 0}, 'stride=0'),
    ({'stride': 65}, 'stride=65'),
    ({'short_windows': 'drop'}, "'drop'"),
    ({'optimizer_state': 'keep'}, "'keep'"),
  ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    make_settings(**changes)
