"""The `select` benchmark, on small made-up pools."""

import json
import pathlib

import numpy as np
import pytest

from configs import benchmark as benchmark_config
from tttnn import jobs
from tttnn.benchmarks import select
from tttnn.benchmarks import select_report


def test_everything_is_measured_and_told(tmp_path, capsys):
  config = benchmark_config.get_config('select,short')
  jobs.run(config, str(tmp_path))
  result = json.loads((tmp_path / 'benchmark.json').read_text())
  ways = {'SIFT', 'Frank-Wolfe', select.RIVAL}
  assert set(result['seconds']) == ways
  for seconds in result['seconds'].values():
    assert len(seconds) == 6 and min(seconds) > 0
  printed = capsys.readouterr().out
  markdown = (tmp_path / 'benchmark.md').read_text()
  for words in ('10 picks of 40 candidates', 'times as fast as whole covar'):
    assert words in printed and words in markdown
  assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')


def test_without_a_rival(tmp_path, capsys):
  config = benchmark_config.get_config('select,short')
  config.benchmark.rival = ''
  jobs.run(config, str(tmp_path))
  assert 'SIFT' in capsys.readouterr().out
  assert not (tmp_path / 'select').exists()


def test_a_rival_with_other_picks_is_refused(tmp_path):
  config = benchmark_config.get_config('select,short')
  script = pathlib.Path(config.benchmark.rival).read_text()
  assert 'np.argmax(gains)' in script
  other = tmp_path / 'rival.py'
  other.write_text(script.replace('np.argmax(gains)', 'np.argmin(gains)'))
  config.benchmark.rival = str(other)
  with pytest.raises(ValueError, match='query 0: tttnn picks .* the rival'):
    jobs.run(config, str(tmp_path))


def test_pools_have_near_copies_nearest_first():
  shape = select.SHAPES['mini']
  queries_QxD, vectors_QxMxD = select.make_pools(shape, 0)
  for query_D, vectors_MxD in zip(queries_QxD, vectors_QxMxD, strict=True):
    distances_M = np.linalg.norm(vectors_MxD - query_D, axis=1)
    assert np.all(np.diff(distances_M) >= -1e-5)
    apart = np.linalg.norm(vectors_MxD[:, None] - vectors_MxD, axis=2)
    near = np.triu(apart < 0.02, 1)
    assert near.sum() >= shape.copies and apart[np.triu(~near, 1)].min() > 1


def test_the_ratio_is_of_medians():
  shape = {'queries': 2, 'pool': 4, 'dim': 3, 'picks': 2}
  result = {
    'shape': shape | {'topics': 1, 'copies': 0},
    'lambda': 0.01,
    'cores': 2,
    'different': {'sift': 2.0, 'frank_wolfe': 1.5},
    'seconds': {
      'SIFT': [0.004, 0.1, 0.004],
      'Frank-Wolfe': [0.008],
      select.RIVAL: [0.02, 0.024, 0.028],
    },
  }
  said = ' '.join(select_report.sentences(result))
  assert '6.0 times as fast' in said and '1.5 of Frank-Wolfe' in said
  (_, cells), *_ = select_report.tables_of(result)
  assert cells[2] == ['Frank-Wolfe', '4.00 ms', '2.00']


def test_wrong_shapes():
  config = benchmark_config.get_config('select')
  for shapes, message in (
    ('tiny', "'tiny' is none of full, mini"),
    ('full,mini', 'of select, name one'),
  ):
    config.benchmark.shapes = shapes
    with pytest.raises(ValueError, match=message):
      select.cost(config)
