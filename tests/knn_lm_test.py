"""kNN-LM against its definition in plain Python and in float64."""

import collections
import math

import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest

from tttnn.datastore import metric as metric_lib
from tttnn.methods import knn_lm

V = 7
SEEDS = strategies.integers(0, 2**32 - 1)
METRICS = strategies.sampled_from(metric_lib.METRICS)


def score(metric, distance, temperature):
  return -(distance**2 if metric == 'l2' else distance) / temperature


def p_knn(distances, values, metric, temperature, weights):
  """Of one context, by token, over a loop; empty where there is none."""
  total = collections.defaultdict(float)
  for d, v, w in zip(distances, values, weights, strict=True):
    if v >= 0 and d < math.inf:
      total[int(v)] += float(w) * math.exp(score(metric, float(d), temperature))
  whole = math.fsum(total.values())
  return {token: share / whole for token, share in total.items()}


def world(seed, metric, rows=11, k=9, missing=0.3):
  """Neighbours of some tokens, with holes anywhere and rows of holes alone."""
  rng = np.random.default_rng(seed)
  low = 0.0 if metric == 'l2' else -3.0
  distances = rng.uniform(low, 3, (rows, k)).astype(np.float32)
  values = rng.integers(0, V, (rows, k)).astype(np.int32)
  values[rng.random((rows, k)) < missing / 2] = -1
  distances[rng.random((rows, k)) < missing / 2] = np.inf
  if missing:
    distances[0] = np.inf
    values[1] = -1
  weights = rng.integers(1, 5, (rows, k))
  return distances, values, rng.integers(0, V, rows), weights


def log(p):
  return math.log(p) if p else -math.inf


@hypothesis.settings(deadline=None)
@hypothesis.given(
  SEEDS,
  METRICS,
  strategies.sampled_from([0.3, 1.0, 10.0]),
  strategies.booleans(),
)
def test_gold_is_that_of_the_definition(seed, metric, temperature, weighted):
  distances, values, targets, weights = world(seed, metric)
  found = knn_lm.log_probability(
    distances,
    values,
    targets,
    metric=metric,
    temperature=temperature,
    weights_Txk=weights if weighted else None,
  )
  if not weighted:
    weights = np.ones_like(weights)
  rows = zip(distances, values, weights, targets, strict=True)
  for token, (d, v, w, target) in enumerate(rows):
    p = p_knn(d, v, metric, temperature, w)
    expected = log(p.get(int(target), 0)) if p else math.nan
    assert found[token] == pytest.approx(expected, rel=1e-11, nan_ok=True)
  assert np.isnan(found[:2]).all()


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(SEEDS, METRICS, strategies.sampled_from([0.3, 1.0, 10.0]))
def test_the_distribution_is_that_of_a_loop_and_of_gold(
  seed, metric, temperature
):
  distances, values, _, weights = world(seed, metric)
  p_RxV = knn_lm.distribution(
    distances,
    values,
    vocabulary=V,
    metric=metric,
    temperature=temperature,
    weights_Rxk=weights,
  )
  assert p_RxV.shape == (11, V) and p_RxV.dtype == np.float32
  expected = np.zeros((11, V))
  for row in range(11):
    arrays = distances[row], values[row], metric, temperature, weights[row]
    for token, p in p_knn(*arrays).items():
      expected[row, token] = p
  np.testing.assert_allclose(p_RxV, expected, rtol=2e-5, atol=1e-30)
  for token in range(V):
    gold = knn_lm.log_probability(
      distances,
      values,
      np.full(11, token),
      metric=metric,
      temperature=temperature,
      weights_Txk=weights,
    )
    gold = np.nan_to_num(np.exp(gold))
    np.testing.assert_allclose(p_RxV[:, token], gold, rtol=2e-5, atol=1e-30)


def test_the_distribution_compiles_and_a_nan_shows():
  distances, values, _, _ = world(0, 'l2')

  def p_knn(distances, values, temperature):
    return knn_lm.distribution(
      distances, values, vocabulary=V, metric='l2', temperature=temperature
    )

  compiled = jax.jit(p_knn)(distances, values, 2.0)
  np.testing.assert_allclose(compiled, p_knn(distances, values, 2.0), rtol=1e-5)
  distances[5, 2], values[5, 2] = np.nan, 3
  found = np.asarray(jax.jit(p_knn)(distances, values, 2.0))
  assert np.isnan(found[5]).any() and np.isfinite(found[6:]).all()


def test_distances_as_a_search_gives_them():
  # The nearest entry has the largest weight, under each metric.
  rng = np.random.default_rng(0)
  keys = rng.normal(size=(V, 5)).astype(np.float32)
  query = rng.normal(size=(1, 5)).astype(np.float32)
  for metric in metric_lib.METRICS:
    x = metric_lib.prepared(metric, keys)
    (q,) = metric_lib.prepared(metric, query)
    away = metric_lib.distances(metric, q, x)
    found = knn_lm.log_probability(
      np.tile(away, (V, 1)),
      np.tile(np.arange(V), (V, 1)),
      np.arange(V),
      metric=metric,
      temperature=2.0,
    )
    wide, q = x.astype(np.float64), q.astype(np.float64)
    s = wide @ q / 2.0
    if metric == 'l2':
      s = -np.square(wide - q).sum(axis=1) / 2.0
    np.testing.assert_allclose(
      found, s - np.log(np.exp(s).sum()), rtol=1e-5, atol=1e-6
    )
    assert found.argmax() == away.argmin() == s.argmax()


def test_copies_are_one_entry_with_a_weight():
  distances = np.array([[1.0, 1.5, 1.5, 1.5, 2.0]])
  values = np.array([[0, 1, 1, 1, 2]])
  options = {'metric': 'l2', 'temperature': 1.3}
  once = [0, 1, 4]
  weights = np.array([[1, 3, 1]])
  for target in range(4):
    copies = knn_lm.log_probability(distances, values, [target], **options)
    merged = knn_lm.log_probability(
      distances[:, once],
      values[:, once],
      [target],
      weights_Txk=weights,
      **options,
    )
    np.testing.assert_allclose(copies, merged, rtol=1e-13)
  whole = knn_lm.distribution(distances, values, vocabulary=4, **options)
  merged = knn_lm.distribution(
    distances[:, once],
    values[:, once],
    vocabulary=4,
    weights_Rxk=weights,
    **options,
  )
  np.testing.assert_allclose(whole, merged, rtol=1e-5)


def test_far_neighbors_keep_their_digits():
  # Squares of 10^4, whose exponentials float64 has not.
  distances = np.float32([[100, 100.01, 140]])
  values = np.array([[1, 2, 3]])
  options = {'metric': 'l2', 'temperature': 1.0}
  found = [
    knn_lm.log_probability(distances, values, [token], **options)[0]
    for token in range(4)
  ]
  squares = [float(d) ** 2 for d in distances[0]]
  gap = squares[1] - squares[0]
  assert found[0] == -math.inf
  assert found[1] == pytest.approx(-math.log1p(math.exp(-gap)), rel=1e-9)
  assert found[2] == pytest.approx(-gap + found[1], rel=1e-9)
  # No exponential of this one is left beside the nearest.
  assert found[3] == pytest.approx(squares[0] - squares[2] + found[1], rel=1e-9)
  p = knn_lm.distribution(distances, values, vocabulary=4, **options)
  np.testing.assert_allclose(p[0, :3], np.exp(found[:3]), rtol=1e-5)


def test_several_ks_and_temperatures_are_each_by_itself(monkeypatch):
  monkeypatch.setattr(knn_lm, '_BLOCK', 40)  # Rows in several blocks.
  distances, values, targets, weights = world(3, 'l2', rows=23, missing=0)
  distances.sort(axis=1)
  distances[4, 2:] = distances[5] = np.inf
  ks, temperatures = [4, 9, 1, 4], [0.5, 3.0]
  for w in (None, weights):
    found = knn_lm.log_probabilities(
      distances,
      values,
      targets,
      metric='l2',
      temperatures=temperatures,
      ks=ks,
      weights_Txk=w,
    )
    assert found.shape == (23, 2, 4)
    for place in np.ndindex(2, 4):
      k = ks[place[1]]
      alone = knn_lm.log_probability(
        distances[:, :k],
        values[:, :k],
        targets,
        metric='l2',
        temperature=temperatures[place[0]],
        weights_Txk=None if w is None else w[:, :k],
      )
      np.testing.assert_allclose(found[:, *place], alone, rtol=1e-12)


def test_nobody_has_neighbors():
  empty = np.zeros((3, 0))
  found = knn_lm.log_probability(
    empty, empty, np.zeros(3), metric='l2', temperature=1.0
  )
  np.testing.assert_array_equal(found, [np.nan] * 3)


def test_interpolation_and_its_ends():
  log_p_lm = np.log([0.2, 0.3, 1e-300, 0.5])
  log_p_knn = np.array([math.log(0.6), -math.inf, -800.0, math.nan])
  for lambda_ in (0.01, 0.25, 0.99):
    found = knn_lm.interpolate(log_p_lm, log_p_knn, lambda_)
    expected = np.log(
      [lambda_ * 0.6 + (1 - lambda_) * 0.2, (1 - lambda_) * 0.3]
    )
    np.testing.assert_allclose(found[:2], expected, rtol=1e-12)
    # exp(-800) is nothing beside 1e-300.
    assert found[2] == pytest.approx(log_p_lm[2] + math.log1p(-lambda_))
    assert found[3] == log_p_lm[3]
  np.testing.assert_array_equal(
    knn_lm.interpolate(log_p_lm, log_p_knn, 0.0), log_p_lm
  )
  np.testing.assert_array_equal(
    knn_lm.interpolate(log_p_lm, log_p_knn, 1.0),
    [*log_p_knn[:3], log_p_lm[3]],
  )
  nothing = np.full(3, -math.inf)
  for lambda_ in (0.0, 0.5, 1.0):
    np.testing.assert_array_equal(
      knn_lm.interpolate(nothing, nothing, lambda_), nothing
    )
  each = np.array([0.0, 1.0, 0.5, 1.0])
  np.testing.assert_array_equal(
    knn_lm.interpolate(log_p_lm, log_p_knn, each),
    [
      knn_lm.interpolate(*three)
      for three in zip(log_p_lm, log_p_knn, each, strict=True)
    ],
  )
  with np.errstate(invalid='ignore'):  # A model that is broken shows.
    found = knn_lm.interpolate(np.array([math.nan]), log_p_knn, 0.5)
  assert np.isnan(found).all()


def test_the_mixture_stays_a_distribution():
  distances, values, _, _ = world(1, 'l2')
  p_RxV = knn_lm.distribution(
    distances, values, vocabulary=V, metric='l2', temperature=1.0
  )
  rng = np.random.default_rng(0)
  lm_RxV = np.log(rng.dirichlet(np.ones(V), 11)).astype(np.float32)
  lm_RxV[3] = [-np.inf] * (V - 1) + [0.0]
  there = np.arange(11) >= 2
  for lambda_ in (0.0, 0.3, 1.0):
    found = np.asarray(knn_lm.mixture(lm_RxV, p_RxV, lambda_))
    used = np.where(there, lambda_, 0.0)[:, None]
    expected = used * np.asarray(p_RxV) + (1 - used) * np.exp(lm_RxV)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[:2], lm_RxV[:2])
    if not lambda_:
      np.testing.assert_array_equal(found, lm_RxV)
  each = np.linspace(0, 1, 11).astype(np.float32)
  found = knn_lm.mixture(lm_RxV, p_RxV, each)
  for row in range(11):
    alone = knn_lm.mixture(lm_RxV, p_RxV, float(each[row]))[row]
    np.testing.assert_allclose(found[row], alone, rtol=1e-6)


@hypothesis.given(SEEDS)
def test_oneself_is_dropped_by_id(seed):
  rng = np.random.default_rng(seed)
  ids = np.stack([rng.permutation(12)[:6] for _ in range(8)])
  distances = np.sort(rng.integers(0, 3, (8, 6)), axis=1)  # With ties.
  own = np.where(rng.random(8) < 0.3, -1, rng.integers(0, 12, 8))
  for row in range(8):
    ids[row, 6 - rng.integers(0, 3) :] = -1
  found_distances, found_ids = knn_lm.drop_self(own, distances, ids)
  assert found_ids.shape == found_distances.shape == (8, 5)
  for row in range(8):
    pairs = [
      (distance, id_)
      for distance, id_ in zip(distances[row], ids[row], strict=True)
      if id_ < 0 or id_ != own[row]
    ]
    found = zip(found_distances[row], found_ids[row], strict=True)
    assert list(found) == pairs[:5]


def test_missing_ids_are_not_the_last_value():
  values = np.array([5, 65535], np.uint16)
  found = knn_lm.look_up(values, np.array([[1, 0], [-1, 1]]))
  assert found.dtype == np.int32
  assert found.tolist() == [[65535, 5], [-1, 65535]]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'metric': 'dot'}, "store.metric='dot'"),
    ({'values': np.zeros((2, 4))}, r'shape \[2, 4\] for .* \[2, 3\]'),
    ({'targets': np.zeros(3)}, r'shape \[3\] for .* \[2, 3\]'),
    ({'weights': np.ones((2, 2))}, r'shape \[2, 2\] for .* \[2, 3\]'),
    ({'distance': np.nan}, 'token 1 has a neighbour whose distance is NaN'),
    ({'distance': -np.inf}, 'token 1 .* NaN or -inf'),
    ({'ks': [1, 4]}, r'k of \[1, 4\], but there are 3'),
    ({'ks': [0, 1]}, r'k of \[0, 1\]'),
    ({'distance': 0.5, 'ks': [1, 3]}, 'token 1 do not come nearest first'),
  ],
)
def test_wrong_arrays(change, message):
  distances = np.arange(6.0).reshape(2, 3)
  distances[1, 1] = change.get('distance', 4.0)
  with pytest.raises(ValueError, match=message):
    knn_lm.log_probabilities(
      distances,
      change.get('values', np.zeros((2, 3), int)),
      change.get('targets', np.zeros(2, int)),
      metric=change.get('metric', 'l2'),
      temperatures=[1.0],
      ks=change.get('ks', [3]),
      weights_Txk=change.get('weights'),
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'neighbors': 0}, 'knn.neighbors=0'),
    ({'lambda_': 1.1}, 'knn.lambda=1.1'),
    ({'lambda_': math.nan}, 'knn.lambda=nan'),
    ({'temperature': 0.0}, 'knn.temperature=0.0'),
    ({'temperature': math.inf}, 'knn.temperature=inf'),
  ],
)
def test_wrong_settings(fields, message):
  with pytest.raises(ValueError, match=message):
    knn_lm.Settings(**fields)


def test_settings_are_the_section_knn():
  section = {'neighbors': 8, 'lambda': 0.5, 'temperature': 10.0, 'other': 1}
  found = knn_lm.Settings.create(section)
  assert found == knn_lm.Settings(8, 0.5, 10.0)
