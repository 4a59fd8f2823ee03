"""SIFT against a plain solver, direct solves and a worked example."""

import jax
import numpy as np
import pytest

from tttnn.methods import gram
from tttnn.methods import sift

EXAMPLE_MxD = np.float32(
  [(1, 0, 0), (0.96, 0.28, 0), (0.6, 0.8, 0), (0, 0.6, 0.8), (0, 0, 1)]
)
EXAMPLE_QUERY_D = np.float32([2, 2, 1]) / 3


def choose(query_D, vectors_MxD, lambda_, count, pool=0):
  (found,) = sift.choose(
    query_D[None],
    [vectors_MxD],
    lambda_=lambda_,
    count=count,
    pool=pool or len(vectors_MxD),
  )
  return found


def units(query_D, vectors_MxD):
  points = np.concatenate([vectors_MxD, query_D[None]]).astype(np.float64)
  return points / np.linalg.norm(points, axis=1, keepdims=True)


def greedy(query_D, vectors_MxD, lambda_, count):
  """Conditions the whole covariance on each pick, in float64."""
  points = units(query_D, vectors_MxD)
  covariance = points @ points.T
  picks, variances = [], []
  for _ in range(count):
    gains = covariance[-1, :-1] ** 2 / (np.diag(covariance)[:-1] + lambda_)
    j = int(np.argmax(gains))
    column = covariance[:, j].copy()
    covariance = covariance - np.outer(column, column) / (column[j] + lambda_)
    picks.append(j)
    variances.append(covariance[-1, -1])
  return picks, variances


def variance(query_D, vectors_MxD, picks, lambda_):
  """The posterior variance after those picks, by its definition."""
  points = units(query_D, vectors_MxD)
  x, q = points[picks], points[-1]
  noisy = x @ x.T + lambda_ * np.eye(len(picks))
  return q @ q - (x @ q) @ np.linalg.solve(noisy, x @ q)


def make_pool(kind, seed, size=60, dim=48):
  rng = np.random.default_rng(seed)
  query = rng.standard_normal(dim)
  vectors = rng.standard_normal((size, dim))
  if kind != 'random':
    topics = query + rng.standard_normal((4, dim))
    vectors = topics[rng.integers(4, size=size)] + 0.5 * vectors
  if kind == 'near':
    copied = rng.permutation(size)[: size // 2 * 2].reshape(2, -1)
    scale = 10.0 ** -rng.integers(3, 7, size=(size // 2, 1))
    noise = scale * rng.standard_normal((size // 2, dim))
    vectors[copied[0]] = vectors[copied[1]] + noise
  if kind == 'query':  # Near-copies of the query itself.
    scale = 10.0 ** -rng.integers(3, 7, size=(8, 1))
    vectors[:8] = query + scale * rng.standard_normal((8, dim))
  return np.float32(query), np.float32(vectors)


@pytest.mark.parametrize(
  ('lambda_', 'picks', 'variances'),
  [
    (0.01, [2, 4, 1, 2, 3], [0.13751, 0.02750, 0.00721, 0.00443, 0.00344]),
    (0.2, [2, 4, 2, 1, 2], [0.27407, 0.18148, 0.11549, 0.08011, 0.06400]),
    (1, [2, 2, 3, 1, 2], [0.56444, 0.41926, 0.34591, 0.26943, 0.23183]),
    (10, [2, 2, 2, 2, 2], [0.92081, 0.85481, 0.79897, 0.75111, 0.70963]),
  ],
)
def test_a_worked_example(lambda_, picks, variances):
  found = choose(EXAMPLE_QUERY_D, EXAMPLE_MxD, lambda_, 5)
  assert found[0] == picks
  np.testing.assert_allclose(found[1], variances, atol=5.1e-6)


@pytest.mark.parametrize('kind', ['random', 'clustered', 'near', 'query'])
@pytest.mark.parametrize('lambda_', [0.01, 0.2, 10])
def test_picks_are_those_of_the_plain_solver(kind, lambda_):
  for seed in range(12):
    query_D, vectors_MxD = make_pool(kind, seed)
    picks, variances = choose(query_D, vectors_MxD, lambda_, 25)
    expected_picks, expected = greedy(query_D, vectors_MxD, lambda_, 25)
    assert picks == expected_picks
    np.testing.assert_allclose(variances, expected, rtol=0, atol=1e-12)
    assert np.all(np.diff(variances) <= 0)


def test_float32_would_pick_something_else():
  """Or the pools of the test before would show nothing."""
  different = 0
  for seed in range(12):
    query_D, vectors_MxD = make_pool('near', seed)
    points = units(query_D, vectors_MxD).astype(np.float32)
    with jax.default_matmul_precision('highest'):
      picks_N, _ = sift.posterior(
        points[:-1] @ points[-1],
        points[:-1] @ points[:-1].T,
        np.ones(len(vectors_MxD), bool),
        lambda_=0.01,
        count=25,
      )
    different += picks_N.tolist() != greedy(query_D, vectors_MxD, 0.01, 25)[0]
  assert different > 2


@pytest.mark.parametrize('lambda_', [0.01, 1])
def test_each_pick_leaves_the_least_variance(lambda_):
  for seed in range(5):
    query_D, vectors_MxD = make_pool('clustered', seed, size=9, dim=6)
    picks, variances = choose(query_D, vectors_MxD, lambda_, 7)
    for n in range(7):
      after = [
        variance(query_D, vectors_MxD, [*picks[:n], i], lambda_)
        for i in range(9)
      ]
      assert picks[n] == np.argmin(after)
      np.testing.assert_allclose(variances[n], after[picks[n]], atol=1e-12)


@pytest.mark.parametrize('lambda_', [0.01, 5])
def test_of_equal_candidates_the_first_is_picked(lambda_):
  for seed in range(8):
    query_D, vectors_MxD = make_pool('clustered', seed, size=20)
    rng = np.random.default_rng(seed)
    first = np.concatenate([np.arange(20), rng.integers(20, size=20)])
    rng.shuffle(first)
    first = [first.tolist().index(i) for i in first]  # Places of equals.
    vectors_MxD = vectors_MxD[rng.permutation(40)[first] % 20]
    keys = [row.tobytes() for row in vectors_MxD]
    picks, variances = choose(query_D, vectors_MxD, lambda_, 25)
    expected_picks, expected = greedy(query_D, vectors_MxD, lambda_, 25)
    assert picks == [keys.index(keys[i]) for i in expected_picks]
    np.testing.assert_allclose(variances, expected, rtol=0, atol=1e-12)


def test_copies_change_nothing_and_order_only_names():
  query_D, vectors_MxD = make_pool('clustered', 3)
  picks, variances = choose(query_D, vectors_MxD, 0.1, 30)
  copied = np.concatenate([vectors_MxD, vectors_MxD[picks[:5]]])
  again, same = choose(query_D, copied, 0.1, 30)
  assert again == picks
  np.testing.assert_allclose(same, variances, rtol=0, atol=1e-13)
  order = np.random.default_rng(0).permutation(len(vectors_MxD))
  again, same = choose(query_D, vectors_MxD[order], 0.1, 30)
  assert order[again].tolist() == picks
  np.testing.assert_allclose(same, variances, rtol=0, atol=1e-13)


def test_lengths_of_vectors_do_not_count():
  query_D, vectors_MxD = make_pool('clustered', 4)
  lengths = np.exp2(np.random.default_rng(0).integers(-9, 9, (60, 1)))
  scaled = choose(4 * query_D, np.float32(lengths * vectors_MxD), 0.01, 25)
  assert scaled == choose(query_D, vectors_MxD, 0.01, 25)


def test_filling_is_never_picked():
  # The query is nearly orthogonal to what there is, and lambda is large.
  query_D = np.float32([1, 1e-3, 0, 0])
  vectors_MxD = np.float32([[0, 1, 0, 0], [0, 0, 1, 0]])
  picks, variances = choose(query_D, vectors_MxD, 100.0, 6, pool=9)
  assert picks == [0] * 6
  assert picks == greedy(query_D, vectors_MxD, 100.0, 6)[0]
  assert choose(query_D, vectors_MxD[1:], 0.01, 3, pool=9) == ([0] * 3, [1] * 3)
  for size in (1, 5, 8):
    query_D, vectors_MxD = make_pool('clustered', size, size=size)
    alone = choose(query_D, vectors_MxD, 0.01, 12)
    filled = choose(query_D, vectors_MxD, 0.01, 12, pool=31)
    assert filled[0] == alone[0] == greedy(query_D, vectors_MxD, 0.01, 12)[0]
    np.testing.assert_allclose(filled[1], alone[1], rtol=0, atol=1e-14)


def test_a_query_gets_the_same_bits_in_any_company():
  pools = [make_pool('near', seed, size=20 + seed) for seed in range(11)]
  queries_QxD = np.stack([query_D for query_D, _ in pools])
  vectors = [vectors_MxD for _, vectors_MxD in pools]
  vectors[4] = vectors[4][:0]
  settings = {'lambda_': 0.05, 'count': 20, 'pool': 40}
  found = sift.choose(queries_QxD, vectors, **settings)
  assert found == sift.choose(queries_QxD, vectors, **settings)
  assert found[4] == ([], [])
  for i, one in enumerate(found):
    alone = sift.choose(queries_QxD[i : i + 1], vectors[i : i + 1], **settings)
    assert alone == [one]


def test_picks_stop_before_the_first_that_says_too_little():
  # sigma_n alpha n, with alpha 0.5: 0.45, 0.9, 1.05, 0.6, 2.
  sigmas = [0.9, 0.9, 0.7, 0.3, 0.8]
  variances = [sigma**2 for sigma in sigmas]
  assert sift.stop(variances, 0.5) == 2
  assert sift.stop(variances, 0.0) == 5
  assert sift.stop(variances, 0.2) == 5
  assert sift.stop(variances, 1.0) == 1
  assert sift.stop(variances, 1.2) == 0
  assert sift.stop([0.25, 0.25], 1.0) == 2  # At the bound it goes on.
  assert sift.stop([], 1.0) == 0


@pytest.mark.parametrize(
  ('query', 'vectors', 'message'),
  [
    ([0, 0], [[1, 0]], 'query 0 has no direction, its squared length is 0'),
    ([np.inf, 0], [[1, 0]], 'query 0 has no direction, .* inf'),
    ([1, 0], [[1, 0], [0, 0]], 'candidate 1 of query 0 has no direction'),
    ([1, 0], [[np.nan, 0]], 'candidate 0 of query 0 has no direction, .* nan'),
    ([1, 0], [[1, 0, 0]], r'query 0 has shape \[2\], its candidates \[1, 3\]'),
  ],
)
def test_vectors_without_direction_are_refused(query, vectors, message):
  with pytest.raises(ValueError, match=message):
    choose(np.float32(query), np.float32(vectors), 0.01, 2)


def test_products_are_cosines():
  query_D, vectors_MxD = make_pool('near', 0)
  vectors_MxD[7] = vectors_MxD[2]
  vectors_MxD[9, 0] = vectors_MxD[2, 0]
  (found,) = gram.each(lambda some: some, query_D[None], [vectors_MxD])
  points = units(query_D, vectors_MxD)
  np.testing.assert_allclose(
    found.cosines_M, points[:-1] @ points[-1], atol=1e-15
  )
  np.testing.assert_allclose(
    found.gram_MxM, points[:-1] @ points[:-1].T, atol=1e-15
  )
  assert np.flatnonzero(~found.distinct_M).tolist() == [7]
