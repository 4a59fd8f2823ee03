"""Learning rates by step against plain Python and torch's schedulers."""

import math

import jax
import numpy as np
import pytest
import torch

from configs import base
from tttnn import training


def settings(**changes):
  train = base.get_config().train
  train.update(learning_rate=0.3, warmup_steps=10, steps=100, **changes)
  return train


def rates(train, count):
  rate = jax.jit(training.schedule(train))
  return [float(rate(np.int32(step))) for step in range(count)]


def plain(train, step):
  warmup = train.warmup_steps
  rise = (step + 1) / warmup if step < warmup else 1.0
  if train.schedule == 'constant':
    return train.learning_rate * rise
  if train.schedule == 'step':
    falls = 0
    while (falls + 1) * train.decay_every <= step:
      falls += 1
    return train.learning_rate * rise * train.decay_factor**falls
  if step < warmup:
    return train.learning_rate * rise
  done = min(1.0, (step - warmup) / (train.steps - warmup))
  share = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
  return train.learning_rate * share


@pytest.mark.parametrize(
  'changes',
  [
    {'schedule': 'constant'},
    {'schedule': 'cosine'},
    {'schedule': 'step', 'decay_every': 7, 'decay_factor': 0.5},
    {'schedule': 'step', 'decay_every': 40},
  ],
)
@pytest.mark.parametrize('warmup', [0, 1, 10])
def test_rates_are_those_of_plain_python(changes, warmup):
  train = settings(**changes)
  train.warmup_steps = warmup
  found = rates(train, 120)
  expected = [plain(train, step) for step in range(120)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found[0] > 0  # The first step moves.


def test_steps_are_those_of_torch():
  train = settings(schedule='step', decay_every=15, decay_factor=0.1)
  train.warmup_steps = 0
  optimizer = torch.optim.SGD([torch.zeros(1)], lr=train.learning_rate)
  scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 15, gamma=0.1)
  expected = []
  for _ in range(50):
    expected.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    scheduler.step()
  np.testing.assert_allclose(rates(train, 50), expected, rtol=1e-5)


def test_the_decay_of_millions_of_steps_is_at_its_step():
  train = settings(schedule='step', decay_every=1_500_000)
  rate = training.schedule(train)
  found = [float(rate(np.int32(s))) for s in (1_499_999, 1_500_000, 1_699_999)]
  np.testing.assert_allclose(found, [0.3, 0.03, 0.03], rtol=1e-6)


def test_wrong_schedules_are_refused():
  with pytest.raises(ValueError, match="'linear' is not one of constant"):
    training.schedule(settings(schedule='linear'))
  with pytest.raises(ValueError, match='needs train.decay_every'):
    training.schedule(settings(schedule='step'))
