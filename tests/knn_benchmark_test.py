"""The `knn_lm` benchmark, on a model and texts that are small."""

import dataclasses
import json
import math

import numpy as np
import pytest

from configs import benchmark as benchmark_config
from tests import figures
from tests import tiny
from tttnn import jobs
from tttnn import language_model
from tttnn.benchmarks import knn_build
from tttnn.benchmarks import knn_lm
from tttnn.benchmarks import knn_lm_report
from tttnn.benchmarks import knn_saved
from tttnn.benchmarks import knn_speed
from tttnn.benchmarks import knn_world
from tttnn.corpus import jsonl
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib
from tttnn.jobs import knn
from tttnn.methods import knn_tuning
from tttnn.reporting import plots

SHAPE = knn_lm.SHAPES['mini']
K = SHAPE.neighbors


def make_config(texts, **changes):
  config = benchmark_config.get_config('knn_lm,short')
  config.benchmark.texts = texts
  for key, value in changes.items():
    config.benchmark[key] = value
  return config


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  path = tmp_path_factory.mktemp('texts') / 'a.jsonl'
  return tiny.write_jsonl(path, tiny.documents(200))


@pytest.fixture(scope='module')
def finished(texts, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('benchmark')
  jobs.run(make_config(texts), str(workdir))
  return workdir


def refuse(constant):
  raise ValueError(f'{constant} is no JSON')


def read(workdir) -> dict:
  text = (workdir / 'benchmark.json').read_text()
  return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope='module')
def world(finished, texts):
  return knn_world.prepare(make_config(texts), str(finished), SHAPE)


@pytest.fixture(scope='module')
def queries(world):
  """The keys of all tokens of the documents."""
  model = language_model.load(world.config)
  reader = knn.Reader(model, 'ffn_input')
  cases = [model.case(document, 'whole', 0) for document in world.documents]
  return np.concatenate([reader(case).keys_TxD for case in cases])


@pytest.fixture(scope='module')
def exact(world):
  """What the benchmark's run has kept, searched for by nobody."""
  model = language_model.load(world.config)
  return world.exact(model, knn.Reader(model, 'ffn_input'))


@pytest.mark.slow
def test_store_and_documents_are_as_the_shape_says(world):
  store = world.store()
  assert SHAPE.entries <= store.manifest.rows < SHAPE.entries + 500
  model = language_model.load(world.config)
  assert (model.context, store.manifest.dim) == (SHAPE.context, SHAPE.width)
  stored = {*jsonl.read([world.config.corpus.train]).iter_texts()}
  documents = world.documents
  assert len(documents) > 1
  assert not {document.text for document in documents} & stored
  tokens = sum(len(model.case(d, 'whole', 0).tokens) for d in documents)
  assert tokens == read(world.directory.parent)['parts']['speed']['tokens']
  assert SHAPE.scored <= tokens < SHAPE.scored + 500


@pytest.mark.slow
def test_recall_is_that_of_brute_force(finished, world, queries, exact):
  store = world.store()
  keys = store.gather(np.arange(store.manifest.rows)).astype(np.float64)
  squares = (
    np.square(queries.astype(np.float64)).sum(axis=1)[:, None]
    + np.square(keys).sum(axis=1)
    - 2 * queries.astype(np.float64) @ keys.T
  )
  nearest = np.argsort(squares, axis=1, kind='stable')[:, :K]
  expected = np.sqrt(np.take_along_axis(squares, nearest, axis=1))
  np.testing.assert_allclose(exact.distances_Txk, expected, atol=1e-3)
  searches = read(finished)['parts']['speed']['searches']
  assert searches['Flat']['recall'] == 1
  for search in SHAPE.searches:
    opened = store_lib.open(store.directory, search.spec)
    engine = engine_lib.Engine(opened, threads=1)
    _, ids = engine.search(queries, K * search.refine)
    found = np.mean(
      [
        len({*a} & {*b}) / K
        for a, b in zip(ids[:, :K].tolist(), nearest.tolist(), strict=True)
      ]
    )
    # Equally near ones count in either way.
    assert searches[search.name]['recall'] == pytest.approx(found, abs=0.01)
    assert 0.1 < found < 1


@pytest.mark.slow
def test_all_sides_are_timed_and_their_ratios_shown(finished):
  result = read(finished)
  markdown = (finished / 'benchmark.md').read_text()
  build, speed = result['parts']['build'], result['parts']['speed']
  assert SHAPE.part <= build['tokens'] < SHAPE.part + 500
  ratios = knn_lm_report.of_forward(build)
  medians = {side: np.median(taken) for side, taken in build['seconds'].items()}
  for side in (knn_build.STORE, knn_build.WHOLE):
    assert len(build['seconds'][side]) == 2
    assert ratios[side] == medians[side] / medians[knn_build.FORWARD] > 0
  assert ratios[knn_build.STORE] < ratios[knn_build.WHOLE]
  assert f'takes {ratios[knn_build.STORE]:.2f} times the forward' in markdown
  names = [search.name for search in (knn_world.EXACT, *SHAPE.searches)]
  sides = [knn_speed.MODEL, knn_speed.CACHED, knn_speed.CACHE, *names]
  assert [*speed['seconds']] == sides and [*speed['searches']] == names
  shares = knn_lm_report.of_model(speed)
  for name in sides:
    rate = speed['tokens'] / np.median(speed['seconds'][name])
    assert f'{rate:,.0f}' in markdown
    alone = speed['tokens'] / np.median(speed['seconds'][knn_speed.MODEL])
    assert shares[name] == pytest.approx(rate / alone)


@pytest.mark.slow
def test_perplexities_are_those_of_the_rest_of_the_documents(finished, exact):
  found = read(finished)['parts']['retomaton']
  alone = mixed = 0.0
  tokens = 0
  for document in range(1, len(exact.offsets) - 1, 2):
    for t in range(*exact.offsets[document : document + 2]):
      shares = np.exp(-(exact.distances_Txk[t] ** 2) / found['temperature'])
      hits = exact.values_Txk[t] == exact.targets_T[t]
      p = found['lambda'] * shares[hits].sum() / shares.sum()
      p += (1 - found['lambda']) * math.exp(exact.log_p_lm_T[t])
      mixed += math.log(p)
      alone += exact.log_p_lm_T[t]
      tokens += 1
  assert found['tokens'] == tokens
  for total, name in ((alone, 'model'), (mixed, 'exact')):
    expected = math.exp(-total / tokens)
    assert found[f'{name}_perplexity'] == pytest.approx(expected, rel=1e-4)
  points = {(p['clusters'], p['min_knns']): p for p in found['points']}
  assert {*points} == {(c, m) for c in (0, 30) for m in ('1', 'inf')}
  for (_, min_knns), point in points.items():
    assert point['perplexity'] < found['model_perplexity']
    if min_knns == 'inf':
      assert point['saved'] == 0
    else:
      assert 0 < point['saved'] < 1
  assert len({point['perplexity'] for point in points.values()}) == 4


@pytest.mark.slow
def test_tables_and_figure_tell_of_all_parts(finished):
  result = read(finished)
  markdown = (finished / 'benchmark.md').read_text()
  for point in result['parts']['retomaton']['points']:
    assert f'{point["saved"]:.1%}' in markdown
    assert f'{point["perplexity"]:,.2f}' in markdown
  assert (finished / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
  fig = knn_lm_report.draw(result)
  figures.assert_nothing_is_cut_off(fig)
  # Flat, one with lists, one without, and two levels; entries, states, level.
  assert [len(ax.lines) for ax in fig.axes] == [5, 3]


@pytest.mark.slow
def test_a_rerun_goes_on_with_what_is_missing(finished, texts, monkeypatch):
  before = read(finished)
  (finished / 'knn_lm' / 'speed.json').unlink()
  told = before['parts']['speed'] | {'documents': 77}
  parts = dict.fromkeys(knn_lm.PARTS) | {'speed': lambda world: told}
  monkeypatch.setattr(knn_lm, 'PARTS', parts)
  jobs.run(make_config(texts, parts='speed'), str(finished))
  after = read(finished)
  assert after['parts'] == before['parts'] | {'speed': told}
  assert after['made'] == before['made']
  assert '77 documents' in (finished / 'benchmark.md').read_text()
  config = make_config(texts)
  config.seed = 1
  with pytest.raises(ValueError, match='of another benchmark .*seed: 0 there'):
    jobs.run(config, str(finished))


@pytest.mark.slow
def test_numbers_that_are_wrong_are_refused(world):
  model = language_model.load(world.config)
  reader = knn.Reader(model, 'ffn_input')
  exact = world.exact(model, reader)
  knn_speed.check_exact(world, model, reader, exact)
  off = exact.distances_Txk.copy()
  off[3, 5] *= 1.01
  other = dataclasses.replace(exact, distances_Txk=off)
  with pytest.raises(ValueError, match='distances of the exact search are'):
    knn_speed.check_exact(world, model, reader, other)
  scores = np.add.reduceat(exact.log_p_lm_T, exact.offsets[:-1])
  side = {knn_speed.MODEL: scores.tolist}
  knn_speed.check(side, exact, world.config.knn)
  scores[1] *= 1.001
  with pytest.raises(ValueError, match="'model alone' differ by 1.0e-03"):
    knn_speed.check(side, exact, world.config.knn)


def test_batches_hold_all_windows_longest_first():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 512, 100)
  windows = [
    knn_build.rolling.Window([*range(1, length + 1)], [1]) for length in lengths
  ]
  made = knn_build.batches(windows, 512)
  rows = np.concatenate([np.count_nonzero(batch, axis=1) for batch in made])
  assert rows[rows > 0].tolist() == sorted(lengths, reverse=True)
  assert all(batch.size <= 2048 for batch in made)
  used = sum(map(np.count_nonzero, made)) / sum(batch.size for batch in made)
  assert used > 0.75


def test_every_second_document_is_taken():
  offsets = np.array([0, 2, 5, 5, 9])
  whole = knn_tuning.Cache(
    metric='l2',
    ids_Txk=np.arange(18).reshape(9, 2),
    distances_Txk=np.ones((9, 2), np.float32),
    values_Txk=np.ones((9, 2), int),
    log_p_lm_T=-np.arange(9.0),
    targets_T=np.arange(9),
    offsets=offsets,
  )
  even, odd = knn_saved.subset(whole, 0), knn_saved.subset(whole, 1)
  assert even.targets_T.tolist() == [0, 1] and even.offsets.tolist() == [
    0,
    2,
    2,
  ]
  assert odd.targets_T.tolist() == [2, 3, 4, 5, 6, 7, 8]
  assert odd.offsets.tolist() == [0, 3, 7]
  assert odd.ids_Txk.tolist() == whole.ids_Txk[2:].tolist()


def test_the_best_search_is_the_fastest_of_enough_recall():
  found = {
    'seconds': {knn_speed.MODEL: [1.0], 'a': [2.0], 'b': [4.0], 'Flat': [9.0]},
    'searches': {
      'a': {'recall': 0.79},
      'b': {'recall': 0.8},
      'Flat': {'recall': 1.0},
    },
  }
  assert knn_lm_report.best_search(found) == 'b'
  del found['searches']['b']
  assert knn_lm_report.best_search(found) == 'Flat'


def test_panels_of_one_line_and_of_many():
  lines = {f'line {i}': ([1, 2, 3], [i, i + 1, 4 * i]) for i in range(4)}
  panels = [
    plots.Panel('x', 'a long label of an axis', lines, {'a level': 2.5}),
    plots.Panel('seconds', 'y', {'one': ([1], [2])}, {}),
  ]
  fig = plots.panels(panels)
  figures.assert_nothing_is_cut_off(fig)
  assert [len(ax.lines) for ax in fig.axes] == [5, 1]
  looks = {(x.get_color(), x.get_marker()) for x in fig.axes[0].lines}
  assert len(looks) == 5  # Or two lines could not be told apart.


def test_too_few_texts_are_an_error(tmp_path):
  path = tiny.write_jsonl(tmp_path / 'a.jsonl', tiny.documents(20))
  with pytest.raises(ValueError, match='tokens, 4,200 are needed'):
    jobs.run(make_config(path), str(tmp_path / 'w'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'parts': 'build,sped'}, "'sped' is none of build, speed, retomaton"),
    ({'shapes': 'mini,full'}, 'of knn_lm, name one'),
  ],
)
def test_wrong_settings_are_errors(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(make_config('', **changes), str(tmp_path))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
  config = make_config('')
  config.dry_run = True
  jobs.run(config, str(tmp_path))
  assert 'estimated time' in capsys.readouterr().out
  assert not list(tmp_path.iterdir())
