"""Choosing from the pools of a batch of queries."""

import dataclasses

import numpy as np
import pytest

from configs import base
from tttnn.methods import frank_wolfe
from tttnn.methods import select
from tttnn.methods import sift


def make_batch(sizes, dim=16, seed=0):
  rng = np.random.default_rng(seed)
  queries_QxD = rng.standard_normal((len(sizes), dim)).astype(np.float32)
  vectors = [
    np.float32(query_D + rng.standard_normal((size, dim)))
    for query_D, size in zip(queries_QxD, sizes, strict=True)
  ]
  distances = [
    np.linalg.norm(vectors_MxD - query_D, axis=1)
    for query_D, vectors_MxD in zip(queries_QxD, vectors, strict=True)
  ]
  return distances, queries_QxD, vectors


def choose(settings, count, batch, seeds=None):
  return select.choose(settings, count, *batch, seeds or range(len(batch[0])))


def indices(picks):
  return [one.indices for one in picks]


def test_nearest_and_farthest_first():
  distances = [np.float32([3, 1, 2, 1]), np.float32([0.5]), np.float32([])]
  for name, expected in (
    ('knn', [[1, 3, 2], [0], []]),
    ('farthest_first', [[2, 3, 1], [0], []]),
  ):
    settings = select.Settings(name, pool=2)  # They look at no pool.
    picks = select.choose(settings, 3, distances, None, None, range(3))
    assert indices(picks) == expected
    assert all(one.remaining == [] for one in picks)


def test_random_draws_by_the_seed_alone():
  batch = make_batch([30, 30, 4, 0])
  settings = select.Settings('random', pool=30)
  picks = choose(settings, 10, batch, [[7, 1], [7, 2], [7, 1], [7, 1]])
  for one, size in zip(picks, [30, 30, 4, 0], strict=True):
    assert len(one.indices) == len({*one.indices}) == min(size, 10)
    assert {*one.indices} <= {*range(size)}
  assert picks[0] != picks[1]
  alone = choose(settings, 10, [part[1:2] for part in batch], [[7, 2]])
  assert alone == picks[1:2]
  # Fewer are the first of more.
  assert (
    choose(settings, 3, batch, [[7, 1]] * 4)[0].indices
    == (picks[0].indices[:3])
  )
  # Each is drawn about equally often, in each place.
  drawn = choose(settings, 2, make_batch([6] * 3000), range(3000))
  counts = np.zeros((2, 6))
  for one in drawn:
    counts[[0, 1], one.indices] += 1
  assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500))
  # By the raw numbers of the generator, the same on every machine.
  raw = np.random.PCG64(5).random_raw(9)
  assert choose(settings, 4, make_batch([9]), [5])[0].indices == (
    np.argsort(raw)[:4].tolist()
  )


@pytest.mark.parametrize('name', ['sift', 'frank_wolfe'])
def test_a_row_depends_on_its_query_alone(name):
  batch = make_batch([12, 20, 0, 1, 20, 7])
  settings = select.Settings(name, pool=20, lambda_=0.1)
  picks = choose(settings, 9, batch)
  assert picks == choose(settings, 9, batch)
  for i, one in enumerate(picks):
    assert choose(settings, 9, [part[i : i + 1] for part in batch]) == [one]
  assert [len(one.indices) for one in picks] == [9, 9, 0, 9, 9, 9]
  assert all(type(i) is int for one in picks for i in one.indices)


def test_what_remains():
  batch = make_batch([20, 0])
  found = sift.choose(*batch[1:], lambda_=0.01, count=6, pool=20)
  picks = choose(select.Settings('sift', pool=20), 6, batch)
  assert [(one.indices, one.remaining) for one in picks] == found
  assert [len(one.remaining) for one in picks] == [6, 0]
  found = frank_wolfe.choose(*batch[1:], count=6)
  picks = choose(select.Settings('frank_wolfe', pool=20), 6, batch)
  assert [(one.indices, one.remaining[0]) for one in picks] == found
  assert picks[1].remaining == [1.0]
  picks = choose(select.Settings('sift', pool=20), 1, batch)
  assert [len(one.indices) for one in picks] == [1, 0]


def test_sift_stops_by_its_variances():
  batch = make_batch([30] * 5, dim=400)
  whole = choose(select.Settings('sift', pool=30), 20, batch)
  kept = []
  for alpha in (0.15, 0.25, 0.5, 1.0):
    settings = select.Settings('sift', pool=30, alpha=alpha)
    for one, all_ in zip(choose(settings, 20, batch), whole, strict=True):
      sigmas = np.sqrt(all_.remaining)
      holds = sigmas <= 1 / (alpha * np.arange(1, 21))
      count = len(holds) if holds.all() else int(np.argmin(holds))
      assert one.indices == all_.indices[:count]
      assert one.remaining == all_.remaining[:count]
      kept.append(count)
  assert len({*kept}) > 3


def test_repeats_come_together():
  assert select.grouped([3, 1, 3, 2, 1, 3]) == [3, 3, 3, 1, 1, 2]
  assert select.grouped([]) == []
  batch = make_batch([6] * 4)
  plain = select.Settings('sift', pool=6, lambda_=0.5)
  before = choose(plain, 20, batch)
  after = choose(dataclasses.replace(plain, group_repeats=True), 20, batch)
  for one, other in zip(after, before, strict=True):
    assert one.remaining == other.remaining
    assert one.indices != other.indices
    first_seen = sorted({*other.indices}, key=other.indices.index)
    assert one.indices == sorted(other.indices, key=first_seen.index)


def test_settings_come_from_the_config():
  config = base.get_config()
  assert select.Settings.create(config.selection) == select.Settings()
  config.selection['lambda'] = 0.2
  config.selection.name = 'sift'
  config.selection.alpha = 0.5
  settings = select.Settings.create(config.selection)
  assert settings == select.Settings('sift', 200, 0.2, 0.5, False)


def test_who_needs_vectors():
  needs = {n for n in select.NAMES if select.Settings(n).needs_vectors}
  assert needs == {'sift', 'frank_wolfe'}


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'name': 'sfit'}, "selection.name='sfit' is not one of knn, sift"),
    ({'pool': 0}, 'selection.pool=0'),
    ({'lambda_': 0.0}, 'selection.lambda=0.0'),
    ({'lambda_': float('nan')}, 'selection.lambda=nan'),
    ({'alpha': -1.0}, 'selection.alpha=-1.0'),
    ({'alpha': 0.5}, "selection.alpha=0.5 .* selection.name='knn'"),
  ],
)
def test_wrong_settings(wrong, message):
  with pytest.raises(ValueError, match=message):
    select.Settings(**wrong)


def test_wrong_pools():
  distances, queries_QxD, vectors = make_batch([3, 5])
  settings = select.Settings('sift', pool=4)
  with pytest.raises(ValueError, match='query 1 has 5 .* selection.pool=4'):
    choose(settings, 2, (distances, queries_QxD, vectors))
  vectors[1] = vectors[1][:4]
  with pytest.raises(ValueError, match='query 1 has 5 distances and 4 vectors'):
    choose(settings, 2, (distances, queries_QxD, vectors))
  with pytest.raises(ValueError, match='0 picks'):
    choose(select.Settings(), 0, (distances, None, None))
