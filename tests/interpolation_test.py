"""The mixture against its definition, token by token in plain Python."""

import collections
import math

import numpy as np
import pytest

from tttnn.methods import interpolation


def mixture(neighbors, distances, target):
  """p_nn of one token, by the definition and without a maximum taken out."""
  total = sum(math.exp(-d) for d in distances)
  value = 0.0
  for tokens, distance in zip(neighbors, distances, strict=True):
    share = collections.Counter(tokens)[target] / len(tokens)
    value += math.exp(-distance) / total * share
  return value


@pytest.fixture
def texts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 9, n).tolist() for n in (1, 30, 7, 200)]


def test_probabilities_are_those_of_the_definition(texts):
  distances = [0.3, 1.0, 1.0, 2.5]
  targets = [*range(12), 3, 3]
  found = interpolation.target_probabilities(texts, distances, targets)
  expected = [mixture(texts, distances, target) for target in targets]
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  everything = interpolation.target_probabilities(texts, distances, range(9))
  assert everything.sum() == pytest.approx(1)
  assert found[9] == 0  # A token that no neighbour has.


def test_large_distances_do_not_underflow(texts):
  near = interpolation.target_probabilities(texts, [0, 1, 2, 3], [1, 2])
  far = interpolation.target_probabilities(
    texts, [5000 + d for d in range(4)], [1, 2]
  )
  np.testing.assert_allclose(near, far, rtol=1e-9)


def test_an_empty_neighbor_is_left_out(texts):
  found = interpolation.target_probabilities(
    [texts[1], [], texts[2]], [1.0, 0.1, 2.0], [1, 2, 3]
  )
  without = interpolation.target_probabilities(
    [texts[1], texts[2]], [1.0, 2.0], [1, 2, 3]
  )
  np.testing.assert_array_equal(found, without)
  for nothing in ([], [[]]):
    distances = [1.0] * len(nothing)
    assert interpolation.target_probabilities(nothing, distances, [1]) is None


def test_log_likelihoods_are_those_of_the_mixed_distribution(texts):
  # Of a whole distribution, which stays one.
  rng = np.random.default_rng(1)
  model = rng.dirichlet(np.ones(9))
  distances = [0.3, 1.0, 1.1, 2.5]
  nearest = interpolation.target_probabilities(texts, distances, range(9))
  for alpha in (0.0, 0.02, 0.5, 1.0):
    mixed = [
      interpolation.log_likelihoods(
        np.log(model[token : token + 1]), nearest[token : token + 1], [alpha]
      )[0]
      for token in range(9)
    ]
    expected = alpha * nearest + (1 - alpha) * model
    np.testing.assert_allclose(np.exp(mixed), expected, rtol=1e-12)
    assert np.exp(mixed).sum() == pytest.approx(1)


def test_a_document_is_the_sum_of_its_tokens():
  scores = np.log([0.5, 0.25, 1e-30])
  near = np.array([0.1, 0.0, 0.2])
  found = interpolation.log_likelihoods(scores, near, interpolation.ALPHAS)
  assert len(found) == 20
  assert found[0] == pytest.approx(math.fsum(scores))  # Plain scoring.
  for alpha, value in zip(interpolation.ALPHAS[1:], found[1:], strict=True):
    expected = sum(
      math.log(alpha * n + (1 - alpha) * math.exp(s))
      for n, s in zip(near, scores, strict=True)
    )
    assert value == pytest.approx(expected, rel=1e-12)
  assert (
    interpolation.log_likelihoods(scores, None, [0.0, 0.1])
    == [pytest.approx(math.fsum(scores))] * 2
  )
  assert interpolation.log_likelihoods(scores, near, [1.0]) == [-math.inf]


def test_the_best_alpha_is_that_of_all_documents_together():
  def row(values):
    by_alpha = {'alpha': [0.0, 0.01, 0.02], 'log_likelihood': values}
    return {'log_likelihood': [values[0], None], 'by_alpha': by_alpha}

  rows = [row([-10.0, -9.0, -12.0]), row([-20.0, -18.5, -15.0])]
  assert interpolation.best(rows) == 0.02
  assert interpolation.best(rows[:1]) == 0.01
  assert interpolation.best([row([-1.0, -1.0, -1.0])]) == 0.0
  assert interpolation.best([*rows, row([-1.0, -1.0, None])]) == 0.01
  chosen = interpolation.at_alpha(rows[0], 0.02)
  assert chosen['log_likelihood'] == [-10.0, -12.0]
  assert chosen['alpha'] == 0.02


def test_alphas_are_a_grid_and_the_one_that_was_asked_for():
  assert interpolation.grid('test') == interpolation.ALPHAS
  assert interpolation.grid('0.02') == interpolation.ALPHAS
  assert interpolation.grid('0.3') == (*interpolation.ALPHAS, 0.3)
  for alpha in ('1.5', '-0.1', 'best', 'nan', ''):
    with pytest.raises(ValueError, match='neither validation nor test nor'):
      interpolation.grid(alpha)
