"""The `train` benchmark with its rival, and with one that errs."""

import json
import pathlib

import numpy as np
import pytest

from configs import benchmark as benchmark_config
from tttnn.benchmarks import train
from tttnn.benchmarks import train_engine
from tttnn.benchmarks import train_report
from tttnn.jobs import benchmark

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / 'launch' / 'rivals' / 'train_torch.py'


def config_of(texts, **changes):
  config = benchmark_config.get_config('train,short')
  config.benchmark.texts = str(texts)
  config.benchmark.update(changes)
  return config


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  rng = np.random.default_rng(0)
  words = [f'w{n}' for n in range(300)]
  path = tmp_path_factory.mktemp('texts') / 'texts.jsonl'
  with open(path, 'w') as file:
    for _ in range(60):
      text = ' '.join(rng.choice(words, 120))
      file.write(json.dumps({'text': text}) + '\n')
  return path


@pytest.fixture(scope='module')
def result(texts, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('train')
  config = config_of(texts, shapes='mini,mini-gpt2')
  benchmark.run(config, str(workdir))
  return json.loads((workdir / 'benchmark.json').read_text()), workdir


def test_both_sides_train_the_same_way_and_are_timed(result):
  result, workdir = result
  for name in ('mini', 'mini-gpt2'):
    shape = result['shapes'][name]
    # Of twenty batches; that steps count is what another rate below shows.
    assert len(set(shape['losses'])) == 20
    assert shape['checks']['PyTorch'] < 1e-4
    for side in ('tttnn', 'PyTorch'):
      measured = shape['sides'][side]
      assert len(measured['seconds']) == 2
      seconds = np.median(measured['seconds'])
      rate = 4 * 32 / seconds
      assert measured['tokens_per_second'] == pytest.approx(rate)
    slower = shape['sides']['PyTorch']['seconds_a_step']
    ours = shape['sides']['tttnn']['seconds_a_step']
    assert shape['ratios'] == {'PyTorch': pytest.approx(slower / ours)}
  markdown = (workdir / 'benchmark.md').read_text()
  assert '| mini: PyTorch |' in markdown and train_report.FIGURE in markdown
  assert len(train_report.draw(result).axes) == 2


def test_what_is_predicted_is_the_same_in_both_forms():
  arrays = {
    'tokens': np.arange(12, dtype=np.int32).reshape(1, 2, 6),
    'positions': np.array([[[2, 4], [1, 0]]], np.int32),
    'targets': np.array([[[70, 71], [72, 73]]], np.int32),
    'weights': np.array([[[0.3, 0.3], [0.4, 0.0]]], np.float32),
  }
  plain = train_engine._plain(arrays)
  assert plain['tokens'] is arrays['tokens']
  none = train_engine._NONE
  assert plain['targets'].tolist() == [
    [[none, none, 70, none, 71, none], [none, 72, none, none, none, none]]
  ]


def test_a_rival_that_trains_otherwise_is_found_out(texts, tmp_path):
  source = SCRIPT.read_text()
  changed = source.replace("lr=self.settings['learning_rate'],", 'lr=1e-2,')
  assert changed != source
  for name in ('torch_side.py', 'train_torch.py'):
    content = (SCRIPT.parent / name).read_text()
    (tmp_path / name).write_text(
      changed if name != 'torch_side.py' else content
    )
  config = config_of(texts, rival=str(tmp_path / 'train_torch.py'))
  with pytest.raises(ValueError, match='mini: tttnn and PyTorch: losses of'):
    benchmark.run(config, str(tmp_path / 'work'))


def test_without_a_rival_this_side_is_measured_alone(texts, tmp_path):
  benchmark.run(config_of(texts, rival=''), str(tmp_path))
  made = json.loads((tmp_path / 'benchmark.json').read_text())
  assert list(made['shapes']['mini']['sides']) == ['tttnn']
  assert 'none was asked for' in (tmp_path / 'benchmark.md').read_text()


def test_curves_that_differ_name_the_step_and_both_losses():
  ours, theirs = [3.0, 2.0, 1.0], [3.0, 2.0005, 1.002]
  assert train.check_equal('x', ours[:2], theirs[:2], 1e-3) == pytest.approx(
    5e-4
  )
  with pytest.raises(ValueError, match=r'x: losses of step 2 .*1\.0.*1\.002'):
    train.check_equal('x', ours, theirs, 1e-3)
  with pytest.raises(ValueError, match='step 1'):
    train.check_equal('x', [1.0, float('nan')], [1.0, 1.0], 1e-3)


def test_cost_is_told_beforehand(texts, capsys):
  config = config_of(texts)
  config.dry_run = True
  benchmark.run(config, '')
  out = capsys.readouterr().out
  assert 'benchmark (train)' in out
