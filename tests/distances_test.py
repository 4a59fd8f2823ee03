"""Distances in growing fractions of a store, and the job that studies them."""

import json
import math

import matplotlib
import numpy as np
import pytest

from configs import distances as distances_config
from tests import figures
from tests import index_test
from tests import tiny
from tttnn import jobs
from tttnn.datastore import distances as distances_lib
from tttnn.datastore import embed
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import fractions as fractions_lib
from tttnn.datastore import store as store_lib
from tttnn.jobs import distances as job
from tttnn.reporting import distances as shown
from tttnn.reporting import plots

VALUES = (0.1, 0.25, 0.5, 1.0)


def brute_force(metric, vectors, queries, numbers, k, skip=()):
  """By float64 differences (products), a fraction and a query at a time."""
  vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
  finite = np.isfinite(vectors).all(axis=1)
  found = np.empty((len(VALUES), len(queries), k))
  for f, value in enumerate(VALUES):
    for q, query in enumerate(queries):
      inside = (numbers < value) & finite
      inside[[id_ for id_, number in skip if number == q]] = False
      rows = vectors[inside]
      if metric == 'l2':
        distances = np.sqrt(np.square(rows - query).sum(axis=1))
      else:
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        distances = 1 - rows @ query / lengths
      found[f, q] = np.sort(distances)[:k]
  return found


@pytest.fixture
def small_chunks(monkeypatch):
  """Many chunks, blocks, threads' shares and comparisons a store."""
  monkeypatch.setattr(distances_lib, '_CHUNK_ROWS', 64)
  monkeypatch.setattr(distances_lib, '_BLOCK_SCORES', 64)
  monkeypatch.setattr(distances_lib, '_MOST_QUERIES', 5)
  monkeypatch.setattr(distances_lib, '_PAIR_NUMBERS', 50)


def make(directory, make_vectors, **kwargs):
  """(store of 500 vectors, the vectors, 17 queries with copies among them)."""
  rng = np.random.default_rng(0)
  vectors = make_vectors(rng, 500)
  queries = make_vectors(rng, 17)
  vectors[[3, 44, 481]] = queries[0]  # Exact copies, and near ones.
  vectors[50:53] = queries[1] + np.float32(1e-5)
  vectors[[7, 330]] = np.nan
  shards = [vectors[:210], vectors[:0], vectors[210:]]
  store = index_test.build_store(directory, shards, block=32, **kwargs)
  return store, vectors, queries


def measure(store, queries, k=9, *, seed=1, excluded=fractions_lib.NONE):
  fractions = fractions_lib.draw(store.manifest, VALUES, seed)
  return distances_lib.nearest(
    store, queries, k, fractions, excluded=excluded, threads=2
  )


@pytest.mark.parametrize('metric', ['l2', 'cosine'])
@pytest.mark.parametrize('make_vectors', [index_test.usual, index_test.far])
def test_every_fraction_equals_brute_force(
  tmp_path, small_chunks, metric, make_vectors
):
  store, vectors, queries = make(tmp_path, make_vectors, metric=metric)
  got = measure(store, queries)
  numbers = np.random.default_rng(1).random(500)
  expected = brute_force(metric, vectors, queries, numbers, 9)
  # Vectors of cosine are stored in float32 with length 1.
  atol = 1e-7 if metric == 'l2' else 3e-7
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=atol)
  if metric == 'l2':
    assert (got[-1, 0, :3] == 0).all() and got[-1, 0, 3] > 0
    if make_vectors is index_test.usual:
      near = np.sqrt(6) * 1e-5
      np.testing.assert_allclose(got[-1, 1, :3], near, rtol=0.02)


def test_all_documents_give_what_a_search_finds(tmp_path, small_chunks):
  store, _, queries = make(tmp_path, index_test.far)
  expected, _ = engine_lib.Engine(store, threads=1).search(queries, 9)
  np.testing.assert_array_equal(measure(store, queries)[-1], expected)


def test_vectors_of_other_files_and_types(tmp_path):
  for name, kwargs in (
    ('halves', {'dtype': 'float16'}),
    ('flat', {'keep_vectors': False}),
  ):
    (tmp_path / name).mkdir()
    store, vectors, queries = make(tmp_path / name, index_test.usual, **kwargs)
    vectors = vectors.astype(kwargs.get('dtype', 'float32'))
    expected = brute_force(
      'l2', vectors, queries, np.random.default_rng(1).random(500), 9
    )
    np.testing.assert_allclose(
      measure(store, queries), expected, rtol=1e-6, atol=1e-7
    )


def test_fractions_are_nested_and_the_same_each_time(tmp_path):
  store, vectors, _ = make(tmp_path, index_test.usual)
  draw = fractions_lib.draw(store.manifest, VALUES, 7)
  again = fractions_lib.draw(store.manifest, VALUES, 7)
  np.testing.assert_array_equal(draw.group, again.group)
  other = fractions_lib.draw(store.manifest, VALUES, 8)
  assert (draw.group != other.group).sum() > 100
  for i, value in enumerate(VALUES):
    # Whatever other fractions there are, a document is in this one or not.
    alone = fractions_lib.draw(store.manifest, (value,), 7)
    np.testing.assert_array_equal(alone.group < 1, draw.group <= i)
    deviation = math.sqrt(500 * value * (1 - value))
    assert abs(draw.documents[i] - 498 * value) <= 4 * deviation
    assert draw.documents[i] == (draw.group <= i).sum()
  # Nor do files matter: an id has the same number in any.
  (tmp_path / 'one').mkdir()
  one = index_test.build_store(tmp_path / 'one', [vectors])
  same = fractions_lib.draw(one.manifest, VALUES, 7)
  np.testing.assert_array_equal(same.group, draw.group)


@pytest.mark.parametrize('values', [(), (0.5, 0.5), (0.2, 0.1), (0,), (1.1,)])
def test_fractions_that_are_none(tmp_path, values):
  store, *_ = make(tmp_path, index_test.usual)
  with pytest.raises(ValueError, match=r'distances.fractions=\[.* must ascend'):
    fractions_lib.draw(store.manifest, values, 0)


def test_own_copies_are_left_out(tmp_path, small_chunks):
  store, vectors, queries = make(tmp_path, index_test.usual)
  texts = [f'query {i}' for i in range(17)]
  # The texts of a store are its ids; that of 7 is not in any search.
  texts[:5] = '44', '51', '7', '44', '499'
  fractions = fractions_lib.draw(store.manifest, VALUES, 1)
  seen = []
  pairs = fractions_lib.copies(
    store.corpus, fractions, texts, lambda *done: seen.append(done)
  )
  assert pairs.tolist() == [[44, 0], [44, 3], [51, 1], [499, 4]]
  assert seen == [(500, 500)]
  expected = brute_force(
    'l2', vectors, queries, np.random.default_rng(1).random(500), 9, pairs
  )
  got = measure(store, queries, excluded=pairs)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
  assert (got[-1, 0, :2] == 0).all() and got[-1, 0, 2] > 0


def test_a_fraction_with_too_few_documents(tmp_path):
  store, _, queries = make(tmp_path, index_test.usual)
  fractions = fractions_lib.draw(store.manifest, VALUES, 1)
  count = fractions.documents[0]
  assert measure(store, queries, count).shape == (4, 17, count)
  with pytest.raises(
    ValueError,
    match=f'{count + 1} neighbours .* fraction 0.1 .* {count} documents$',
  ):
    measure(store, queries, count + 1)
  inside = np.flatnonzero(fractions.group == 0)
  pairs = np.array([[inside[0], 4], [inside[1], 4], [inside[1], 5]])
  assert np.isfinite(measure(store, queries, count - 2, excluded=pairs)).all()
  with pytest.raises(ValueError, match='documents, 2 of them copies'):
    measure(store, queries, count - 1, excluded=pairs)


def test_products_and_overflow_are_refused(tmp_path):
  store, *_, queries = make(tmp_path, index_test.usual, metric='ip')
  with pytest.raises(ValueError, match="metric 'ip'"):
    measure(store, queries)
  (tmp_path / 'long').mkdir()
  vectors = index_test.usual(np.random.default_rng(0), 100) * np.float32(1e19)
  store = index_test.build_store(tmp_path / 'long', [vectors])
  with pytest.raises(ValueError, match='could overflow'):
    measure(store, queries, 1)


@pytest.mark.parametrize('metric', ['l2', 'cosine'])
def test_random_pairs(metric):
  rng = np.random.default_rng(0)
  queries = index_test.usual(rng, 4)
  got = distances_lib.random_pairs(metric, queries, 600, 3)
  wide = queries.astype(np.float64)
  if metric == 'cosine':
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
  apart = np.linalg.norm(wide[:, None] - wide, axis=2)[np.triu_indices(4, 1)]
  expected = apart if metric == 'l2' else np.square(apart) / 2
  which = np.abs(got[:, None] - expected).argmin(axis=1)
  np.testing.assert_allclose(got, expected[which], rtol=1e-5)
  # Each of the six about as often.
  assert np.bincount(which, minlength=6).min() > 60
  again = distances_lib.random_pairs(metric, queries, 600, 3)
  np.testing.assert_array_equal(again, got)
  with pytest.raises(ValueError, match='5 random pairs of 1 queries'):
    distances_lib.random_pairs(metric, queries[:1], 5, 0)


def make_study(near, k=12, metric='l2'):
  """Three queries, two fractions; distances that are easy to add up."""
  large = np.arange(1, k + 1) + np.array([[0], [1], [2]], np.float32)
  large[0, 0] = near
  return distances_lib.Study(
    metric,
    np.array([0.5, 1.0]),
    np.array([1500, 3000]),
    np.stack([large + 2, large]).astype(np.float32),
    np.array([3, 5], np.float32),
  )


def test_the_table_is_means_medians_and_shares():
  assert shown.table(make_study(4e-5)) == [
    [
      'fraction',
      'documents',
      'mean at rank 1',
      'mean at rank 10',
      'mean at rank 12',
      'median at rank 1',
      'near-exact',
    ],
    ['0.5', '1,500', '3.6667', '13.0000', '15.0000', '4.0000', '0.0%'],
    ['1', '3,000', '1.6667', '11.0000', '13.0000', '2.0000', '33.3%'],
  ]
  kind, near, pairs = shown.sentences(make_study(4e-5))
  assert kind == 'Distances are Euclidean.'
  assert '0.0001; 1 of 3 queries at the fraction 1' in near
  assert 'mean 4.0000, standard deviation 1.0000 (2 pairs)' in pairs
  assert len(shown.table(make_study(1.0, k=1))[0]) == 5


@pytest.mark.parametrize(('near', 'k'), [(4e-5, 12), (1.0, 1), (0.0, 12)])
def test_the_figure_draws_them_and_cuts_nothing_off(near, k):
  study = make_study(near, k, 'l2' if near else 'cosine')
  fig = shown.draw(study)
  by_rank, pairs, by_fraction, histograms, close, names = fig.axes
  means = study.distances_FxQxk.mean(axis=1)
  for line, mean in zip(by_rank.lines, means, strict=True):
    assert line.get_ydata() == pytest.approx(mean)
  assert pairs.lines[0].get_ydata() == pytest.approx(means[1])
  assert list(pairs.lines[1].get_ydata()) == [4, 4]
  assert by_fraction.lines[0].get_ydata() == pytest.approx(means[:, 0])
  bars = histograms.containers[0]
  assert len(bars) == 100
  assert sum(bar.get_height() * bar.get_width() for bar in bars) == (
    pytest.approx(1)
  )
  if near < 1e-4:
    assert sum(bar.get_height() for bar in close.containers[0]) == 1
  else:
    assert [t.get_text() for t in close.texts] == ['none is below 0.0001']
  shades = [
    matplotlib.colors.rgb_to_hsv(line.get_color()[:3])[2]
    for line in by_rank.lines
  ]
  assert shades[0] > shades[1] + 0.2  # Told apart in grey.
  assert len(names.get_legend().get_texts()) == 2
  figures.assert_nothing_is_cut_off(fig)


@pytest.mark.parametrize('render', [plots.png, plots.pdf])
def test_the_bytes_of_the_figure_are_always_the_same(render):
  first = render(shown.draw(make_study(1.0)))
  assert first.startswith((b'\x89PNG', b'%PDF'))
  assert render(shown.draw(make_study(1.0))) == first


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """A config on a store of 120 documents; 4 of 12 queries are among them."""
  directory = tmp_path_factory.mktemp('distances')
  _, embedder = tiny.write_models(str(directory))
  texts = tiny.documents(130)
  config = distances_config.get_config()
  config.corpus.train = tiny.write_jsonl(directory / 'train.jsonl', texts[:120])
  config.eval.documents = tiny.write_jsonl(
    directory / 'test.jsonl', texts[:8:2] + texts[120:128]
  )
  config.embedder.path = embedder
  config.store.path = f'{directory}/store'
  config.serve.threads = 2
  with config.unlocked():
    build = config.copy_and_resolve_references()
  build.job = 'build'
  jobs.run(build, f'{directory}/build')
  config.retrieval.neighbors = 5
  config.distances.fractions = '0.2,0.5,1'
  config.distances.pairs = 300
  return config


def contents(directory):
  return {
    p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in directory.iterdir()
  }


@pytest.mark.usefixtures('compile_fast')
def test_the_job(built, tmp_path, capsys, monkeypatch):
  jobs.run(built, str(tmp_path))
  out = capsys.readouterr().out
  before = contents(tmp_path)
  endings = ('npz', 'jsonl', 'json', 'md', 'png', 'pdf')
  assert before.keys() == {'config.json', *(f'distances.{e}' for e in endings)}

  held = np.load(tmp_path / 'distances.npz', allow_pickle=False)
  with open(built.eval.documents) as file:
    texts = [json.loads(line)['text'] for line in file]
  queries = embed.load(built.embedder.path)(texts).astype(np.float64)
  store = store_lib.open(built.store.path)
  vectors = store.vectors(0).gather(np.arange(120)).astype(np.float64)
  numbers = np.random.default_rng(0).random(120)
  for f, value in enumerate((0.2, 0.5, 1)):
    rows = vectors[numbers < value]
    assert held['documents'][f] == len(rows)
    apart = np.linalg.norm(queries[:, None] - rows, axis=2)
    np.testing.assert_allclose(
      held['distances'][f], np.sort(apart, axis=1)[:, :5], rtol=1e-5, atol=1e-7
    )
  assert held['random'].shape == (300,)
  rows = [
    json.loads(line)
    for line in (tmp_path / 'distances.jsonl').read_text().splitlines()
  ]
  assert [row['doc_id'] for row in rows] == list(range(12))
  assert [row['nearest'][-1] < 1e-4 for row in rows] == [True] * 4 + [False] * 8
  about = json.loads((tmp_path / 'distances.json').read_text())
  assert about['fractions'][-1]['near_exact_share'] == pytest.approx(4 / 12)
  assert '33.3%' in out and 'random pairs' in out.lower()
  assert '| 1 | 120 |' in (tmp_path / 'distances.md').read_text()

  # Again: nothing is measured or written.
  monkeypatch.setattr(embed, 'load', None)
  monkeypatch.setattr(distances_lib, 'nearest', None)
  jobs.run(built, str(tmp_path))
  assert contents(tmp_path) == before
  assert capsys.readouterr().out.endswith(out[out.index('fraction') :])
  # Something else: an error that shows what.
  other = built.copy_and_resolve_references()
  other.distances.pairs = 301
  with pytest.raises(ValueError, match='distances.pairs: 300 there, 301 now'):
    jobs.run(other, str(tmp_path))


@pytest.mark.usefixtures('compile_fast')
def test_the_job_without_own_copies(built, tmp_path):
  config = built.copy_and_resolve_references()
  config.retrieval.exclude_self = True
  config.eval.limit = 5
  jobs.run(config, str(tmp_path))
  nearest = np.load(tmp_path / 'distances.npz')['distances'][-1, :, 0]
  assert len(nearest) == 5 and (nearest > 1e-4).all()


@pytest.mark.usefixtures('compile_fast')
def test_the_job_says_what_it_would_take(built, tmp_path, capsys):
  config = built.copy_and_resolve_references()
  config.dry_run = True
  jobs.run(config, str(tmp_path))
  out = capsys.readouterr().out
  assert 'documents       12\n' in out and 'estimated time' in out
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('store.path', '', 'needs store.path'),
    ('store.search', 'cluster', "on this host, but store.search is 'cluster'"),
    ('distances.fractions', '0.1,half', "'0.1,half' is not numbers"),
    ('distances.pairs', 0, 'distances.pairs=0 of 12 documents'),
    ('eval.limit', 1, 'of 1 documents'),
    ('retrieval.neighbors', 60, '60 neighbours asked of the fraction 0.2'),
  ],
)
def test_what_the_job_refuses(
  built, tmp_path, monkeypatch, key, value, message
):
  config = built.copy_and_resolve_references()
  section, name = key.split('.')
  config[section][name] = value
  monkeypatch.setattr(embed, 'load', None)  # All of it before that.
  with pytest.raises(ValueError, match=message):
    job.run(config, str(tmp_path))
