"""K-means against faiss and NumPy, on one device and on eight."""

import faiss
import jax
import numpy as np
import pytest

from tttnn import sharding
from tttnn.datastore import kmeans


def clustered(rows=4000, dim=24, clusters=60, seed=0):
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(clusters, dim))
  of = rng.integers(0, clusters, rows)
  vectors = centers[of] + 0.4 * rng.normal(size=(rows, dim))
  return vectors.astype(np.float32)


def distances(vectors, centroids):
  """Squared, [N, C], in float64 and as differences."""
  away = vectors[:, None].astype(np.float64) - centroids[None]
  return np.square(away).sum(axis=2)


def error(vectors, centroids):
  return distances(vectors, centroids).min(axis=1).mean()


def mesh_of(devices):
  return sharding.make_mesh(devices, 1, jax.devices()[:devices])


def test_as_good_as_faiss():
  faiss.omp_set_num_threads(1)
  vectors = clustered()
  ours, theirs = [], []
  for seed in range(4):
    centroids = kmeans.train(vectors, 50, iterations=10, seed=seed)
    assert centroids.dtype == np.float32 and centroids.shape == (50, 24)
    ours.append(error(vectors, centroids))
    other = faiss.Kmeans(24, 50, niter=10, seed=seed + 1)
    other.train(vectors)
    theirs.append(error(vectors, other.centroids))
  # Of random centroids it is far more, so that training shows.
  assert error(vectors, vectors[:50]) > 1.3 * np.mean(theirs)
  assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_an_iteration_is_lloyds():
  vectors = clustered(300, 5, 8)
  first = np.sort(np.random.default_rng(3).choice(300, 6, replace=False))
  nearest = distances(vectors, vectors[first]).argmin(axis=1)
  expected = np.stack([vectors[nearest == c].mean(axis=0) for c in range(6)])
  found = kmeans.train(vectors, 6, iterations=1, seed=3)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('metric', kmeans.METRICS)
def test_the_same_again_and_on_eight_devices(metric):
  vectors = clustered(3001)
  options = {'iterations': 8, 'seed': 5, 'metric': metric}
  one = kmeans.train(vectors, 40, **options)
  np.testing.assert_array_equal(kmeans.train(vectors, 40, **options), one)
  eight = kmeans.train(vectors, 40, mesh=mesh_of(8), **options)
  np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
  other = kmeans.train(vectors, 40, **options | {'seed': 6})
  assert np.abs(other - one).max() > 0.1
  lists = kmeans.assign(vectors, one, metric=metric)
  on_eight = kmeans.assign(vectors, one, metric=metric, mesh=mesh_of(8))
  np.testing.assert_array_equal(on_eight, lists)


def copies(rng):
  """Nine in ten vectors are the same one."""
  vectors = rng.normal(size=(2000, 8))
  vectors[:1800] = vectors[0]
  return vectors


def outliers(rng):
  """One heap, and few vectors far away of it in different scales."""
  vectors = rng.normal(size=(2000, 8)) * 1e-3
  vectors[:12] *= np.logspace(3, 8, 12)[:, None]
  return vectors


def levels(rng):
  """As many different vectors as lists, in very different numbers."""
  return np.repeat(np.eye(32) * 7, np.r_[np.full(31, 1), 969], axis=0)


@pytest.mark.parametrize('make', [copies, outliers, levels])
@pytest.mark.parametrize('seed', range(3))
def test_no_list_stays_empty(make, seed):
  vectors = make(np.random.default_rng(seed)).astype(np.float32)
  centroids = kmeans.train(vectors, 32, iterations=20, seed=seed)
  lists = kmeans.assign(vectors, centroids)
  assert np.bincount(lists, minlength=32).min() > 0


def test_fewer_different_vectors_than_lists():
  vectors = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
  centroids = kmeans.train(vectors, 8, iterations=3, seed=0)
  assert np.isfinite(centroids).all()
  assert error(vectors, centroids) == 0


@pytest.mark.parametrize('metric', kmeans.METRICS)
@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('rows', [0, 1, 127, 5000])
def test_assignments_are_the_nearest(metric, devices, rows, monkeypatch):
  monkeypatch.setattr(kmeans, '_MOST_ROWS', 128)
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(rows, 16)).astype(np.float32)
  centroids = rng.normal(size=(37, 16)).astype(np.float32)
  found = kmeans.assign(
    vectors, centroids, metric=metric, mesh=mesh_of(devices)
  )
  score = distances(vectors, centroids)
  if metric == 'ip':
    score = -vectors.astype(np.float64) @ centroids.T
  assert found.dtype == np.int64
  np.testing.assert_array_equal(found, score.argmin(axis=1))


def test_equal_centroids_give_the_lower_one():
  centroids = np.ones((5, 3), np.float32)
  assert kmeans.assign(centroids, centroids).tolist() == [0] * 5


def test_blocks_of_all_sizes_share_a_program():
  centroids = kmeans.place(clustered(11, 7))
  kmeans.assign(clustered(3, 7), centroids)
  programs = kmeans._nearest_of_block._cache_size()
  for rows in (1, 50, 4096, 5000):
    kmeans.assign(clustered(rows, 7), centroids)
  assert kmeans._nearest_of_block._cache_size() == programs


def test_spherical_centroids_have_norm_1():
  vectors = clustered()
  vectors *= np.random.default_rng(0).uniform(0.1, 10, (len(vectors), 1))
  centroids = kmeans.train(vectors, 30, iterations=8, seed=0, metric='ip')
  np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  first = unit[:30]
  assert (unit @ centroids.T).max(1).mean() > (unit @ first.T).max(1).mean()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'lists': 11}, r'11 lists of a sample of shape \[10, 4\]'),
    ({'lists': 0}, '0 lists'),
    ({'iterations': 0}, '0 iterations'),
    ({'metric': 'cosine'}, "'cosine' is not l2 or ip"),
    ({'bad': 3}, 'vector 3 of the sample is not finite'),
  ],
)
def test_wrong_arguments(change, message):
  vectors = np.ones((10, 4), np.float32)
  options = {'lists': 2, 'iterations': 1, 'metric': 'l2'} | change
  if 'bad' in options:
    vectors[options.pop('bad'), 1] = np.nan
  with pytest.raises(ValueError, match=message):
    kmeans.train(vectors, options.pop('lists'), seed=0, **options)
  with pytest.raises(ValueError, match=r'shape \[2, 3\] for .* \[10, 4\]'):
    kmeans.assign(np.ones((2, 3)), np.ones((10, 4)))
