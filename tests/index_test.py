import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from tests import build_test
from tttnn.datastore import build
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import index as index_lib
from tttnn.datastore import store as store_lib


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

  def embed(blocks):
    for texts in blocks:
      yield vectors[[int(text) for text in texts]]

  arguments = {'dim': vectors.shape[1], 'fingerprint': '', 'threads': 1}
  return build.build(
    directory / 's', paths, embed, **build_test.split(arguments | kwargs)
  )


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
    engine = engine_lib.Engine(store, threads=threads)
    assert engine.exact and not engine.in_memory
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
  engine = engine_lib.Engine(build_store(tmp_path, [shard, shard]), threads=1)
  distances, ids = engine.search(shard[:1], 3)
  assert ids.tolist() == [[0, 1, 2]] and not distances.any()
  distances, ids = engine.search(shard[1234:1235], 4)
  assert ids.tolist() == [[1234, 4234, 0, 1]]


@pytest.mark.parametrize('scale', [1e-42, 1e-25, 1e-20, 1e15, 1e19, 1e37])
def test_the_ends_of_float32(tmp_path, scale):
  rng = np.random.default_rng(0)
  vectors = (usual(rng, 200) * scale).astype(np.float32)
  queries = (usual(rng, 10) * scale).astype(np.float32)
  engine = engine_lib.Engine(build_store(tmp_path, [vectors]), threads=1)
  for part in (slice(0, 1), slice(0, 10)):
    distances, ids = engine.search(queries[part], 3)
    expected = brute_force(vectors, queries[part], 3)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(distances, expected[0])


def test_rows_left_out_do_not_count(tmp_path):
  store = build_store(tmp_path, [spoiled(np.random.default_rng(0), 50)])
  rows, searchable = store.manifest.rows, store.manifest.searchable
  assert searchable < rows == 50
  engine = engine_lib.Engine(store, threads=1)
  message = f'{rows} neighbours .* {searchable} searchable vectors'
  with pytest.raises(ValueError, match=message):
    engine.search(np.zeros((1, 3)), rows)


# Everything is proposed, so that the exact ranking must make it exact.
COMPLETE = [
  'IVF4,Flat;nprobe=4',
  'SQfp16',
  'SQ8',
  'PQ2x4',
  'PCA3,Flat',
  'RaBitQ',
  'HNSW8,Flat',
  'PQ2x4,RFlat',
]


@pytest.mark.parametrize('spec', COMPLETE)
@pytest.mark.parametrize('make', [usual, spoiled])
def test_approximate_indexes_rank_exactly(tmp_path, spec, make):
  rng = np.random.default_rng(0)
  shards = [np.repeat(make(rng, 40), 2, axis=1), np.repeat(make(rng, 20), 2, 1)]
  store = build_store(tmp_path, shards, index=spec, block=16, min_recall=0)
  engine = engine_lib.Engine(store, threads=1)
  assert not engine.in_memory and not engine.exact
  queries = np.repeat(usual(rng, 5)[:, : shards[0].shape[1] // 2], 2, axis=1)
  k = 12  # 2k + 16 candidates are all of the larger shard's finite rows.
  distances, ids = engine.search(queries, k)
  expected = brute_force(np.concatenate(shards), queries, k)
  np.testing.assert_array_equal(ids, expected[1])
  np.testing.assert_array_equal(distances, expected[0])


# These need more vectors to train on, so that not all are candidates.
@pytest.mark.parametrize(
  'spec',
  [
    'OPQ2,PQ2',
    'OPQ2,IVF2,PQ2;nprobe=2',
    'IVF2,RaBitQ;nprobe=2',
    'SQ8,RFlat',
    'PQ8x4fs',
  ],
)
def test_what_approximate_indexes_find_has_exact_distances(tmp_path, spec):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(600, 8)).astype(np.float32)
  store = build_store(
    tmp_path, [vectors[:400], vectors[400:]], index=spec, min_recall=0.9
  )
  engine = engine_lib.Engine(store, threads=1)
  queries = rng.normal(size=(20, 8)).astype(np.float32)
  distances, ids = engine.search(queries, 5)
  wide = vectors[ids].astype(np.float64) - queries[:, None]
  expected = np.sqrt(np.square(wide).sum(axis=2)).astype(np.float32)
  np.testing.assert_array_equal(distances, expected)
  assert (np.diff(distances) >= 0).all()
  _, nearest = brute_force(vectors, queries, 5)
  pairs = zip(nearest, ids, strict=True)
  assert np.mean([np.isin(*pair) for pair in pairs]) > 0.85


def test_too_few_found_is_an_error_not_a_short_answer(tmp_path):
  vectors = np.random.default_rng(0).normal(size=(200, 6))
  store = build_store(tmp_path, [vectors], index='IVF8,Flat', min_recall=0)
  engine = engine_lib.Engine(store, threads=1)
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
  engine = engine_lib.Engine(store, threads=1)
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
    engine_lib.Engine(store, threads=1)
  store.index_path(0).write_bytes(b'something else')
  with pytest.raises(ValueError, match=r'00\.faiss cannot be read as .*Flat'):
    engine_lib.Engine(store, threads=1)


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
from tttnn.datastore import engine as engine_lib, store

def anonymous():
  with open('/proc/self/status') as f:
    return next(int(x.split()[1]) for x in f if x.startswith('RssAnon'))

opened = store.open(sys.argv[1])
before = anonymous()
engine = engine_lib.Engine(opened, threads=1)
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


def test_indexes_stand_beside_each_other(tmp_path):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(200, 6)).astype(np.float32)
  flat = build_store(tmp_path, [vectors[:120], vectors[120:]])
  before = build_test.contents(flat.directory)

  def no_embedding(blocks):
    raise AssertionError(list(blocks))

  paths = [str(tmp_path / f'{i}.jsonl') for i in range(2)]
  options = build.Options(index='IVF8,Flat;nprobe=8', threads=1)
  ivf = build.build(
    flat.directory, paths, no_embedding, dim=6, fingerprint='', options=options
  )
  after = build_test.contents(flat.directory)
  assert {key: after[key] for key in before} == before
  assert ivf.fingerprint() != flat.fingerprint()
  for spec, exact in (('', True), ('Flat', True), ('IVF8,Flat', False)):
    store = store_lib.open(flat.directory, spec)
    engine = engine_lib.Engine(store, threads=1)
    assert engine.exact == exact
    assert engine.search(vectors[:9], 1)[1][:, 0].tolist() == list(range(9))
  few = store_lib.open(flat.directory, 'IVF8,Flat;nprobe=1')
  assert few.fingerprint() != ivf.fingerprint()
  with pytest.raises(ValueError, match='found'):
    engine_lib.Engine(few, threads=1).search(vectors[:9], 150)
  message = r"no finished index 'SQ8'; there is 'Flat', 'IVF8,Flat;nprobe=8'"
  with pytest.raises(ValueError, match=message):
    store_lib.open(flat.directory, 'SQ8')


def test_vectors_need_not_lie_there_twice(tmp_path):
  vectors = spoiled(np.random.default_rng(0), 90)
  shards = [vectors[:50], vectors[50:]]
  (tmp_path / 'a').mkdir()
  kept = build_store(tmp_path / 'a', shards, dtype='float16', block=16)
  (tmp_path / 'b').mkdir()
  options = {'dtype': 'float16', 'block': 16, 'keep_vectors': False}
  store = build_store(tmp_path / 'b', shards, **options)
  assert not (store.directory / 'vectors').exists()
  for i in range(2):
    rows = np.arange(len(shards[i]))[::-1]
    expected = kept.vectors(i).gather(rows).astype(np.float32)
    expected[~np.isfinite(expected).all(axis=1)] = np.nan
    np.testing.assert_array_equal(store.vectors(i).gather(rows), expected)
  again = build_store(
    tmp_path / 'b', shards, index='IVF2,Flat;nprobe=2', **options
  )
  queries = grid(np.random.default_rng(1), 9)
  k = 12
  for other in (store, again):
    found = engine_lib.Engine(other, threads=1).search(queries, k)
    expected = engine_lib.Engine(kept, threads=1).search(queries, k)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
  (tmp_path / 'c').mkdir()
  with pytest.raises(ValueError, match="'SQ8', but vectors that .* not kept"):
    build_store(tmp_path / 'c', shards, index='SQ8', **options)


def test_nearest_gives_what_a_part_has(tmp_path):
  rng = np.random.default_rng(0)
  shards = [grid(rng, 5), grid(rng, 40)]
  store = build_store(tmp_path, shards)
  queries = grid(rng, 6)
  both = engine_lib.Engine(store, threads=1)
  whole = both.search(queries, 12)
  parts = []
  for i, count in ((0, 5), (1, 12)):
    part = store_lib.open(store.directory, shards=(i,))
    distances, ids = engine_lib.Engine(part, threads=1).nearest(queries, 12)
    assert distances.shape == ids.shape == (6, count)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    parts.append(list(zip(distances, ids, strict=True)))
  for mine, theirs in (
    (engine_lib.merge(parts, 6, 12, 'Flat'), whole),
    (both.nearest(queries, 12), whole),
  ):
    np.testing.assert_array_equal(mine, theirs)
  with pytest.raises(ValueError, match='0 neighbours'):
    both.nearest(queries, 0)


def test_nearest_of_an_index_that_finds_less_ends_in_nothing(tmp_path):
  # Of two lists, the one that is searched holds a single row.
  vectors = np.array([[i, 1e4 * (i == 0)] for i in range(100)])
  store = build_store(tmp_path, [vectors], index='IVF2,Flat;nprobe=2')
  store = store_lib.open(store.directory, 'IVF2,Flat;nprobe=1')
  engine = engine_lib.Engine(store, threads=1)
  distances, ids = engine.nearest(np.array([[0, 1e4], [50, 0]]), 3)
  assert ids.tolist() == [[0, -1, -1], [50, 49, 51]]
  assert distances.tolist() == [[0, np.inf, np.inf], [0, 1, 1]]


def test_what_faiss_cannot_map_is_named(tmp_path):
  vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
  spec = 'IVF2,PQ2x4,RFlat;nprobe=2'
  store = build_store(tmp_path, [vectors, vectors], index=spec, min_recall=0)
  engine = engine_lib.Engine(store, threads=1)
  assert engine.in_memory == ['00.faiss', '01.faiss']


def test_gpus_that_are_not_there(tmp_path):
  store = build_store(tmp_path, [usual(np.random.default_rng(0), 10)])
  if getattr(faiss, 'get_num_gpus', int)():
    engine = engine_lib.Engine(store, threads=1, gpu=True)
    assert not engine.exact
    assert engine.search(np.zeros((1, 6)), 10)[1].shape == (1, 10)
  else:
    with pytest.raises(ValueError, match=r'serve\.gpu=true, but faiss sees no'):
      engine_lib.Engine(store, threads=1, gpu=True)
