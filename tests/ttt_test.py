"""Adaptation against the reference's loop, written in PyTorch."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch

from tests import tiny
from tests import torch_loop
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.methods import ttt
from tttnn.models import gpt2
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

CONTEXT, EOT = 64, 96


def make_settings(**changes) -> ttt.Settings:
  settings = ttt.Settings(
    learning_rate=1e-3, weight_decay=0.01, max_length=CONTEXT, stride=CONTEXT
  )
  return dataclasses.replace(settings, **changes)


def make_adaptation(model, settings) -> ttt.Adaptation:
  return ttt.Adaptation(model.cross_entropy, model.log_likelihood, settings)


def make_pool(model, params, settings, **kwargs) -> pool_lib.Pool:
  adaptation = make_adaptation(model, settings)
  return pool_lib.Pool(adaptation, {}, params, context=CONTEXT, **kwargs)


def make_work(document, neighbors, settings, counts=range(9), **kwargs):
  return schedule.Work(
    key=None,
    scored=dict.fromkeys(counts, rolling.windows(document, CONTEXT, EOT)),
    neighbors=[ttt.windows(tokens, settings) for tokens in neighbors],
    **kwargs,
  )


def run_one(pool, work) -> ttt.Outcome:
  ((_, outcome),) = pool.run([work])
  return outcome


def random_tokens(length, seed):
  return np.random.default_rng(seed).integers(0, 96, length).tolist()


def timeless(outcome):
  tokens = [scores.tolist() for scores in outcome.token_log_likelihood]
  return dataclasses.replace(
    outcome, token_log_likelihood=tokens, adapt_seconds=[], score_seconds=[]
  )


@pytest.mark.parametrize('short_windows', ['skip', 'step'])
@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_scores_after_every_neighbor_equal_a_torch_loop(kind, short_windows):
  model, params, reference = tiny.causal(kind, CONTEXT)
  settings = make_settings(short_windows=short_windows)
  # One window, several, a tail of one token, nothing, and a short one.
  lengths = [40, 150, CONTEXT + 1, 0, 10]
  neighbors = [random_tokens(n, seed) for seed, n in enumerate(lengths)]
  document = random_tokens(100, 99)
  expected, losses = torch_loop.run(
    reference, document, neighbors, settings, EOT
  )
  outcome = run_one(
    make_pool(model, params, settings), make_work(document, neighbors, settings)
  )
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
  base = copy.deepcopy(reference.state_dict())
  adamw, expected, works = None, [], []
  # (document, its neighbours): one has none, one an empty one; the last begins
  # afresh, whatever is carried on.
  lengths = [
    (30, [40, CONTEXT + 1]),
    (100, []),
    (10, [0, 90]),
    (70, [20]),
    (50, [64]),
  ]
  for number, (length, neighbor_lengths) in enumerate(lengths):
    document = random_tokens(length, number)
    neighbors = [random_tokens(n, n) for n in neighbor_lengths]
    afresh = number == len(lengths) - 1
    if afresh:
      reference.load_state_dict(base)
    if adamw is None or afresh or optimizer_state == 'fresh':
      adamw = torch_loop.optimizer(reference, settings)
    scores, _ = torch_loop.run(
      reference, document, neighbors, settings, EOT, adamw
    )
    expected.append(scores)
    works.append(make_work(document, neighbors, settings, afresh=afresh))
    if reset_weights:
      reference.load_state_dict(base)
  pool = make_pool(model, params, settings)
  for (_, outcome), scores in zip(pool.run(works), expected, strict=True):
    np.testing.assert_allclose(outcome.log_likelihood, scores, rtol=1e-4)


def test_dropout_is_that_of_its_keys():
  config = gpt2.Config.create(97, 1, 32, 4, CONTEXT)
  model = model_lib.Model('gpt2', config)
  params = model.init(jax.random.key(0))
  tokens = random_tokens(CONTEXT, 0)
  document = random_tokens(30, 1)
  with_dropout = make_settings(dropout=True)
  on = make_pool(model, params, with_dropout)
  off = make_pool(model, params, make_settings())

  def run(pool, number):
    work = make_work(document, [tokens], with_dropout, number=number)
    return timeless(run_one(pool, work))

  one, again, other = (run(on, number) for number in (1, 1, 2))
  without = run(off, 1)
  assert one == again
  losses = {outcome.train_loss[0] for outcome in (one, other, without)}
  assert len(losses) == 3
  # The loss of the first step, by the model itself with the step's key.
  ids = np.array([tokens])
  key = jax.random.fold_in(jax.random.key(0), 1)
  scores = model.log_likelihood(
    params,
    ids,
    np.roll(ids, -1, axis=1),
    dropout_key=jax.random.fold_in(key, 0),
  )
  expected = -float(np.mean(scores[0, :-1]))
  assert one.train_loss[0] == pytest.approx(expected, rel=1e-5)
  assert one.log_likelihood[0] == without.log_likelihood[0]


@pytest.mark.parametrize('reuse', [1, 2, 3])
def test_a_gradient_that_is_used_again_equals_a_torch_loop(reuse):
  model, params, reference = tiny.causal('gpt2', CONTEXT)
  settings = make_settings(max_windows=1, gradient_reuse=reuse)
  one, other, short = (random_tokens(n, n) for n in (40, 60, 1))
  # The fourth of a text in a row has a gradient of its own with 3; one that
  # comes back later is not a repeat, and one without a window takes no step.
  neighbors = [one] * 4 + [other, other, one, short, short, one]
  document = random_tokens(70, 99)
  adamw = torch_loop.optimizer(reference, settings)
  expected, before, count = [], None, 0
  for tokens in [None, *neighbors]:
    if tokens is not None and len(tokens) > 1:
      count = count + 1 if tokens == before else 0
      if count % reuse == 0:
        adamw.zero_grad()
        ids = torch.tensor([tokens])
        reference(ids, labels=ids).loss.backward()
        gradients = [p.grad.clone() for p in reference.parameters()]
      for parameter, gradient in zip(
        reference.parameters(), gradients, strict=True
      ):
        parameter.grad = gradient.clone()  # Clipping writes into it.
      torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.clip_norm)
      adamw.step()
    before = tokens
    expected.append(
      tiny.rolling_log_likelihood(reference, document, CONTEXT, EOT)
    )
  counts = range(len(neighbors) + 1)
  work = make_work(document, neighbors, settings, counts)
  alone = make_pool(model, params, settings)
  outcome = run_one(alone, work)
  np.testing.assert_allclose(outcome.log_likelihood, expected, rtol=1e-5)
  assert outcome.steps == [1] * 7 + [0, 0, 1]
  again = {1: 0, 2: 3, 3: 3}[reuse]
  assert alone.usage['again'].rows == again
  # In company, each document has its own gradient that is kept.
  works = [work, make_work(document, neighbors[2:], settings), work]
  company = make_pool(model, params, settings, slots=3)
  together = [found for done, found in company.run(works) if done is work]
  assert len(together) == 2
  for found in together:
    np.testing.assert_allclose(
      found.log_likelihood, outcome.log_likelihood, rtol=1e-5
    )


def test_base_parameters_stay_as_they_are():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  before = jax.tree.map(np.array, params)
  settings = make_settings()
  pool = make_pool(model, params, settings)
  work = make_work(random_tokens(30, 1), [random_tokens(50, 2)], settings)
  first, again = (run_one(pool, work) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, before, params)
  assert timeless(first) == timeless(again)
  assert first.log_likelihood[0] != first.log_likelihood[1]


def test_only_the_counts_asked_for_are_scored():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  settings = make_settings()
  pool = make_pool(model, params, settings)
  neighbors = [random_tokens(50, s) for s in range(3)]
  document = random_tokens(30, 1)
  everything, some = (
    run_one(pool, make_work(document, neighbors, settings, counts))
    for counts in (range(4), {0, 2, 7})
  )
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
    ({'stride': -1}, 'stride=-1'),
    ({'stride': 65}, 'stride=65'),
    ({'short_windows': 'drop'}, "'drop'"),
    ({'optimizer_state': 'keep'}, "'keep'"),
    ({'gradient_reuse': 0}, 'gradient_reuse=0'),
    ({'gradient_reuse': 2}, 'gradient_reuse=2 .*max_windows=0'),
  ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    make_settings(**changes)
