"""The `embed` benchmark with its rival, and with one that errs."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from configs import benchmark as benchmark_config
from tests import tiny
from tttnn import jobs
from tttnn.benchmarks import bench as bench_lib
from tttnn.benchmarks import embed
from tttnn.benchmarks import embed_report

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'launch' / 'rivals' / 'embed_torch.py'


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  path = tmp_path_factory.mktemp('texts') / 'a.jsonl'
  return tiny.write_jsonl(path, tiny.documents(60))


def make_config(texts, **changes):
  config = benchmark_config.get_config('embed,short')
  config.benchmark.texts = texts
  for key, value in changes.items():
    config.benchmark[key] = value
  return config


@pytest.fixture(scope='module')
def finished(texts, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('benchmark')
  jobs.run(make_config(texts), str(workdir))
  return workdir


def test_both_sides_are_measured_and_come_to_the_same(finished):
  result = json.loads((finished / 'benchmark.json').read_text())
  assert result['benchmark'] == 'embed' and result['device']['cores'] > 0
  ((name, shape),) = result['shapes'].items()
  assert (name, shape['texts']) == ('mini', 48)
  assert 0 < shape['checks'][bench_lib.PLAIN] < 1e-5
  ours, theirs = (
    shape['sides'][s] for s in (bench_lib.ENGINE, bench_lib.PLAIN)
  )
  for side in (ours, theirs):
    assert len(side['seconds']) == 2 and 0 < side['share_of_peak'] < 1
    assert side['texts_per_second'] == 48 / side['median_seconds']
  assert ours['padded_share'] < 0.2 < theirs['padded_share']
  ratio = theirs['median_seconds'] / ours['median_seconds']
  assert shape['ratios'] == {bench_lib.PLAIN: ratio}
  vectors = [np.load(finished / f'{s}.npy') for s in ('tttnn', 'PyTorch')]
  assert vectors[0].shape == vectors[1].shape == (48, 32)
  assert np.linalg.norm(vectors[0][0] - vectors[0][1]) > 0.01


def test_table_and_figure_tell_the_same(finished):
  result = json.loads((finished / 'benchmark.json').read_text())
  markdown = (finished / 'benchmark.md').read_text()
  (shape,) = result['shapes'].values()
  for side, measured in shape['sides'].items():
    (row,) = re.findall(rf'^.*mini: {side} .* GB.*$', markdown, re.MULTILINE)
    assert f'{shape["ratios"].get(side, 1.0):.2f}' in row
    assert f'{measured["padded_share"]:.0%}' in row
  assert embed_report.FIGURE in markdown
  (ax,) = embed_report.draw(result).axes
  lengths = [bar.get_width() for bar in ax.patches]
  assert lengths == [s['texts_per_second'] for s in shape['sides'].values()]
  assert (finished / 'benchmark.png').read_bytes().startswith(b'\x89PNG')


def test_a_rival_that_computes_something_else_is_refused(texts, tmp_path):
  right = 'total / count'
  text = SCRIPT.read_text()
  assert text.count(right) == 1
  shutil.copy(SCRIPT.with_name('torch_side.py'), tmp_path)
  script = tmp_path / 'other.py'
  # The mean over padding, too.
  script.write_text(text.replace(right, 'hidden.mean(dim=1)'))
  with pytest.raises(ValueError, match='embeddings of text .* begin with'):
    jobs.run(make_config(texts, rival=str(script)), str(tmp_path / 'w'))
  assert not (tmp_path / 'w' / 'benchmark.json').exists()


def test_without_a_rival_and_dry(texts, tmp_path, capsys):
  config = make_config(texts, rival='', repeats=1)
  config.dry_run = True
  jobs.run(config, str(tmp_path / 'w'))
  assert 'estimated time' in capsys.readouterr().out
  assert not (tmp_path / 'w').exists()
  config.dry_run = False
  jobs.run(config, str(tmp_path / 'w'))
  assert 'No rival (none was asked for)' in capsys.readouterr().out


def test_what_counts_as_equal():
  one = np.array([[3.0, 4.0], [30.0, 40.0]])
  near = one + [[4e-4, 0], [0, 4e-3]]
  assert embed.check_equal('x', near, one) == pytest.approx(8e-5)
  for far in (one + [[0, 0], [0, 6e-3]], one * [[1], [np.nan]]):
    with pytest.raises(ValueError, match='x: the embeddings of text 1'):
      embed.check_equal('x', far, one)
  with pytest.raises(ValueError, match=r'\(1, 2\) and \(2, 2\)'):
    embed.check_equal('x', one[:1], one)


def test_operations_are_those_of_products():
  shape = embed.Shape(2, 8, 2, context=16, texts=(1, 1))
  # Query, key, value and output; the MLP's two; scores and weighted values.
  a_token = 2 * (4 * 8 * 8 + 2 * 8 * 32)
  by_hand = [2 * (t * a_token + 2 * 2 * t * t * 8) for t in (5, 16)]
  assert shape.operations([5, 16]) == sum(by_hand)


def test_a_shape_that_is_none_is_an_error(texts, tmp_path):
  with pytest.raises(ValueError, match="'tiny' is none of small, base"):
    jobs.run(make_config(texts, shapes='tiny'), str(tmp_path))
