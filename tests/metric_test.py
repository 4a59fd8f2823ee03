"""Metrics of a store, from vectors to answers."""

import numpy as np
import pytest

from tests import index_test
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import metric as metric_lib


def brute_force(metric, vectors, queries, k):
  """By a loop over all pairs."""
  vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
  distances, ids = [], []
  for query in queries:
    if metric == 'ip':
      found = [(-np.sum(query * x), i) for i, x in enumerate(vectors)]
    else:
      unit = query / np.linalg.norm(query)
      found = [
        (1 - np.sum(unit * x / np.linalg.norm(x)), i)
        for i, x in enumerate(vectors)
      ]
    found = sorted(found)[:k]
    distances.append([distance for distance, _ in found])
    ids.append([id_ for _, id_ in found])
  return np.array(distances), np.array(ids)


@pytest.mark.parametrize('metric', ['ip', 'cosine'])
@pytest.mark.parametrize('spec', ['Flat', 'IVF4,Flat;nprobe=4', 'SQ8'])
def test_the_most_alike_come_first(tmp_path, metric, spec):
  rng = np.random.default_rng(0)
  # Of different lengths, which count for `ip` alone.
  vectors = index_test.usual(rng, 60) * rng.uniform(0.1, 9, (60, 1))
  vectors = vectors.astype(np.float32)
  store = index_test.build_store(
    tmp_path, [vectors[:40], vectors[40:]], index=spec, metric=metric
  )
  engine = engine_lib.Engine(store, threads=1)
  queries = index_test.usual(rng, 8)
  distances, ids = engine.search(queries, 12)
  expected = brute_force(metric, vectors, queries, 12)
  assert ids.tolist() == expected[1].tolist()
  np.testing.assert_allclose(distances, expected[0], atol=1e-5)
  assert (np.diff(distances, axis=1) >= 0).all()
  for part in (slice(0, 1), slice(3, 7)):
    np.testing.assert_array_equal(
      engine.search(queries[part], 12)[0], distances[part]
    )


def test_ties_of_products_go_to_the_lower_id(tmp_path):
  vectors = np.tile(index_test.usual(np.random.default_rng(0), 1), (500, 1))
  store = index_test.build_store(tmp_path, [vectors], metric='ip')
  engine = engine_lib.Engine(store, threads=1)
  assert engine.search(vectors[:1], 4)[1].tolist() == [[0, 1, 2, 3]]


def test_products_that_float32_cannot_tell_apart(tmp_path):
  rng = np.random.default_rng(0)
  vectors = index_test.far(rng, 300)
  store = index_test.build_store(tmp_path, [vectors], metric='ip')
  engine = engine_lib.Engine(store, threads=1)
  queries = index_test.far(rng, 10)
  _, ids = engine.search(queries, 5)
  products = queries.astype(np.float64) @ vectors.astype(np.float64).T
  # Ties of the rounded distances aside.
  for q in range(10):
    best = np.sort(products[q])[-5].astype(np.float32)
    assert (products[q][ids[q]].astype(np.float32) >= best).all()


def test_a_vector_without_direction_is_left_out(tmp_path):
  vectors = index_test.usual(np.random.default_rng(0), 20)
  vectors[4] = 0
  store = index_test.build_store(tmp_path, [vectors], metric='cosine')
  assert store.manifest.shards[0].left_out == (4,)
  engine = engine_lib.Engine(store, threads=1)
  with pytest.raises(ValueError, match='query 0 of 1 has no direction'):
    engine.search(np.zeros((1, 6)), 3)


def test_unknown_metrics():
  with pytest.raises(ValueError, match="metric='l1' is not one of l2, ip"):
    metric_lib.check('l1')
