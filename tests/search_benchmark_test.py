"""The `search` benchmark, on a small made-up store."""

import json

import numpy as np
import pytest

from configs import benchmark as benchmark_config
from tttnn import jobs
from tttnn.benchmarks import bench
from tttnn.benchmarks import search
from tttnn.benchmarks import search_report


@pytest.mark.slow
def test_everything_is_measured_and_told(tmp_path, capsys, monkeypatch):
  shape = search.Shape(3000, 6000, 16, 2, 2, 0.2, 5)
  monkeypatch.setitem(search.SHAPES, 'mini', shape)
  config = benchmark_config.get_config('search,short')
  jobs.run(config, str(tmp_path))
  result = json.loads((tmp_path / 'benchmark.json').read_text())
  assert set(result['round_trips']) == {'2000', '3000'}
  for trip in result['round_trips'].values():
    assert trip['here_seconds'] > 0 and trip['server_seconds'] > 0
  for taken in result['batches'].values():
    assert set(taken) == {'faiss', 'host', 'device'} and min(taken.values()) > 0
  sides = result['load']
  assert len(sides) >= 2 and all(min(rates) > 0 for rates in sides.values())
  assert 0 < min(result['start_seconds']) < 60
  printed = capsys.readouterr().out
  markdown = (tmp_path / 'benchmark.md').read_text()
  for words in ('Exact search in 3,000 vectors', 'times the answers of one q'):
    assert words in printed and words in markdown
  assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')


def test_sides_that_find_something_else_are_refused(tmp_path, monkeypatch):
  store = search.make_store(tmp_path, 500, 8, 0)
  queries = np.zeros((4, 8), np.float32)
  queries[:, 0] = np.arange(4)
  np.save(tmp_path / 'q.npy', queries, allow_pickle=False)
  answers = iter([(1.0, {'0': [1, 2]}), (1.0, {'0': [1, 3]})] * 2)
  monkeypatch.setattr(search, 'asked', lambda *_: next(answers))
  script = tmp_path / 'rival.py'
  script.write_text("print('ready', flush=True)\nimport time; time.sleep(60)")
  shape = search.SHAPES['mini']
  with pytest.raises(ValueError, match='finds other neighbours than tttnn'):
    search.load(store, tmp_path / 'q.npy', shape, 1, str(script))


def test_the_ratio_is_to_the_best_of_the_others():
  result = {
    'shape': {'dim': 8, 'clients': 2, 'outstanding': 3, 'large': 9},
    'k': 10,
    'cores': 2,
    'start_seconds': [1.0, 3.0, 2.0],
    'load': {bench.ENGINE: [30.0, 40.0], 'a': [5.0], 'b': [7.0]},
  }
  said = ' '.join(search_report.sentences(result))
  assert '5.0 times the answers of b' in said and 'starts in 2.00 s' in said


@pytest.mark.parametrize(
  'shapes, message',
  [
    ('tiny', "'tiny' is none of full, mini"),
    ('full,mini', 'of search, name one'),
  ],
)
def test_wrong_shapes(shapes, message):
  config = benchmark_config.get_config('search,short')
  config.benchmark.shapes = shapes
  with pytest.raises(ValueError, match=message):
    search.cost(config)
