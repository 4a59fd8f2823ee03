"""The benchmark job with a rival, without one, and with one that errs."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import benchmark as benchmark_config
from tests import figures
from tttnn import jobs
from tttnn.benchmarks import bench as bench_lib
from tttnn.benchmarks import compare
from tttnn.benchmarks import process
from tttnn.benchmarks import rival
from tttnn.benchmarks import sides
from tttnn.benchmarks import ttt
from tttnn.benchmarks import ttt_report
from tttnn.benchmarks import workload

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'launch' / 'rivals' / 'ttt_torch.py'


def make_config(name='ttt', /, **changes):
  config = benchmark_config.get_config(f'{name},short')
  for key, value in changes.items():
    config.benchmark[key] = value
  return config


def read(workdir) -> dict:
  return json.loads((workdir / 'benchmark.json').read_text())


def python_without_torch(directory) -> str:
  """An interpreter that is this one, but for its torch."""
  (directory / 'torch.py').write_text("raise ImportError('there is no torch')")
  python = directory / 'python'
  python.write_text(
    f'#!/bin/sh\nPYTHONPATH={directory} exec {sys.executable} "$@"\n'
  )
  python.chmod(0o755)
  return str(python)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A work directory, and what was printed."""
  workdir = tmp_path_factory.mktemp('benchmark')
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'tttnn.main',
      '--config=configs/benchmark.py:ttt,short',
      f'--workdir={workdir}',
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert not done.returncode, done.stderr
  return workdir, done.stdout


def test_both_sides_are_measured_and_their_numbers_agree(finished):
  workdir, _ = finished
  result = read(workdir)
  assert result['benchmark'] == 'ttt' and result['device']['backend'] == 'cpu'
  (shape,) = result['shapes'].values()
  assert set(shape['sides']) == {bench_lib.ENGINE, bench_lib.PLAIN}
  for side in shape['sides'].values():
    assert len(side['seconds']) == 2
    assert 0 < sum(side['median_parts'].values()) <= 1.01 * max(side['seconds'])
    assert 0 < side['share_of_peak']['all'] < 1
    assert side['peak_bytes'] > 1e8
  for apart in shape['checks'].values():
    assert 0 < apart['log_likelihood'] < 1e-5
    assert apart['change'] < 1e-2
  for side, ratio in shape['ratios'].items():
    medians = [
      np.median(shape['sides'][s]['seconds']) for s in (side, bench_lib.ENGINE)
    ]
    assert ratio == pytest.approx(medians[0] / medians[1])
  chosen = result['rival']['chosen'][bench_lib.PLAIN]
  assert chosen['environment'] == dict(rival.ENVIRONMENTS[0])
  assert chosen['options'] == [] and chosen['about']['threads'] > 0
  assert result['versions']['jax'] == jax.__version__


def test_table_plot_and_terminal_tell_the_same(finished):
  workdir, printed = finished
  result = read(workdir)
  markdown = (workdir / 'benchmark.md').read_text()
  ((name, shape),) = result['shapes'].items()
  for side, measured in shape['sides'].items():
    ratio = f'{shape["ratios"].get(side, 1.0):.2f}'
    seconds = f'{measured["seconds_per_neighbor"]:.4f}'
    for text in (printed, markdown):
      (row,) = re.findall(rf'^.*{name}: {side} .* GB.*$', text, re.MULTILINE)
      assert ratio in row and seconds in row
  assert 'OMP_WAIT_POLICY=PASSIVE' in printed
  assert (workdir / 'benchmark.png').read_bytes().startswith(b'\x89PNG')


def test_cost_over_neighbors_and_windows_is_measured(finished):
  result = read(finished[0])
  curves = result['scaling']['curves']
  assert set(curves) == {'neighbors', 'windows'}
  for by_side in curves.values():
    assert set(by_side) == {bench_lib.ENGINE, bench_lib.PLAIN}
    for curve in by_side.values():
      assert len(curve['seconds']) == len(curve['counts'])
      # Eight times the work takes longer, however busy the machine is.
      assert curve['median_seconds'][-1] > curve['median_seconds'][0]
  fig = ttt_report.draw(result)
  assert [len(ax.lines) for ax in fig.axes] == [4, 4]
  figures.assert_nothing_is_cut_off(fig)


def test_without_torch_this_side_is_measured_alone(tmp_path, capsys):
  jobs.run(
    make_config(python=python_without_torch(tmp_path)), str(tmp_path / 'w')
  )
  result = read(tmp_path / 'w')
  (shape,) = result['shapes'].values()
  assert set(shape['sides']) == {bench_lib.ENGINE}
  assert shape['ratios'] == {} and shape['checks'] == {}
  assert shape['sides'][bench_lib.ENGINE]['median_seconds'] > 0
  assert result['rival']['missing'] == 'there is no torch'
  assert 'No rival (there is no torch)' in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_measured_on_an_accelerator(tmp_path, monkeypatch):
  """Without the accelerator: its bfloat16, its batches and its phases."""
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  config = make_config(repeats=1)
  bench = sides.Bench(
    config=config.benchmark,
    settings=sides.check_settings(config),
    batch_documents='8',
    workdir=str(tmp_path),
    seed=0,
    device={'backend': 'accelerator', 'kind': 'A', 'cores': 1},
  )
  shape = workload.SHAPES['mini']
  workload.write_model(bench.model(shape), shape, seed=0)
  measured = ttt.measure_shape(bench, 'mini', shape)
  # In bfloat16, and yet near to float32.
  assert (
    0 < measured['checks'][bench_lib.ENGINE]['bits_per_token'] < compare.BITS
  )
  usage = measured['sides'][bench_lib.ENGINE]['usage']['step']
  assert usage['documents_a_dispatch'] > 1
  assert 0 < measured['phases']['gradient_share_of_peak'] < 1
  assert 0 < measured['phases']['optimizer_share_of_bandwidth'] < 2
  _, (_, phases) = ttt_report.tables_of(
    {'shapes': {'mini': measured}, 'device': bench.device}
  )
  assert [len(row) for row in phases] == [7, 7]


def test_a_rival_that_computes_something_else_is_refused(tmp_path):
  text = SCRIPT.read_text()
  right = "lr=self.settings['learning_rate']"
  assert text.count(right) == 1
  shutil.copy(SCRIPT.with_name('torch_side.py'), tmp_path)
  script = tmp_path / 'other.py'
  script.write_text(text.replace(right, right.replace('=', '=1.05 * ')))
  # Its log-likelihoods differ by less than 1e-4.
  with pytest.raises(ValueError, match='change of document .* and -?[0-9]'):
    jobs.run(make_config(rival=str(script)), str(tmp_path / 'w'))
  assert not (tmp_path / 'w' / 'benchmark.json').exists()


def test_a_rival_that_fails_is_an_error_with_its_words(tmp_path):
  script = tmp_path / 'broken.py'
  script.write_text("raise SystemExit('no such luck')")
  with pytest.raises(ValueError, match='broken.py ended .*no such luck'):
    jobs.run(make_config(rival=str(script)), str(tmp_path / 'w'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'name': 'tt'},
      "'tt' is not one of embed, knn_lm, search, select, train, ttt",
    ),
    ({'shapes': 'mini,large'}, "'large' is none of"),
    ({'rival': '/nowhere.py'}, "'/nowhere.py' is no file"),
  ],
)
def test_wrong_settings_are_errors(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(make_config(**changes), str(tmp_path))


def test_settings_that_the_rival_does_not_know_are_errors(tmp_path):
  for key, value in (('trainable', 'lora'), ('dropout', True)):
    config = make_config()
    config.ttt[key] = value
    with pytest.raises(ValueError, match=key):
      jobs.run(config, str(tmp_path))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
  config = make_config()
  config.dry_run = True
  jobs.run(config, str(tmp_path))
  assert 'estimated time' in capsys.readouterr().out
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', workload.SHAPES)
def test_operations_are_those_of_the_formula(name):
  shape = workload.SHAPES[name]
  layers, width, vocab = shape.layers, shape.width, shape.vocab_size
  # Two norms, attention and MLP with their biases; the last norm; the table.
  block = 12 * width**2 + 13 * width
  assert shape.params == layers * block + 2 * width + vocab * width
  document = {'tokens': [0] * 10, 'neighbors': [[0] * (shape.window + 5), [0]]}
  useful = workload.operations(shape, [document])
  forward = {
    t: 2 * shape.params * t + 2 * layers * t**2 * width
    for t in (5, 10, shape.window)
  }
  assert useful.steps == 2
  assert useful.train == 3 * (forward[shape.window] + forward[5])
  assert useful.score == 3 * forward[10]


def test_documents_are_as_the_shape_says_and_always_the_same(tmp_path):
  shape = workload.SHAPES['mini']
  lengths = workload.lengths(shape, 5, 3, seed=1)
  path = str(tmp_path / 'a' / 'd.json')
  documents = workload.write_documents(path, shape, lengths, seed=1)
  assert json.loads(pathlib.Path(path).read_text()) == documents
  for document, (own, others) in zip(documents, lengths, strict=True):
    assert len(document['tokens']) == own
    assert [len(n) for n in document['neighbors']] == others
    ids = {*document['tokens'], *sum(document['neighbors'], [])}
    assert min(ids) >= 0 and max(ids) < shape.start
  assert lengths == workload.lengths(shape, 5, 3, seed=1)
  assert lengths != workload.lengths(shape, 5, 3, seed=2)
  low, high = shape.lengths
  drawn = [n for own, others in lengths for n in (own, *others)]
  assert low <= min(drawn) and max(drawn) <= high


def answer(scores, losses=((1.0,),)):
  return {'log_likelihood': scores, 'train_loss': losses}


@pytest.mark.parametrize(
  ('scores', 'losses', 'name'),
  [
    ([[-1000.2, -990.2]], [[1.0]], 'log_likelihood'),
    ([[-1000.0, -989.95]], [[1.0]], ''),  # Within both tolerances.
    ([[-1000.0, -989.91]], [[1.0]], ''),
    ([[-1000.0, -990.0]], [[1.001]], 'train_loss'),
    ([[-1000.0, float('nan')]], [[1.0]], 'log_likelihood'),
  ],
)
def test_what_counts_as_equal(scores, losses, name):
  expected = answer([[-1000.0, -990.0]])
  if not name:
    compare.check_equal('x', answer(scores), expected)
    return
  with pytest.raises(ValueError, match=f'x: {name} of document 0'):
    compare.check_equal('x', answer(scores, losses), expected)


def test_an_adaptation_of_another_size_is_not_equal():
  # By the log-likelihoods alone these agree to 1e-4.
  with pytest.raises(ValueError, match='change of document 0, .* 1.5'):
    compare.check_equal(
      'x', answer([[-10000.0, -9998.5]]), answer([[-10000.0, -9999.0]])
    )


def test_bits_a_token_are_those_of_all_documents():
  documents = [{'tokens': [0] * 30}, {'tokens': [0] * 70}]
  one = answer([[-30.0, -29.0], [-70.0, -69.0]])
  near = answer([[-30.3, -29.0], [-70.3, -69.0]])
  apart = compare.check_bits('x', near, one, documents)
  assert apart == pytest.approx(0.6 / 100 / np.log(2))
  far = answer([[-30.0, -29.0], [-70.0, -68.0]])
  with pytest.raises(ValueError, match='bits a token'):
    compare.check_bits('x', far, one, documents)


def test_a_line_through_points_of_one_is_that_line():
  line = compare.line([1, 2, 4, 8], [3.5, 6.5, 12.5, 24.5])
  assert line['slope'] == pytest.approx(3)
  assert line['intercept'] == pytest.approx(0.5)
  assert line['r2'] == pytest.approx(1)
  bent = compare.line([1, 2, 4, 8], [1, 4, 16, 64])
  assert bent['r2'] < 0.97


ECHO = """
import sys
for line in sys.stdin:
  print(line, end='', flush=True)
"""


def test_a_process_ends_with_its_context_and_on_an_error():
  with process.Process('echo', [sys.executable, '-c', ECHO], {}) as echo:
    assert echo.ask(a=[1, 'x']) == {'a': [1, 'x']}
    pid = echo._process.pid
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)
  sleep = 'import time; time.sleep(1000)'
  with (
    pytest.raises(KeyboardInterrupt),
    process.Process('sleep', [sys.executable, '-c', sleep], {}) as sleeping,
  ):
    pid = sleeping._process.pid
    raise KeyboardInterrupt
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)


def test_the_fastest_setting_comes_first(tmp_path):
  script = tmp_path / 'rival.py'
  script.write_text("""
import json, os, sys
for line in sys.stdin:
  print(json.dumps({'seconds': float(os.environ['TAKES'])}), flush=True)
""")
  settings = [
    rival.Setting((), {'TAKES': takes}) for takes in ('2.0', '1.5', '9.0')
  ]
  trials = rival.try_all(str(script), '', settings, {}, {})
  assert [trial.seconds for trial in trials] == [[1.5] * 2, [2.0] * 2, [9.0]]
