"""Distances as an index gives them, recomputed and re-ranked: never mixed.

Against faiss itself, and against loops over what is stored.
"""

import shutil

import faiss
import numpy as np
import pytest

from configs import base
from tests import index_test
from tests import world as world_lib
from tttnn import jobs
from tttnn.datastore import client
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib
from tttnn.jobs import knn_search
from tttnn.methods import retomaton

SPEC = 'IVF4,PQ4x4;nprobe=4'
OF_METRIC = {
  'l2': lambda q, x: np.sqrt(np.square(x - q).sum(axis=-1)),
  'ip': lambda q, x: -(x * q).sum(axis=-1),
}
changed, rows_of = world_lib.changed, world_lib.rows_of


def make(directory, spec=SPEC, metric='l2', **kwargs):
  """(store, its vectors, queries), two shards, some rows left out."""
  directory.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  shards = [rng.normal(size=(rows, 8)).astype(np.float32) for rows in (300, 90)]
  shards[0][[5, 17]] = np.nan
  store = index_test.build_store(
    directory, shards, index=spec, metric=metric, min_recall=0, **kwargs
  )
  queries = rng.normal(size=(6, 8), scale=2).astype(np.float32)
  return store, np.concatenate(shards), queries


def faiss_indexes(store):
  """Those of the shards as faiss reads them, each with the ids it holds."""
  found, begin = [], 0
  for i, shard in enumerate(store.manifest.shards):
    index = faiss.read_index(str(store.index_path(i)))
    if parameters := store.index.spec.partition(';')[2]:
      faiss.ParameterSpace().set_index_parameters(index, parameters)
    ids = np.setdiff1d(np.arange(shard.rows), shard.left_out) + begin
    found.append((index, ids))
    begin += shard.rows
  return found


def held(store):
  """What the indexes hold for each id, NaN for one that is left out."""
  found = np.full((store.manifest.rows, store.manifest.dim), np.nan)
  for index, ids in faiss_indexes(store):
    if (ivf := faiss.try_extract_index_ivf(index)) is not None:
      ivf.make_direct_map()
    found[ids] = [index.reconstruct(i) for i in range(len(ids))]
  return found


def found_by_faiss(store, queries, k):
  """(distances, ids) of the k best of all shards, by faiss alone."""
  distances, ids = [], []
  for index, of_index in faiss_indexes(store):
    scores, positions = index.search(queries.astype(np.float32), k)
    distances.append(
      np.sqrt(scores) if store.manifest.metric == 'l2' else -scores
    )
    ids.append(of_index[positions])
  distances, ids = np.hstack(distances), np.hstack(ids)
  best = np.argsort(distances, axis=1, kind='stable')[:, :k]
  return (
    np.take_along_axis(distances, best, axis=1),
    np.take_along_axis(ids, best, axis=1),
  )


def section(**changes):
  config = base.get_config()
  config.knn.update(changes)
  return config


@pytest.mark.parametrize('metric', ['l2', 'ip'])
@pytest.mark.parametrize('spec', [SPEC, 'OPQ4,IVF4,PQ4x4;nprobe=4', 'SQ8'])
def test_what_the_index_says_is_what_faiss_says(tmp_path, spec, metric):
  store, vectors, queries = make(tmp_path, spec, metric)
  expected = found_by_faiss(store, queries, 10)
  to_held = OF_METRIC[metric](queries[:, None], held(store))
  everything = np.tile(np.arange(len(vectors)), (len(queries), 1))
  everything[:, [5, 17]] = -1
  engine = engine_lib.Engine(store, threads=1)
  with client.start(store.directory, threads=1) as served:
    for searcher in (engine, served):
      distances, ids = searcher.search(queries, 10, raw=True)
      np.testing.assert_allclose(distances, expected[0], rtol=1e-5)
      assert distances.dtype == np.float32
      pairs = zip(ids, expected[1], strict=True)  # Equal codes are as near.
      assert np.mean([np.isin(*pair).mean() for pair in pairs]) > 0.9
      np.testing.assert_allclose(
        np.take_along_axis(to_held, ids, axis=1), distances, rtol=1e-4
      )
      measured = searcher.measure(queries, everything)
      there = everything >= 0
      np.testing.assert_allclose(
        measured[there], to_held[there], rtol=1e-4, atol=1e-5
      )
      assert np.isinf(measured[~there]).all()
      # Beside it, one that ranks exactly.
      exact, _ = searcher.search(queries, 10)
      assert (np.abs(exact - distances) > 1e-4).any()


def test_over_flat_all_are_the_same(tmp_path):
  store, vectors, queries = make(tmp_path, 'Flat')
  distances, ids = index_test.brute_force(vectors, queries, 10)
  engine = engine_lib.Engine(store, threads=1)
  for found in (
    engine.search(queries, 10, raw=True),
    *(
      knn_search.Neighbors(
        section(neighbors=10, distances=kind), store, engine
      )(queries)
      for kind in knn_search.DISTANCES
    ),
  ):
    np.testing.assert_array_equal(found[1], ids)
    np.testing.assert_array_equal(found[0], distances)
  np.testing.assert_array_equal(engine.measure(queries, ids), distances)


def test_entries_are_measured_as_they_are_found(tmp_path):
  store, vectors, queries = make(tmp_path)
  engine = engine_lib.Engine(store, threads=1)
  raw_distances, raw_ids = engine.search(queries, 12, raw=True)
  to_stored = OF_METRIC['l2'](queries[:, None], vectors)
  others = np.array([[389, -1, 0]] * len(queries))
  own = raw_ids[:, 3]

  neighbors = knn_search.Neighbors(
    section(neighbors=12, distances='index'), store, engine
  )
  np.testing.assert_array_equal(neighbors(queries), (raw_distances, raw_ids))
  np.testing.assert_allclose(
    neighbors.measure(queries, raw_ids), raw_distances, rtol=1e-5
  )

  neighbors = knn_search.Neighbors(
    section(neighbors=11, distances='exact', drop_self=True), store, engine
  )
  distances, ids = neighbors(queries, own)
  for q in range(len(queries)):
    expected = sorted(set(raw_ids[q]) - {own[q]}, key=lambda i: to_stored[q, i])
    assert ids[q].tolist() == expected
    np.testing.assert_allclose(distances[q], to_stored[q, expected], rtol=1e-6)
  np.testing.assert_allclose(
    neighbors.measure(queries, others)[:, [0, 2]],
    to_stored[:, [389, 0]],
    rtol=1e-6,
  )
  assert np.isinf(neighbors.measure(queries, others)[:, 1]).all()

  neighbors = knn_search.Neighbors(
    section(neighbors=12, distances='refine', refine=15), store, engine
  )
  nearest = index_test.brute_force(vectors, queries, 12)
  np.testing.assert_array_equal(neighbors(queries)[1], nearest[1])
  np.testing.assert_array_equal(neighbors(queries)[0], nearest[0])


def test_what_the_index_says_needs_no_vectors(tmp_path):
  store, _, queries = make(tmp_path)
  before = engine_lib.Engine(store, threads=1).search(queries, 10, raw=True)
  shutil.rmtree(store.directory / 'vectors')
  engine = engine_lib.Engine(store_lib.open(store.directory, SPEC), threads=1)
  np.testing.assert_array_equal(engine.search(queries, 10, raw=True), before)
  np.testing.assert_allclose(
    engine.measure(queries, before[1]), before[0], rtol=1e-5
  )
  with pytest.raises(ValueError, match="no finished index 'Flat'"):
    engine.search(queries, 10)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('IVF4,PQ4x4fs;nprobe=4', 'IndexIVFPQFastScan rounds the distances'),
    ('PCA4,PQ4x4fs', 'IndexPQFastScan rounds the distances'),
    ('LSH', 'IndexLSH gives distances that are off by '),
  ],
)
def test_indexes_whose_distances_are_others_are_refused(
  tmp_path, spec, message
):
  store, _, queries = make(tmp_path, spec)
  engine = engine_lib.Engine(store, threads=1)
  ids = engine.search(queries, 10, raw=True)[1]
  with pytest.raises(ValueError, match=message):
    engine.measure(queries, ids)


def test_rows_that_are_not_there_are_refused(tmp_path):
  store, _, queries = make(tmp_path)
  engine = engine_lib.Engine(store, threads=1)
  with client.start(store.directory, threads=1) as served:
    for searcher in (engine, served):
      for id_ in (5, 390, -2):
        with pytest.raises(ValueError, match=f'row {id_} is in no index here'):
          searcher.measure(queries[:1], [[0, id_]])
      with pytest.raises(ValueError, match='is not finite'):
        searcher.measure([[np.nan] * 8], [[0]])
      assert searcher.measure(queries, np.zeros((6, 0), int)).shape == (6, 0)
  with pytest.raises(ValueError, match=r'ids of shape \[1, 1\] for 6 queries'):
    engine.measure(queries, [[0]])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'distances': 'approx'}, "distances='approx' is not one of refine, exact"),
    ({'distances': 'exact', 'refine': 2}, "refine=2 .*distances='exact'"),
    ({'distances': 'index', 'neighbors': 400}, 'asks for 400 entries'),
  ],
)
def test_bad_input_is_refused(tmp_path, changes, message):
  store, _, _ = make(tmp_path)
  with pytest.raises(ValueError, match=message):
    knn_search.Neighbors(section(**changes), store, None)
  config = section(distances='index', neighbors=4)
  config.store.search = 'device'
  with pytest.raises(ValueError, match="store.search='device' does not"):
    knn_search.Neighbors(config, store, None)


@pytest.fixture(scope='module')
def config(world, tmp_path_factory):
  """Of runs over a store of tokens with a poor index."""
  directory = tmp_path_factory.mktemp('tokens')
  config = changed(
    world,
    job='build',
    store__key='ffn_input',
    store__path=f'{directory}/store',
    store__index='IVF16,PQ8x4;nprobe=16',
    store__min_recall=0.0,
    build__block=0,
    embedder__path='',
  )
  jobs.run(config, str(directory / 'build'))
  config = changed(config, job='evaluate', method='knn_lm', eval__limit=3)
  config.knn.update({'neighbors': 8, 'lambda': 0.3, 'temperature': 5.0})
  return config


def run(config, workdir, **changes):
  jobs.run(changed(config, **changes), str(workdir))
  return rows_of(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['exact', 'index'])
def test_pointers_are_measured_as_what_is_searched(
  config, tmp_path, monkeypatch, kind
):
  config = changed(config, knn__distances=kind)
  plain = run(config, tmp_path / 'plain')
  always = run(
    config,
    tmp_path / 'always',
    method='retomaton',
    retomaton__min_knns=float('inf'),
    retomaton__max_knns=0,
  )
  for one, other in zip(plain, always, strict=True):
    assert one['log_likelihood'] == pytest.approx(
      other['log_likelihood'], rel=1e-6
    )
  seen = []
  candidates = retomaton.Walk.candidates

  def watched(self, queries, *answer):
    found = candidates(self, queries, *answer)
    seen.append((queries.copy(), *found))
    return found

  monkeypatch.setattr(retomaton.Walk, 'candidates', watched)
  run(config, tmp_path / 'walk', method='retomaton', retomaton__max_knns=64)
  store = store_lib.open(config.store.path, config.store.index)
  count = store.manifest.rows
  keys = held(store) if kind == 'index' else store.gather(np.arange(count))
  pointed = 0
  for queries, distances, ids in seen:
    rows, places = np.nonzero(ids >= 0)
    np.testing.assert_allclose(
      distances[rows, places],
      OF_METRIC['l2'](queries[rows].astype(float), keys[ids[rows, places]]),
      rtol=1e-4,
    )
    pointed += (places >= 8).sum()
  assert pointed > 100


def test_runs_and_caches_are_of_one_kind(config, tmp_path):
  found = {}
  for kind in knn_search.DISTANCES:
    found[kind] = run(
      config,
      tmp_path / kind,
      knn__distances=kind,
      knn__cache=str(tmp_path / f'{kind}.npz'),
    )
  totals = {
    kind: sum(row['log_likelihood'][1] for row in rows)
    for kind, rows in found.items()
  }
  assert len(set(totals.values())) == 3
  for there, now in (('refine', 'index'), ('index', 'exact')):
    message = f"knn.distances: '{there}' there, '{now}' now"
    with pytest.raises(ValueError, match=message):
      run(config, tmp_path / there, knn__distances=now)
    with pytest.raises(ValueError, match=message):
      run(
        config,
        tmp_path / 'new',
        knn__distances=now,
        knn__cache=str(tmp_path / f'{there}.npz'),
      )
  with pytest.raises(ValueError, match='knn.neighbors: 8 there, 4 now'):
    run(
      config,
      tmp_path / 'fewer',
      knn__distances='exact',
      knn__neighbors=4,
      knn__cache=str(tmp_path / 'exact.npz'),
    )
