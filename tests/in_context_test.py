"""What stands in front of a document, against a plain reading of variants."""

import itertools

import pytest
import torch

from tests import tiny
from tttnn.methods import in_context
from tttnn.scoring import rolling

CONTEXT = 16
EOT = 96


def join(neighbors):
  return list(itertools.chain.from_iterable(neighbors))


def as_the_code_has_it(document, neighbors, context):
  """(input, targets) of the original: max where min is meant."""
  joined, budget = join(neighbors), context + 1 - len(document)
  front = joined[: max(budget, len(joined))]
  kept = (front + document)[-(context + 1) :]
  return kept[:-1], document


def as_the_paper_has_it(document, neighbors, context):
  front = join(neighbors)[: context + 1 - len(document)]
  return (front + document)[:-1], document


def fixed(document, neighbors, context):
  front = [EOT] + join(neighbors)[: context - len(document)]
  return (front + document)[:-1], document


ORACLES = {
  'as_coded': as_the_code_has_it,
  'as_described': as_the_paper_has_it,
  'fixed': fixed,
}


def cut(document, neighbors, **settings):
  return in_context.windows(
    document, neighbors, CONTEXT, EOT, in_context.Settings(**settings)
  )


@pytest.mark.parametrize('variant', in_context.VARIANTS)
# Less than the room, all of it, one more, and much more.
@pytest.mark.parametrize('lengths', [(2, 3), (6, 5), (7, 4), (7, 5), (40, 40)])
@pytest.mark.parametrize('size', [1, 5, 15])
def test_windows_are_those_of_a_plain_reading(variant, lengths, size):
  document = list(range(size))
  first, second = lengths
  neighbors = [list(range(20, 20 + first)), list(range(70, 70 + second)), []]
  (window,) = cut(document, neighbors, variant=variant)
  inputs, targets = ORACLES[variant](document, neighbors, CONTEXT)
  assert (window.inputs, window.targets) == (inputs, targets)
  assert len(window.inputs) <= CONTEXT


def test_the_nearest_remain_but_as_coded():
  neighbors = [[1] * 40, [2] * 40]
  document = [9] * 6
  for variant, kept in (('fixed', 1), ('as_described', 1), ('as_coded', 2)):
    (window,) = cut(document, neighbors, variant=variant)
    assert set(window.inputs) - {EOT} == {9, kept}
    assert (EOT in window.inputs) == (variant == 'fixed')


def test_the_nearest_may_come_last():
  document = [9] * 4
  neighbors = [[1, 2, 3], [4, 5, 6], [7, 8, 10, 11, 12, 13, 14, 15]]
  (first,) = cut(document, neighbors)
  (last,) = cut(document, neighbors, order='nearest_last')
  # 12 places: of the farthest, its first 6 tokens.
  assert first.inputs[1:13] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13]
  assert last.inputs[1:13] == [7, 8, 10, 11, 12, 13, 4, 5, 6, 1, 2, 3]
  assert first.inputs[13:] == last.inputs[13:] == document[:-1]


@pytest.mark.parametrize('variant', in_context.VARIANTS)
def test_without_room_or_neighbors_a_document_is_scored_as_it_is(variant):
  for document, neighbors in (
    (list(range(CONTEXT + 1)), [[1, 2]]),
    (list(range(40)), [[1, 2]]),
    (list(range(5)), []),
    (list(range(5)), [[], []]),
    ([], [[1, 2]]),
  ):
    found = cut(document, neighbors, variant=variant)
    assert found == rolling.windows(document, CONTEXT, EOT)
  # A document that fills the context leaves room only where there is no EOT.
  document = list(range(CONTEXT))
  (window,) = cut(document, [[50, 51]], variant=variant)
  front = {'fixed': EOT, 'as_described': 50, 'as_coded': 51}[variant]
  assert window.inputs == [front, *document[:-1]]


@torch.no_grad()
def test_a_score_is_that_of_the_whole_text_in_torch():
  model, params, reference = tiny.causal('gpt2', 64)
  neighbors, document = [[5, 6, 7] * 4, [8, 9] * 3], list(range(10, 30))
  (window,) = in_context.windows(
    document, neighbors, 64, EOT, in_context.Settings()
  )
  text = [EOT, *join(neighbors), *document]
  logits = reference(torch.tensor([text])).logits[0]
  scores = torch.log_softmax(logits, dim=-1)
  first = len(text) - len(document)
  expected = [
    float(scores[place - 1, text[place]]) for place in range(first, len(text))
  ]
  tokens, targets = (x[None] for x in rolling.pad(window, 64))
  found = model.log_likelihood(params, tokens, targets)[0]
  end = len(window.inputs)
  assert found[end - len(document) : end].tolist() == pytest.approx(
    expected, abs=1e-4
  )


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'variant': 'coded'}, "variant='coded' is not one of fixed"),
    ({'order': 'random'}, "order='random' is not one of nearest_first"),
    (
      {'variant': 'as_coded', 'order': 'nearest_last'},
      'variant=as_coded has the order nearest_first, not nearest_last',
    ),
  ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    in_context.Settings(**settings)
