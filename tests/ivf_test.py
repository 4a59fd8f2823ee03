"""Indexes of our centroids and assignments against those faiss makes alone."""

import gc

import faiss
from faiss.contrib import ivf_tools
import jax
import numpy as np
import pytest

from tests import index_test
from tests import kmeans_test
from tttnn import sharding
from tttnn.datastore import engine
from tttnn.datastore import index as index_lib
from tttnn.datastore import ivf

DIM, ROWS = 32, 6000


@pytest.fixture(autouse=True)
def one_thread():
  faiss.omp_set_num_threads(1)


def blocks(vectors, ids=None, size=1000):
  """In blocks whose arrays nobody else keeps."""
  ids = np.arange(len(vectors)) if ids is None else ids
  for begin in range(0, len(vectors), size):
    yield ids[begin : begin + size].copy(), vectors[begin : begin + size].copy()
    gc.collect()


def create(spec, metric):
  """An index that trains in seconds."""
  index = faiss.index_factory(DIM, spec, metric)
  inner = faiss.downcast_index(faiss.extract_index_ivf(index))
  if hasattr(inner, 'do_polysemous_training'):
    inner.do_polysemous_training = False
  if spec.startswith('OPQ'):
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    transform.niter = 4
  return index


def recall(index, queries, expected, k=10):
  faiss.extract_index_ivf(index).nprobe = 8
  found = index.search(queries, k)[1]
  hits = [len(set(f) & set(e)) for f, e in zip(found, expected, strict=True)]
  return np.mean(hits) / k


@pytest.mark.parametrize(
  ('spec', 'metric'),
  [
    ('IVF64,Flat', faiss.METRIC_L2),
    ('IVF64,Flat', faiss.METRIC_INNER_PRODUCT),
    ('IVF64,SQ8', faiss.METRIC_L2),
    ('IVF64,RaBitQ', faiss.METRIC_L2),
    ('PCA16,IVF64,Flat', faiss.METRIC_L2),
    ('IVF64_HNSW8,Flat', faiss.METRIC_L2),
    pytest.param('OPQ16,IVF64,PQ16', faiss.METRIC_L2, marks=pytest.mark.slow),
  ],
)
def test_finds_what_faiss_finds(spec, metric):
  vectors = kmeans_test.clustered(ROWS, DIM, 100)
  queries = kmeans_test.clustered(ROWS + 300, DIM, 100)[-300:]
  flat = faiss.IndexFlat(DIM, metric)
  flat.add(vectors)
  expected = flat.search(queries, 10)[1]
  theirs, ours = (create(spec, metric) for _ in range(2))
  theirs.train(vectors)
  theirs.add(vectors)
  centroids = ivf.train(ours, vectors, iterations=10, seed=0)
  ivf.fill(ours, blocks(vectors))
  assert ours.is_trained and ours.ntotal == ROWS
  inner = faiss.extract_index_ivf(ours)
  kept = inner.quantizer.reconstruct_n(0, 64)
  np.testing.assert_array_equal(kept, centroids)
  np.testing.assert_array_equal(
    np.sort(index_lib.stored_ids(ours)), np.arange(ROWS)
  )
  found = recall(ours, queries, expected)
  assert found > 0.3
  assert found > recall(theirs, queries, expected) - 0.02
  # Written and read, it is an index as any other.
  again = faiss.deserialize_index(faiss.serialize_index(ours))
  assert recall(again, queries, expected) == found


def test_ids_and_meshes():
  vectors = kmeans_test.clustered(ROWS, DIM, 100)
  ids = np.random.default_rng(0).permutation(10 * ROWS)[:ROWS]
  mesh = sharding.make_mesh(8, 1, jax.devices())
  index = faiss.index_factory(DIM, 'IVF16,Flat')
  ivf.train(index, vectors, iterations=3, seed=0, mesh=mesh)
  # Of another integer type, so that a converted copy is what faiss reads.
  ivf.fill(index, blocks(vectors, ids.astype(np.int32)), mesh=mesh)
  faiss.extract_index_ivf(index).nprobe = 16
  found = index.search(vectors[:100], 1)[1][:, 0]
  np.testing.assert_array_equal(found, ids[:100])
  # Each vector is in the list where faiss looks for it.
  inner = faiss.extract_index_ivf(index)
  inner.nprobe = 1
  alone = index.search(vectors, 1)[1][:, 0]
  assert np.mean(alone == ids) > 0.999


def small():
  vectors = kmeans_test.clustered(500, 8, 10)
  index = faiss.index_factory(8, 'IVF4,Flat')
  ivf.train(index, vectors, iterations=2, seed=0)
  return index, vectors


def test_wrong_ids_are_noticed(monkeypatch):
  index, vectors = small()
  add = ivf_tools.add_preassigned

  def tampered(index, vectors, lists, ids):
    ids = ids.copy()
    ids[7] = 12345
    add(index, vectors, lists, ids)

  monkeypatch.setattr(ivf_tools, 'add_preassigned', tampered)
  with pytest.raises(ValueError, match='were not added: 8 in place of 7'):
    ivf.fill(index, blocks(vectors))


def test_verify():
  index, vectors = small()
  ivf.fill(index, blocks(vectors))
  index_lib.verify(index, np.arange(500)[::-1])
  with pytest.raises(ValueError, match='stores 500 ids, 499 were added'):
    index_lib.verify(index, np.arange(499))
  lists = index.invlists
  code = np.zeros(lists.code_size, np.uint8)
  lists.update_entry(0, 0, 999, faiss.swig_ptr(code))
  with pytest.raises(ValueError, match='999 in place of 499|not added'):
    index_lib.verify(index, np.arange(500))


def test_other_indexes_are_refused():
  vectors = kmeans_test.clustered(500, 8, 10)
  for spec in ('Flat', 'IVF4,PQ4x4fs', 'IVF4,Flat,RFlat'):
    with pytest.raises(ValueError, match='does not take vectors list by list'):
      ivf.train(faiss.index_factory(8, spec), vectors, iterations=1, seed=0)
  index, _ = small()
  with pytest.raises(ValueError, match='has 4 centroids already'):
    ivf.train(index, vectors, iterations=1, seed=0)
  with pytest.raises(ValueError, match='3 ids for 500 vectors'):
    ivf.fill(index, [(np.arange(3), vectors)])
  ivf.fill(index, blocks(vectors))
  with pytest.raises(ValueError, match='holds 500 vectors and is trained'):
    ivf.fill(index, blocks(vectors))
  with pytest.raises(ValueError, match='holds 0 vectors and is not trained'):
    ivf.fill(faiss.index_factory(8, 'IVF4,Flat'), [])


def test_a_store_whose_lists_are_made_on_the_device(tmp_path):
  rng = np.random.default_rng(0)
  shards = [index_test.usual(rng, 200), index_test.usual(rng, 90)]
  shards[0][3] = np.nan
  arguments = {'filler': ivf.OnDevice(0)}
  with pytest.raises(ValueError, match='does not take vectors list by list'):
    index_test.build_store(tmp_path, shards, index='SQ8', **arguments)
  store = index_test.build_store(
    tmp_path, shards, index='IVF4,Flat;nprobe=4', **arguments
  )
  found = engine.Engine(store, threads=1).search(shards[1][:9], 5)
  expected = index_test.brute_force(np.concatenate(shards), shards[1][:9], 5)
  np.testing.assert_array_equal(found[1], expected[1])
