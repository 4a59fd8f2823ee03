import jax
import numpy as np
import pytest

from tests import index_test
from tttnn import sharding
from tttnn.datastore import device
from tttnn.datastore import device_store
from tttnn.datastore import engine

D = 8  # One for all, so that tests share compiled programs.


def make_index(vectors, *, block=70, mesh=(1, 1), **kwargs):
  blocks = (vectors[i : i + block] for i in range(0, len(vectors), block))
  mesh = sharding.make_mesh(*mesh, jax.devices()[: mesh[0] * mesh[1]])
  arguments = {'mesh': mesh, 'gather': vectors.__getitem__} | kwargs
  return device.DeviceIndex(blocks, *vectors.shape, **arguments)


def brute_force(vectors, queries, k, metric='l2'):
  vectors = vectors.astype(np.float64)
  distances, positions = [], []
  for query in np.asarray(queries, np.float64):
    if metric == 'ip':
      distance = -(vectors * query).sum(axis=1)
    else:
      distance = np.sqrt(np.square(vectors - query).sum(axis=1))
    with np.errstate(over='ignore'):
      distance = distance.astype(np.float32)
    order = sorted(range(len(vectors)), key=lambda i: (distance[i], i))[:k]
    distances.append(distance[order])
    positions.append(order)
  return np.array(distances), np.array(positions)


def check(index, vectors, queries, k, metric='l2'):
  distances, positions = index.search(queries, k)
  expected = brute_force(vectors, queries, k, metric)
  np.testing.assert_array_equal(positions, expected[1])
  np.testing.assert_array_equal(distances, expected[0])
  assert (distances.dtype, positions.dtype) == (np.float32, np.int64)


def grid(rng, rows):
  """Many duplicates and many ties."""
  return rng.integers(-1, 2, (rows, D)).astype(np.float32) * (np.arange(D) < 3)


def far(rng, rows):
  """Small differences of long vectors, which |x|^2 / 2 - qx loses."""
  return (rng.normal(size=(rows, D)) / 300 + 40).astype(np.float32)


def close(rng, rows):
  """Pairs of rows that differ in a last bit or not at all."""
  vectors = np.repeat(rng.normal(size=(-(-rows // 3), D)), 3, axis=0)[:rows]
  vectors = vectors.astype(np.float32)
  vectors[::3] = np.nextafter(vectors[::3], np.float32(9))
  return rng.permutation(vectors)


def uneven(rng, rows):
  """Norms from 1e-4 to 1e4."""
  scales = 10 ** rng.uniform(-4, 4, (rows, 1))
  return (rng.normal(size=(rows, D)) * scales).astype(np.float32)


def usual(rng, rows):
  return rng.normal(size=(rows, D)).astype(np.float32)


MAKERS = [grid, far, close, uneven, usual]


@pytest.fixture(params=[64, 1 << 12])
def block_rows(request, monkeypatch):
  monkeypatch.setattr(device, '_BLOCK_ROWS', request.param)
  return request.param


@pytest.mark.parametrize('make', MAKERS)
@pytest.mark.parametrize(
  'stored, dtype',
  [
    ('float32', 'float32'),
    ('float32', 'bfloat16'),
    ('float32', 'float16'),
    ('float16', 'float32'),
    ('float16', 'float16'),
  ],
)
@pytest.mark.parametrize('metric', ['l2', 'ip'])
def test_equals_brute_force(make, stored, dtype, metric, monkeypatch):
  monkeypatch.setattr(device, '_BLOCK_ROWS', 64)
  rng = np.random.default_rng(0)
  vectors = make(rng, 1003).astype(stored)
  queries = make(rng, 6)
  queries[1] = vectors[500]
  queries[2] = 0
  for mesh in ((1, 1), (2, 3)):
    index = make_index(vectors, mesh=mesh, dtype=dtype, metric=metric)
    assert index.exact and index.count == 1003
    for k in (20, 1003):
      check(index, vectors, queries, k, metric)


def test_scores_alone_would_not_do():
  rng = np.random.default_rng(0)
  vectors, queries = far(rng, 200), far(rng, 25)
  scores = np.square(vectors).sum(axis=1) / 2 - queries @ vectors.T
  order = np.argsort(scores, axis=1, kind='stable')[:, :20]
  assert (order == brute_force(vectors, queries, 20)[1]).mean() < 0.5


@pytest.mark.parametrize('make', [grid, far, close])
def test_same_bits_for_any_batch_mesh_and_dtype(make):
  rng = np.random.default_rng(1)
  vectors, queries = make(rng, 2000), make(rng, 67)
  expected = make_index(vectors).search(queries, 9)
  for mesh, dtype in (
    ((1, 1), 'bfloat16'),
    ((2, 2), 'float16'),
    ((8, 1), 'float32'),
  ):
    index = make_index(vectors, mesh=mesh, dtype=dtype, block=999)
    for size in (1, 33):
      for begin in range(0, len(queries) if size > 1 else 3, size):
        part = slice(begin, begin + size)
        found = index.search(queries[part], 9)
        np.testing.assert_array_equal(found[0], expected[0][part])
        np.testing.assert_array_equal(found[1], expected[1][part])


@pytest.mark.parametrize('rows', [1, 7, 64, 65, 513])
def test_few_rows_on_many_devices(rows, block_rows):
  rng = np.random.default_rng(2)
  vectors, queries = close(rng, rows), close(rng, 3)
  for mesh in ((1, 1), (8, 1)):
    index = make_index(vectors, mesh=mesh)
    for k in {1, min(5, rows), rows}:
      check(index, vectors, queries, k)


def test_many_queries_go_in_parts(monkeypatch):
  monkeypatch.setattr(device, '_BATCHES', (1, 4))
  rng = np.random.default_rng(3)
  vectors, queries = usual(rng, 300), usual(rng, 11)
  check(make_index(vectors), vectors, queries, 5)
  # Memory for the scores of one query only.
  monkeypatch.setattr(device, '_SCORES_BYTES', 1500)
  check(make_index(vectors), vectors, queries, 5)


def test_thousands_of_equal_vectors():
  vectors = np.tile(usual(np.random.default_rng(4), 1), (20_000, 1))
  vectors[1234] += 1
  index = make_index(vectors, mesh=(4, 1), block=5000)
  distances, positions = index.search(vectors[:1], 3)
  assert positions.tolist() == [[0, 1, 2]] and not distances.any()
  distances, positions = index.search(vectors[1233:1235], 3)
  assert positions.tolist() == [[0, 1, 2], [1234, 0, 1]]


@pytest.mark.parametrize('metric', ['l2', 'ip'])
@pytest.mark.parametrize('scale', [1e-42, 1e-30, 1e-19, 1e12, 1e19, 1e37])
def test_the_ends_of_float32(scale, metric):
  rng = np.random.default_rng(5)
  vectors = (rng.normal(size=(500, D)) * scale).astype(np.float32)
  vectors[300:310] = vectors[:10]
  queries = np.concatenate([vectors[:2], np.ones((1, D), np.float32)])
  for mesh in ((1, 1), (8, 1)):
    index = make_index(vectors, mesh=mesh, metric=metric)
    with np.errstate(over='ignore'):
      check(index, vectors, queries, 12, metric)


@pytest.mark.parametrize('metric', ['l2', 'ip'])
def test_scores_beyond_float32(metric):
  rng = np.random.default_rng(5)
  vectors = usual(rng, 500)
  vectors[100:110] = 3e19 * (1 + vectors[100:110] / 9)  # Near each other.
  queries = np.concatenate([vectors[[100, 109, 0]], -vectors[[100, 0]]])
  for mesh in ((1, 1), (8, 1)):
    index = make_index(vectors, mesh=mesh, metric=metric)
    with np.errstate(over='ignore'):
      check(index, vectors, queries, 12, metric)


def test_numbers_too_small_for_float16():
  rng = np.random.default_rng(6)
  vectors = usual(rng, 400)
  vectors[::2] *= 1e-9
  index = make_index(vectors, dtype='float16')
  check(index, vectors, usual(rng, 4), 30)


@pytest.mark.parametrize('mesh', [(1, 1), (8, 1)])
def test_approximate_ranks_exactly_what_it_finds(mesh):
  rng = np.random.default_rng(7)
  vectors, queries = usual(rng, 1000), usual(rng, 9)
  index = make_index(vectors, mesh=mesh, approximate=True)
  assert not index.exact
  check(index, vectors, queries, 10)  # On CPU, approx_min_k searches all.
  assert index.recall(queries, 10) == 1


@pytest.fixture
def fresh_programs():
  jax.clear_caches()
  yield
  jax.clear_caches()


def test_recall_is_measured(monkeypatch, fresh_programs):
  rng = np.random.default_rng(8)
  vectors, queries = usual(rng, 1000), usual(rng, 9)

  def half(scores, k, **kwargs):
    scores = scores.at[:, ::2].set(1e9)
    return device._top(scores, k)

  monkeypatch.setattr(jax.lax, 'approx_min_k', half)
  index = make_index(vectors, mesh=(2, 1))
  nearest = brute_force(vectors, queries, 13)[1]
  assert index.recall(queries, 13) == np.mean(nearest % 2 == 1) < 0.7


@pytest.mark.parametrize(
  'queries, k, message',
  [
    (np.zeros((2, D)), 11, '11 neighbours asked of .* 10 searchable'),
    (np.zeros((2, D)), 0, '0 neighbours asked'),
    (np.zeros((2, 5)), 1, r'shape \[2, 5\] for a store of dim 8'),
    (np.zeros(8), 1, r'shape \[8\] for a store of dim 8'),
    ([[0] * D, [0, np.nan] * 4], 1, 'query 1 of 2 is not finite'),
  ],
)
def test_wrong_queries(queries, k, message):
  index = make_index(far(np.random.default_rng(0), 10))
  with pytest.raises(ValueError, match=message):
    index.search(queries, k)
  assert index.search(np.zeros((0, D)), 3)[1].shape == (0, 3)


@pytest.mark.parametrize(
  'shape, change, kwargs, message',
  [
    ((20, 3), {}, {'count': 21}, '20 vectors, not 21'),
    ((20, 3), {}, {'count': 19}, '20 vectors or more, not 19'),
    ((64, 3), {}, {'count': 0}, '0 vectors; there must be one'),
    ((128, 3), {}, {'count': 64}, 'vectors or more, not 64'),
    ((20, 3), {}, {'dim': 4}, r'vectors \[7, 3\], not of dim 4'),
    ((20, 3), {15: np.nan}, {}, 'vector 15 of 20 is not finite'),
    ((20, 3), {15: 7e4}, {'dtype': 'float16'}, '70000.0 in .* ends at 65504'),
    ((20, 3), {}, {'dtype': 'int8'}, "dtype='int8' is not one of float32, b"),
    ((20, 3), {}, {'metric': 'cos'}, "metric='cos' is not one of l2, ip"),
  ],
)
def test_wrong_vectors(shape, change, kwargs, message):
  vectors = np.zeros(shape, np.float32)
  for row, value in change.items():
    vectors[row] = value
  arguments = {'count': shape[0], 'dim': shape[1]} | kwargs
  blocks = (vectors[i : i + 7] for i in range(0, len(vectors), 7))
  with pytest.raises(ValueError, match=message):
    device.DeviceIndex(blocks, **arguments, gather=vectors.__getitem__)


@pytest.mark.parametrize('metric', ['l2', 'ip', 'cosine'])
@pytest.mark.parametrize('kept', [True, False])
def test_a_store_answers_as_its_host_does(tmp_path, metric, kept):
  rng = np.random.default_rng(0)
  shards = [index_test.spoiled(rng, rows) for rows in (70, 5, 60)]
  shards.insert(1, np.zeros((0, 3), np.float32))
  store = index_test.build_store(
    tmp_path, shards, metric=metric, keep_vectors=kept, block=16
  )
  here = engine.Engine(store, threads=1)
  there = device_store.StoreIndex(store)
  queries = index_test.usual(rng, 9)[:, :3]
  for k in (1, 7, store.manifest.searchable):
    for found, expected in zip(
      there.search(queries, k), here.search(queries, k), strict=True
    ):
      np.testing.assert_array_equal(found, expected)
      assert found.dtype == expected.dtype
  assert there.info['exact'] and 'recall' not in there.info
  assert there.info['manifest'] == store.fingerprint()
  with pytest.raises(ValueError, match='embedder  of dim 3, but .* me of dim'):
    there.check('me', 3)


def test_what_is_approximate_says_how_much_it_finds(tmp_path):
  store = index_test.build_store(
    tmp_path, [index_test.usual(np.random.default_rng(0), 300)]
  )
  found = device_store.StoreIndex(store, approximate=True, dtype='float16')
  assert not found.info['exact'] and found.info['recall'] > 0.99
