"""Rolling windows against the definition; scores against a PyTorch loop."""

import jax
import numpy as np
import pytest
import torch

from tests import tiny
from tttnn.corpus import buckets
from tttnn.scoring import rolling

EOT = 9


def test_windows_match_the_worked_example():
  # Context 4; (inputs | targets) for documents 0 1 2 ...
  expected = {
    0: [],
    3: [([EOT, 0, 1], [0, 1, 2])],
    5: [([EOT, 0, 1, 2], [0, 1, 2, 3]), ([0, 1, 2, 3], [4])],
    8: [([EOT, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7])],
    9: [
      ([EOT, 0, 1, 2], [0, 1, 2, 3]),
      ([3, 4, 5, 6], [4, 5, 6, 7]),
      ([4, 5, 6, 7], [8]),
    ],
    10: [
      ([EOT, 0, 1, 2], [0, 1, 2, 3]),
      ([3, 4, 5, 6], [4, 5, 6, 7]),
      ([5, 6, 7, 8], [8, 9]),
    ],
  }
  for n, windows in expected.items():
    found = rolling.windows(range(n), 4, EOT)
    assert [(w.inputs, w.targets) for w in found] == windows


def test_sliding_windows_match_the_worked_example():
  # Of 5 tokens with the one that stands before the document, every 2.
  expected = {
    0: [],
    1: [([EOT], [0])],
    4: [([EOT, 0, 1, 2], [0, 1, 2, 3])],
    5: [([EOT, 0, 1, 2], [0, 1, 2, 3]), ([1, 2, 3], [4])],
    6: [([EOT, 0, 1, 2], [0, 1, 2, 3]), ([1, 2, 3, 4], [4, 5])],
    7: [
      ([EOT, 0, 1, 2], [0, 1, 2, 3]),
      ([1, 2, 3, 4], [4, 5]),
      ([3, 4, 5], [6]),
    ],
  }
  for n, windows in expected.items():
    found = rolling.windows(range(n), 5, EOT, stride=2)
    assert [(w.inputs, w.targets) for w in found] == windows


@pytest.mark.parametrize(
  ('window', 'stride', 'message'),
  [
    (9, 0, 'store.window=9 is not from 1 to 8'),
    (-1, 0, 'store.window=-1 is not'),
    (4, 4, 'store.stride=4 is not from 0 to 3'),
    (8, -1, 'store.stride=-1 is not from 0 to 7'),
  ],
)
def test_windows_that_cannot_be_are_refused(window, stride, message):
  rolling.check(8, 7, 8, 'store')
  with pytest.raises(ValueError, match=message):
    rolling.check(window, stride, 8, 'store')


@pytest.mark.parametrize('stride', [0, 1, 3, 7])
@pytest.mark.parametrize('n', range(1, 40))
def test_every_token_is_scored_once_after_its_predecessor(n, stride):
  tokens = list(range(100, 100 + n))
  scored = []
  for window in rolling.windows(tokens, 8, EOT, stride=stride):
    assert len(window.inputs) <= 8
    contexts = window.inputs[len(window.inputs) - len(window.targets) :]
    for context, target in zip(contexts, window.targets, strict=True):
      assert context == (target - 1 if target > 100 else EOT)
    scored += window.targets
  assert scored == tokens


@pytest.mark.parametrize('stride', [0, 1, 3, 7])
@pytest.mark.parametrize('n', [1, 7, 8, 9, 16, 29])
def test_windows_of_a_part_are_those_of_the_whole(n, stride):
  tokens = list(range(100, 100 + n))
  whole = {}  # What is read before each token is scored.
  for window in rolling.windows(tokens, 8, EOT, stride=stride):
    for later, target in enumerate(window.targets[::-1]):
      whole[target] = window.inputs[: len(window.inputs) - later]
  for begin in range(n):
    for end in range(begin + 1, n + 1):
      part = {}
      for window in rolling.windows(
        np.array(tokens), 8, EOT, begin, end, stride=stride
      ):
        assert window.targets
        for later, target in enumerate(window.targets[::-1]):
          part[target] = window.inputs[: len(window.inputs) - later]
      assert part == {token: whole[token] for token in tokens[begin:end]}


def score(model, params, windows):
  """What a pool does with the windows of a document."""
  total = 0.0
  for window in windows:
    size = buckets.padded(len(window.inputs), model.context)
    tokens, targets = (x[None] for x in rolling.pad(window, size))
    scores = model.log_likelihood(params, tokens, targets)[0]
    end = len(window.inputs)
    total += float(scores[end - len(window.targets) : end].sum())
  return total


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
@pytest.mark.parametrize('n', [0, 1, 7, 64, 65, 150])
def test_scores_equal_a_torch_loop(kind, n):
  model, params, reference = tiny.causal(kind, context=64)
  tokens = np.random.default_rng(n).integers(0, 97, n).tolist()
  found = score(model, params, rolling.windows(tokens, 64, EOT))
  assert found == pytest.approx(
    tiny.rolling_log_likelihood(reference, tokens, 64, EOT), rel=1e-5
  )


def test_constant_text_scores_each_token_in_its_own_window():
  # Windows of equal tokens with unequal numbers of targets must not share a
  # score, as grouping them by content would make them.
  model, params, reference = tiny.causal('gpt2', context=64)
  tokens = [5] * 150
  found = score(model, params, rolling.windows(tokens, 64, EOT))
  expected = tiny.rolling_log_likelihood(reference, tokens, 64, EOT)
  assert found == pytest.approx(expected, rel=1e-5)


def test_padding_to_a_bucket_changes_nothing():
  model, params, _ = tiny.causal('gpt2', context=256)
  tokens = np.random.default_rng(0).integers(0, 97, 100)
  plain = model.log_likelihood(params, tokens[None, :-1], tokens[None, 1:])
  window = rolling.Window(tokens[:-1].tolist(), tokens[1:].tolist())
  assert buckets.padded(99, 256) == 128
  np.testing.assert_allclose(
    score(model, params, [window]),
    float(np.sum(jax.device_get(plain))),
    rtol=1e-5,
  )


def test_buckets_hold_what_they_are_chosen_for():
  assert [buckets.padded(n, 1024) for n in (1, 64, 65, 513, 1024)] == [
    64,
    64,
    128,
    1024,
    1024,
  ]
  assert buckets.padded(3, 48) == 48
  lengths = (1, 40, 41, 64, 65, 513, 641, 897, 1024)
  assert [buckets.padded(n, 1024, fine=True) for n in lengths] == [
    40,
    40,
    48,
    64,
    80,
    640,
    768,
    1024,
    1024,
  ]
  assert buckets.padded(3, 50, fine=True) == 50
  with pytest.raises(ValueError, match='1025 tokens .* 1024'):
    buckets.padded(1025, 1024)


def test_torch_loop_scores_a_document_by_hand():
  # The oracle itself, on logits that are known: uniform over the vocabulary.
  class Uniform(torch.nn.Module):
    def forward(self, ids):
      out = type('Output', (), {})()
      out.logits = torch.zeros(*ids.shape, 10)
      return out

  found = tiny.rolling_log_likelihood(Uniform(), [1, 2, 3, 4, 5], 4, EOT)
  assert found == pytest.approx(-5 * np.log(10))
