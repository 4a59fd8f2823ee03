import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from tttnn.datastore import build
from tttnn.datastore import index as index_lib


def build_store(directory, shards, **kwargs):
  """A store whose vectors are those of `shards`, a list of [rows, D]."""
  vectors = np.concatenate(shards).astype(np.float32)
  paths = []
  number = 0
  for i, shard in enumerate(shards):
    path = directory / f'{i}.jsonl'
    with open(path, 'w') as f:
      for _ in shard:
        f.write(json.dumps({'text': str(number)}) + '\n')
        number += 1
    paths.append(str(path))

  def embed(texts):
    return vectors[[int(text) for text in texts]]

  arguments = {'dim': vectors.shape[1], 'fingerprint': '', 'threads': 1}
  return build.build(directory / 's', paths, embed, **arguments | kwargs)


def brute_force(vectors, queries, k):
  """By a plain loop over all rows; those that are not finite do not count."""
  rows = [
    (id_, vector.astype(np.float64))
    for id_, vector in enumerate(vectors)
    if np.isfinite(vector).all()
  ]
  distances, ids = [], []
  for query in np.asarray(queries, np.float64):
    found = [
      (np.float32(np.sqrt(np.square(vector - query).sum())), id_)
      for id_, vector in rows
    ]
    found = sorted(found)[:k]
    distances.append([distance for distance, _ in found])
    ids.append([id_ for _, id_ in found])
  return np.array(distances, np.float32), np.array(ids)


def grid(rng, rows):
  """Many duplicates and many ties."""
  return rng.integers(-1, 2, (rows, 3)).astype(np.float32)


def far(rng, rows):
  """Small differences of long vectors, which |q|^2 + |x|^2 - 2qx loses."""
  return (rng.normal(size=(rows, 6)) / 300 + 40).astype(np.float32)


def usual(rng, rows):
  return rng.normal(size=(rows, 6)).astype(np.float32)


def spoiled(rng, rows):
  vectors = grid(rng, rows)
  vectors[rng.integers(0, rows, rows // 5), 1] = np.nan
  vectors[:2] = np.inf
  vectors[-1] = np.nan
  return vectors


@pytest.fixture(params=['as differences', 'expanded'])
def faiss_computes(request, monkeypatch):
  """The two ways of faiss; by itself it chooses by the work to be done."""
  work = 1 if request.param == 'expanded' else 1 << 30
  monkeypatch.setattr(faiss.cvar, 'distance_compute_blas_threshold', work)
  return request.param


@pytest.mark.parametrize('make', [grid, far, usual, spoiled])
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_flat_equals_brute_force(tmp_path, make, dtype, faiss_computes):
  rng = np.random.default_rng(0)
  shards = [make(rng, rows).astype(dtype) for rows in (80, 5, 60)]
  shards.insert(1, np.zeros((0, shards[0].shape[1]), dtype))
  store = build_store(tmp_path, shards, dtype=dtype, block=16)
  vectors = np.concatenate(shards)
  queries = np.nan_to_num(make(rng, 12), nan=0, posinf=1)
  queries[3] = np.nan_to_num(vectors[100], nan=0, posinf=1)
  for threads in (1, 2):
    engine = index_lib.Engine(store, threads=threads)
    assert engine.exact and engine.mapped
    for k in (1, 5, 40, store.manifest.searchable):
      expected_distances, expected_ids = brute_force(vectors, queries, k)
      for part in (slice(0, 1), slice(3, 4), slice(2, 6), slice(0, 12)):
        distances, ids = engine.search(queries[part], k)
        np.testing.assert_array_equal(ids, expected_ids[part])
        np.testing.assert_array_equal(distances, expected_distances[part])
        assert (distances.dtype, ids.dtype) == (np.float32, np.int64)


def test_plain_faiss_would_not_do(faiss_computes):
  rng = np.random.default_rng(0)
  vectors, queries = far(rng, 200), far(rng, 25)
  index = faiss.IndexFlatL2(vectors.shape[1])
  index.add(vectors)
  same = index.search(queries, 20)[1] == brute_force(vectors, queries, 20)[1]
  assert same.mean() < 0.5 or faiss_computes != 'expanded'


def test_thousands_of_equal_vectors(tmp_path, faiss_computes):
  rng = np.random.default_rng(0)
  shard = np.tile(grid(rng, 1), (3000, 1))
  shard[1234] += 1
  engine = index_lib.Engine(build_store(tmp_path, [shard, shard]), threads=1)
  distances, ids = engine.search(shard[:1], 3)
  assert ids.tolist() == [[0, 1, 2]] and not distances.any()
  distances, ids = engine.search(shard[1234:1235], 4)
  assert ids.tolist() == [[1234, 4234, 0, 1]]


def test_rows_left_out_do_not_count(tmp_path):
  store = build_store(tmp_path, [spoiled(np.random.default_rng(0), 50)])
  rows, searchable = store.manifest.rows, store.manifest.searchable
  assert searchable < rows == 50
  engine = index_lib.Engine(store, threads=1)
  message = f'{rows} neighbours .* {searchable} searchable vectors'
  with pytest.raises(ValueError, match=message):
    engine.search(np.zeros((1, 3)), rows)


# Everything is proposed, so that the exact ranking must make it exact.
COMPLETE = ['IVF4,Flat;nprobe=4', 'SQ8', 'PQ2x4', 'PCA3,Flat', 'HNSW8,Flat']


@pytest.mark.parametrize('spec', COMPLETE)
@pytest.mark.parametrize('make', [usual, spoiled])
def test_approximate_indexes_rank_exactly(tmp_path, spec, make):
  rng = np.random.default_rng(0)
  shards = [np.repeat(make(rng, 40), 2, axis=1), np.repeat(make(rng, 20), 2, 1)]
  store = build_store(tmp_path, shards, index=spec, block=16, min_recall=0)
  engine = index_lib.Engine(store, threads=1)
  assert engine.mapped and not engine.exact
  queries = np.repeat(usual(rng, 5)[:, : shards[0].shape[1] // 2], 2, axis=1)
  k = 12  # 2k + 16 candidates are all of the larger shard's finite rows.
  distances, ids = engine.search(queries, k)
  expected = brute_force(np.concatenate(shards), queries, k)
  np.testing.assert_array_equal(ids, expected[1])
  np.testing.assert_array_equal(distances, expected[0])


def test_too_few_found_is_an_error_not_a_short_answer(tmp_path):
  vectors = np.random.default_rng(0).normal(size=(200, 6))
  store = build_store(tmp_path, [vectors], index='IVF8,Flat', min_recall=0)
  engine = index_lib.Engine(store, threads=1)
  with pytest.raises(ValueError, match=r'found \d+ of 150 .*nprobe=16'):
    engine.search(vectors[:3], 150)


@pytest.mark.parametrize(
  'queries, k, message',
  [
    (np.zeros((2, 6)), 11, '11 neighbours asked of .* 10 searchable'),
    (np.zeros((2, 6)), 0, '0 neighbours asked'),
    (np.zeros((2, 5)), 1, r'shape \[2, 5\] for a store of dim 6'),
    (np.zeros(6), 1, r'shape \[6\] for a store of dim 6'),
    ([[0] * 6, [0, np.nan] * 3], 1, 'query 1 of 2 is not finite'),
  ],
)
def test_wrong_queries(tmp_path, queries, k, message):
  store = build_store(tmp_path, [usual(np.random.default_rng(0), 10)])
  engine = index_lib.Engine(store, threads=1)
  with pytest.raises(ValueError, match=message):
    engine.search(queries, k)
  assert engine.search(np.zeros((0, 6)), 3)[1].shape == (0, 3)


def test_an_index_of_other_vectors_is_refused(tmp_path):
  store = build_store(tmp_path, [usual(np.random.default_rng(0), 10)])
  other = faiss.IndexFlatL2(6)
  other.add(np.zeros((9, 6), np.float32))
  faiss.write_index(other, str(store.index_path(0)))
  message = 'holds 9 vectors of dim 6, the manifest 10 of dim 6'
  with pytest.raises(ValueError, match=message):
    index_lib.Engine(store, threads=1)
  store.index_path(0).write_bytes(b'something else')
  with pytest.raises(ValueError, match=r'00\.faiss cannot be read as .*Flat'):
    index_lib.Engine(store, threads=1)


def test_threads():
  index_lib.set_threads(1)
  assert faiss.omp_get_max_threads() == 1
  with pytest.raises(ValueError, match='-1 threads'):
    index_lib.set_threads(-1)


@pytest.mark.parametrize('spec', ['Flat', 'SQfp16', 'IVF4,Flat;nprobe=4'])
def test_vectors_stay_on_disk(tmp_path, spec):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(3072, 1024)).astype(np.float32)
  store = build_store(tmp_path, [vectors], index=spec, min_recall=0)
  script = """
import sys
import numpy as np
from tttnn.datastore import index, store

def anonymous():
  with open('/proc/self/status') as f:
    return next(int(x.split()[1]) for x in f if x.startswith('RssAnon'))

opened = store.open(sys.argv[1])
before = anonymous()
engine = index.Engine(opened, threads=1)
engine.search(np.zeros((2, 1024)), 10)
print(anonymous() - before)
"""
  result = subprocess.run(
    [sys.executable, '-c', script, str(store.directory)],
    check=True,
    capture_output=True,
    cwd=build.__file__.removesuffix('/tttnn/datastore/build.py'),
  )
  assert int(result.stdout) < 3072  # kB; the vectors are 12 MB.
