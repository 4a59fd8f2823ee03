"""Training on pairs against PyTorch's loss and its AdamW."""

import copy

import jax
import numpy as np
import pytest
import torch

from tests import tiny
from tttnn import objectives
from tttnn import optim
from tttnn import training
from tttnn.corpus import packing

pytestmark = pytest.mark.usefixtures('compile_fast')


def pairs(count=7):
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 9, (count, 2))
  return [
    tuple(rng.integers(4, tiny.VOCABULARY, n).tolist() for n in row)
    for row in lengths
  ]


def task(**changes):
  model, params, reference = tiny.seq2seq()
  sizes = {'rows': 3, 'input_length': 10, 'output_length': 8, 'dropout': False}
  return objectives.PairTask(model, **sizes | changes), params, reference


def tokens_of(batch):
  """The pairs of a batch, read back."""
  return [
    (inputs[mask].tolist(), targets[weights > 0].tolist())
    for inputs, mask, targets, weights in zip(
      *(batch[name] for name in ('inputs', 'mask', 'targets', 'weights')),
      strict=True,
    )
  ]


def causal_task(**changes):
  model, params, reference = tiny.causal('gpt2', 32)
  sizes = {'rows': 3, 'input_length': 10, 'output_length': 8, 'dropout': False}
  task_ = objectives.CausalPairTask(model, **sizes | changes)
  return task_, params, reference


def causal_torch_loss(reference, chosen):
  """Labels are -100 on inputs and padding; Hugging Face's model shifts them."""
  size = max(len(source) + len(target) for source, target in chosen)
  tokens, labels = np.zeros((2, len(chosen), size), np.int64)
  labels[:] = -100
  for row, (source, target) in enumerate(chosen):
    end = len(source) + len(target)
    tokens[row, :end] = [*source, *target]
    labels[row, len(source) : end] = target
  return reference(torch.tensor(tokens), labels=torch.tensor(labels)).loss


def chosen_of(step, seed, rows=3):
  """The pairs of a step, each epoch in an order of its own."""
  positions = range(step * rows, (step + 1) * rows)
  numbers = [
    packing.order(seed, position // 7, 7)[position % 7]
    for position in positions
  ]
  return [pairs()[number] for number in numbers]


def torch_loss(reference, batch):
  labels = np.where(batch['weights'] > 0, batch['targets'], -100)
  return reference(
    torch.tensor(batch['inputs']).long(),
    attention_mask=torch.tensor(batch['mask']).long(),
    labels=torch.tensor(labels).long(),
  ).loss


def test_an_epoch_visits_every_pair_once_in_an_order_of_its_own():
  one, _, _ = task()
  # Seven steps of three are three epochs of seven.
  seen = [
    pair for step in range(7) for pair in tokens_of(one.batch(pairs(), step, 5))
  ]
  epochs = [seen[i : i + 7] for i in range(0, 21, 7)]
  for epoch in epochs:
    assert sorted(epoch) == sorted((list(a), list(b)) for a, b in pairs())
  assert epochs[0] != epochs[1] != epochs[2]
  for name, array in one.batch(pairs(), 2, 5).items():
    np.testing.assert_array_equal(array, one.batch(pairs(), 2, 5)[name])
  assert tokens_of(one.batch(pairs(), 0, 6)) != epochs[0][:3]
  assert one.tokens == 3 * 18


def test_a_step_is_that_of_torch():
  one, params, reference = task()
  batch = one.batch(pairs(), 0, 0)
  reference = copy.deepcopy(reference)
  expected = torch_loss(reference, batch)
  expected.backward()
  torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.1).step()
  optimizer = optim.adamw(1e-3, weight_decay=0.1, clip_norm=0)
  step = training.compile_step(one, optimizer, seed=0)
  state = {'params': params, 'optimizer': optimizer.init(params)}
  state, loss, _ = step(jax.tree.map(np.array, state), batch, np.int32(0))
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  found = state['params']['decoder']['final_layer_norm']['weight']
  weight = reference.decoder.final_layer_norm.weight.detach().numpy()
  np.testing.assert_allclose(found, weight, rtol=0, atol=1e-5)
  start = params['decoder']['final_layer_norm']['weight']
  assert np.abs(found - start).min() > 1e-4


def test_a_causal_step_is_that_of_torch():
  one, params, reference = causal_task()
  reference = copy.deepcopy(reference)
  optimizer = optim.adamw(1e-3, weight_decay=0.1, clip_norm=0)
  adamw = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.1)
  step = training.compile_step(one, optimizer, seed=0)
  state = {'params': params, 'optimizer': optimizer.init(params)}
  state = jax.tree.map(np.array, state)
  for number in range(2):
    adamw.zero_grad()
    expected = causal_torch_loss(reference, chosen_of(number, seed=5))
    expected.backward()
    adamw.step()
    batch = one.batch(pairs(), number, 5)
    state, loss, _ = step(state, batch, np.int32(number))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  found = state['params']['h']['1']['mlp']['c_fc']['weight']
  weight = reference.transformer.h[1].mlp.c_fc.weight.detach().numpy()
  np.testing.assert_allclose(found, weight, rtol=0, atol=1e-5)
  start = params['h']['1']['mlp']['c_fc']['weight']
  assert np.abs(found - start).max() > 1e-3


def test_a_causal_row_has_no_more_than_the_context():
  causal_task(input_length=25)
  with pytest.raises(ValueError, match='26 tokens and an output of 8 exceed'):
    causal_task(input_length=26)


def test_causal_validation_is_the_mean_over_output_tokens():
  one, params, reference = causal_task()
  total = count = 0
  with torch.no_grad():
    for number in range(2):
      chosen = chosen_of(number, seed=3)
      size = sum(len(target) for _, target in chosen)
      total += size * causal_torch_loss(reference, chosen).item()
      count += size
  found = training.validate(one, pairs(), params, batches=2, seed=3)
  assert found == pytest.approx(total / count, rel=1e-5)


def test_validation_is_the_mean_over_target_tokens():
  one, params, reference = task()
  total = count = 0
  with torch.no_grad():
    for number in range(2):
      batch = one.batch(pairs(), number, 3)
      size = np.count_nonzero(batch['weights'])
      total += size * torch_loss(reference, batch).item()
      count += size
  found = training.validate(one, pairs(), params, batches=2, seed=3)
  assert found == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
  'pair, message',
  [
    (
      ([4] * 11, [4]),
      'pair 0 has 11 and 1 tokens, a row takes 0 to 10 and 1 to 8',
    ),
    (([4], [4] * 9), 'pair 0 has 1 and 9 tokens'),
    (([4], []), 'pair 0 has 1 and 0 tokens'),
  ],
)
def test_a_pair_that_does_not_fit_is_refused(pair, message):
  with pytest.raises(ValueError, match=message):
    task()[0].batch([pair], 0, 0)


def test_a_causal_input_is_not_empty():
  message = 'pair 0 has 0 and 1 tokens, a row takes 1 to 10 and 1 to 8'
  with pytest.raises(ValueError, match=message):
    causal_task()[0].batch([([], [4])], 0, 0)
