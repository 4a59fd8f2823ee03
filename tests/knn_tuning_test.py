"""Sweeps and bins against the same, one setting and token at a time."""

import math

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tttnn.methods import knn_lm
from tttnn.methods import knn_tuning

LAMBDAS = [0.0, 0.25, 1.0, 0.9]


def make(seed, metric='l2', weighted=False, tokens=31, k=8):
  rng = np.random.default_rng(seed)
  low = 0 if metric == 'l2' else -3
  distances = np.sort(rng.uniform(low, 3, (tokens, k)).astype(np.float32), 1)
  ids = rng.integers(0, 1000, (tokens, k))
  for row in range(0, tokens, 3):
    distances[row, rng.integers(0, k) :] = np.inf
  distances[4] = np.inf
  ids[np.isinf(distances)] = -1
  values = np.where(ids >= 0, rng.integers(0, 4, (tokens, k)), -1)
  return knn_tuning.Cache(
    metric=metric,
    ids_Txk=ids,
    distances_Txk=distances,
    values_Txk=values.astype(np.int32),
    log_p_lm_T=np.log(rng.uniform(0.01, 1, tokens)),
    targets_T=rng.integers(0, 4, tokens),
    offsets=np.array([0, 5, 5, tokens]),
    weights_Txk=rng.integers(1, 4, (tokens, k)) if weighted else None,
  )


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('metric', ['l2', 'ip'])
def test_a_sweep_is_each_setting_by_itself(metric, weighted, monkeypatch):
  monkeypatch.setattr(knn_tuning, '_ROWS', 7)
  cache = make(0, metric, weighted)
  temperatures, ks = [0.7, 20.0, 3.0], [8, 1, 5]
  found = knn_tuning.sweep(cache, LAMBDAS, temperatures, ks)
  assert found.shape == (4, 3, 3)
  for place in np.ndindex(found.shape):
    lambda_, temperature, k = (
      values[i]
      for values, i in zip((LAMBDAS, temperatures, ks), place, strict=True)
    )
    total = 0.0
    for token in range(31):
      row = slice(token, token + 1)
      log_p_knn = knn_lm.log_probability(
        cache.distances_Txk[row, :k],
        cache.values_Txk[row, :k],
        cache.targets_T[row],
        metric=metric,
        temperature=temperature,
        weights_Txk=cache.weights_Txk[row, :k] if weighted else None,
      )
      log_p_lm = cache.log_p_lm_T[row]
      total += knn_lm.interpolate(log_p_lm, log_p_knn, lambda_).item()
    assert found[place] == pytest.approx(total, rel=1e-12)
  np.testing.assert_allclose(found[0], cache.log_p_lm_T.sum(), rtol=1e-12)
  assert np.isneginf(found[2]).all()  # Some tokens no neighbour has.
  with pytest.raises(ValueError, match=r'knn.lambda=1.5'):
    knn_tuning.sweep(cache, [0.5, 1.5], [1.0], [1])
  with pytest.raises(ValueError, match='k of .*9.* there are 8 neighbours'):
    knn_tuning.sweep(cache, [0.5], [1.0], [9])


@pytest.mark.parametrize('weighted', [False, True])
def test_a_cache_is_read_as_it_was_written(tmp_path, weighted):
  cache = make(1, 'ip', weighted)
  path = str(tmp_path / 'cache.npz')
  cache.save(path)
  found = knn_tuning.Cache.load(path)
  assert found.metric == 'ip'
  assert (found.weights_Txk is not None) == weighted
  for name, array in vars(cache).items():
    if name != 'metric' and array is not None:
      np.testing.assert_array_equal(getattr(found, name), array)
      assert getattr(found, name).dtype == array.dtype
  np.savez(path, metric='l2', ids_Txk=np.zeros((1, 1)))
  with pytest.raises(ValueError, match='cache.npz holds .*ids_Txk'):
    knn_tuning.Cache.load(path)


def test_a_cache_whose_arrays_disagree():
  fields = vars(make(0))
  for name in ('values_Txk', 'targets_T'):
    with pytest.raises(ValueError, match=f'{name} has shape .*30'):
      knn_tuning.Cache(**fields | {name: fields[name][:-1]})
  for offsets in ([0, 30], [1, 31], [0, 9, 5, 31]):
    with pytest.raises(ValueError, match='offsets from'):
      knn_tuning.Cache(**fields | {'offsets': np.array(offsets)})


def test_a_grid_is_what_the_keys_say():
  section = {'lambda': 0.25, 'temperature': 2.0, 'neighbors': 64}
  section |= {'lambdas': '', 'temperatures': '', 'ks': ''}
  plain = knn_tuning.Grid.create(section)
  assert plain == knn_tuning.Grid((0.25,), (2.0,), (64,))
  section |= {'lambdas': '0.5, 0.1,0.5', 'ks': '16,4'}
  grid = knn_tuning.Grid.create(section)
  assert grid == knn_tuning.Grid((0.1, 0.5), (2.0,), (4, 16))
  with pytest.raises(ValueError, match="lambdas='a' is no list of numbers"):
    knn_tuning.Grid.create(section | {'lambdas': 'a'})
  with pytest.raises(ValueError, match='there are no ks to choose from'):
    knn_tuning.Grid((0.1,), (1.0,), ())


def test_the_best_of_a_grid_is_the_smallest_of_equal_ones():
  grid = knn_tuning.Grid((0.1, 0.2), (1.0, 3.0), (4, 8))
  nats = np.full((2, 2, 2), -math.inf)
  nats[0, 0, 0] = math.nan
  nats[1, 0, 1] = nats[1, 1, 0] = -3.0
  assert grid.best(nats) == knn_lm.Settings(8, 0.2, 1.0)
  nats[0, 1, 1] = -2.0
  assert grid.best(nats) == knn_lm.Settings(8, 0.1, 3.0)


def test_bins_are_read_as_they_were_written():
  edges = np.array([-1.5, 1 / 3, 1e9], np.float32)
  bins = knn_tuning.Bins(edges, np.array([0.1, 0.0, 0.7, 1.0]))
  assert bins.text.startswith('-inf:0.1,-1.5:0.0,0.333333')
  found = knn_tuning.Bins.parse(bins.text)
  np.testing.assert_array_equal(found.edges, edges)
  np.testing.assert_array_equal(found.lambdas, bins.lambdas)
  nearest = np.array([-2, -1.5, 1 / 3, 1e9, np.inf], np.float32)
  assert found.lambda_of(nearest).tolist() == [0.1, 0.0, 0.7, 1.0, 0.0]
  for text, message in (
    ('0.4', 'is not distances and lambdas'),
    ('-inf:0.1,x:0.2', 'is not distances and lambdas'),
    ('1.0:0.1', 'do not ascend from -inf'),
    ('-inf:0.1,2.0:0.1,2.0:0.3', 'do not ascend from -inf'),
    ('-inf:1.1', 'knn.lambda=1.1 is not from 0 to 1'),
  ):
    with pytest.raises(ValueError, match=message):
      knn_tuning.Bins.parse(text)


def test_the_nearest_neighbour_that_is_there():
  distances = np.array([[3.0, 1.0], [2.0, np.inf], [5.0, 6.0]], np.float32)
  values = np.array([[7, -1], [7, -1], [-1, -1]])
  found = knn_tuning.nearest(distances, values)
  assert found.tolist() == [3.0, 2.0, math.inf]


@hypothesis.given(
  strategies.integers(0, 2**32 - 1),
  strategies.integers(1, 6),
  strategies.sampled_from([2, 5, 1000]),
)
def test_each_bin_has_the_lambda_that_is_best_for_it(seed, bins, distinct):
  rng = np.random.default_rng(seed)
  nearest = rng.integers(0, distinct, 40).astype(np.float32)
  nearest[rng.random(40) < 0.2] = np.inf
  nearest[0] = 1
  log_p_lm = np.log(rng.uniform(0.01, 1, 40))
  log_p_knn = np.log(rng.uniform(0.01, 1, 40))
  log_p_knn[rng.random(40) < 0.1] = -np.inf
  log_p_knn[np.isinf(nearest)] = np.nan
  found = knn_tuning.fit_bins(
    nearest, log_p_lm, log_p_knn, bins=bins, lambdas=LAMBDAS
  )
  assert 1 <= len(found.lambdas) == len(found.edges) + 1 <= bins
  given = found.lambda_of(nearest)
  there = np.flatnonzero(np.isfinite(nearest))
  low = [-math.inf, *found.edges]
  high = [*found.edges, math.inf]
  sizes = []
  for begin, end, lambda_ in zip(low, high, found.lambdas, strict=True):
    tokens = [t for t in there if begin <= nearest[t] < end]
    sizes.append(len(tokens))
    totals = {
      one: sum(
        knn_lm.interpolate(log_p_lm[t], log_p_knn[t], one) for t in tokens
      )
      for one in sorted(LAMBDAS)
    }
    assert lambda_ == max(totals, key=totals.get)
    assert (given[tokens] == lambda_).all()
  assert min(sizes) > 0
  if len(set(nearest[there])) == len(there):  # No ties: of about equal size.
    assert len(sizes) == min(bins, len(there)) and max(sizes) - min(sizes) < 3
  assert (given[np.isinf(nearest)] == 0).all()


def test_bins_beat_one_lambda_where_distance_tells():
  # Near neighbours are right, far ones wrong.
  nearest = np.linspace(0, 1, 100)
  log_p_lm = np.full(100, math.log(0.3))
  log_p_knn = np.where(nearest < 0.5, math.log(0.8), math.log(0.01))
  bins = knn_tuning.fit_bins(
    nearest, log_p_lm, log_p_knn, bins=4, lambdas=[1.0, 0.5, 0.0]
  )
  assert bins.lambdas.tolist() == [1, 1, 0, 0]
  assert bins.lambda_of(np.array([-5.0, 0.1, 7.0, np.inf])).tolist() == [
    1.0,
    1.0,
    0.0,
    0.0,
  ]


def test_wrong_bins():
  one = np.zeros(1)
  with pytest.raises(ValueError, match='0 bins'):
    knn_tuning.fit_bins(one, one, one, bins=0, lambdas=[0.5])
  with pytest.raises(ValueError, match='0 lambdas'):
    knn_tuning.fit_bins(one, one, one, bins=1, lambdas=[])
  with pytest.raises(ValueError, match='none of 1 tokens has a neighbour'):
    knn_tuning.fit_bins(one + np.inf, one, one, bins=1, lambdas=[0.5])
