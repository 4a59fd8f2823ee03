"""Methods side by side, on tiny models."""

import json
import math
import os
import shutil

import pytest

from configs import compare
from tests import world as world_lib
from tttnn import jobs

RATES = (1e-4, 1e-3)
NAMES = (
  'base',
  'dynamic_eval',
  'frank_wolfe',
  'in_context',
  'interpolation',
  'knn',
  'sift',
)


@pytest.fixture(scope='module')
def config(world, tmp_path_factory):
  """Of a comparison of some methods on few documents."""
  directory = tmp_path_factory.mktemp('compare')
  with open(world.eval.documents) as file:
    lines = file.readlines()
  for name, some in (('test', lines[:4]), ('validation', lines[4:7])):
    with open(directory / f'{name}.jsonl', 'w') as file:
      file.writelines(some)
  config = compare.get_config()
  for section in ('model', 'embedder', 'store'):
    config[section] = world[section]
  config.eval.documents = f'{directory}/test.jsonl'
  config.eval.validation = f'{directory}/validation.jsonl'
  config.eval.at = '0,1,3'
  config.retrieval.neighbors = 3
  config.selection.pool = 20
  config.compare.names = ','.join(NAMES)
  config.compare.learning_rates = ','.join(map(str, RATES))
  runs = dict(config.compare.runs)
  runs['dynamic_eval'] = runs['dynamic_eval'] | {'dynamic_eval.steps': 3}
  config.compare.runs = tuple(runs.items())
  return config


@pytest.fixture(scope='module')
def workdir(config, tmp_path_factory):
  directory = tmp_path_factory.mktemp('compared')
  jobs.run(config, str(directory))
  return directory


def bits(rows, place):
  nats = -sum(row['log_likelihood'][place] for row in rows)
  return nats / sum(row['num_bytes'] for row in rows) / math.log(2)


def test_each_run_is_a_run_of_evaluate(world, config, workdir, tmp_path):
  chosen = json.loads((workdir / 'compare.json').read_text())['chosen']
  for name, changes in (
    ('knn', {}),
    ('sift', {'selection__name': 'sift', 'selection__pool': 20}),
  ):
    alone = world_lib.changed(
      config,
      job='evaluate',
      ttt__learning_rate=chosen[name],
      **changes,
    )
    jobs.run(alone, str(tmp_path / name))
    found = world_lib.rows_of(workdir / 'runs' / name)
    expected = world_lib.rows_of(tmp_path / name)
    assert world_lib.timeless(found) == world_lib.timeless(expected)


def test_the_table_has_every_run_at_every_count(workdir):
  points = json.loads((workdir / 'compare.json').read_text())['points']
  found = {}
  for point in points:
    found.setdefault(point['label'], {})[point['count']] = point
  assert tuple(sorted(found)) == NAMES
  counts = {name: sorted(by_count) for name, by_count in found.items()}
  assert counts.pop('base') == [0]
  assert all(of_run == [1, 3] for of_run in counts.values())
  rows = world_lib.rows_of(workdir / 'runs' / 'knn')
  for count, place in ((1, 1), (3, 2)):
    assert found['knn'][count]['bits_per_byte'] == pytest.approx(
      bits(rows, place)
    )
  # Of another selection for each count.
  for count in (1, 3):
    rows = world_lib.rows_of(workdir / 'runs' / f'frank_wolfe-{count}')
    assert all(len(row['neighbors']) == count for row in rows)
    assert found['frank_wolfe'][count]['bits_per_byte'] == pytest.approx(
      bits(rows, 1)
    )
  # Looking up is paid once, and counts for every run.
  retrieve = {
    point['seconds']['retrieve']
    for name in ('knn', 'sift', 'in_context')
    for point in found[name].values()
  }
  assert len(retrieve) == 1
  assert retrieve.pop() > 0
  assert found['dynamic_eval'][1]['seconds']['retrieve'] == 0
  markdown = (workdir / 'compare.md').read_text()
  for name in NAMES:
    assert f'| {name} |' in markdown.replace('\\_', '_')
  for name in ('frontier', 'counts', 'seconds'):
    assert (workdir / f'{name}.png').read_bytes().startswith(b'\x89PNG')


def test_what_is_open_is_chosen_on_validation_documents(workdir):
  chosen = json.loads((workdir / 'compare.json').read_text())['chosen']
  assert set(chosen) == set(NAMES) - {'base', 'in_context'}
  for name in ('knn', 'dynamic_eval'):
    lowest = {}
    for rate in RATES:
      rows = world_lib.rows_of(workdir / 'validation' / f'{name}-{rate:g}')
      assert len(rows) == 3
      lowest[rate] = min(bits(rows, place) for place in range(3))
    assert chosen[name] == min(lowest, key=lowest.get)
  rows = world_lib.rows_of(workdir / 'validation' / 'interpolation')
  totals = [
    sum(values)
    for values in zip(
      *(row['by_alpha']['log_likelihood'] for row in rows), strict=True
    )
  ]
  alphas = rows[0]['by_alpha']['alpha']
  assert chosen['interpolation'] == alphas[totals.index(max(totals))]
  for row in world_lib.rows_of(workdir / 'runs' / 'interpolation-3'):
    assert row['alpha'] == chosen['interpolation']


def test_a_rerun_changes_nothing(config, workdir):
  def state():
    return {
      os.path.join(directory, name): os.stat(
        os.path.join(directory, name)
      ).st_mtime_ns
      for directory, _, names in os.walk(workdir)
      for name in names
      if name != 'config.json'
    }

  before = state()
  jobs.run(config, str(workdir))
  assert state() == before


def test_fewer_documents_leave_the_rows_of_others_out(
  config, workdir, tmp_path
):
  for name in ('neighbors', 'runs', 'validation'):
    shutil.copytree(workdir / name, tmp_path / name)
  fewer = world_lib.changed(config, eval__limit=2, compare__names='base,knn')
  jobs.run(fewer, str(tmp_path))
  points = json.loads((tmp_path / 'compare.json').read_text())['points']
  rows = world_lib.rows_of(tmp_path / 'runs' / 'knn')
  assert len(rows) == 4
  assert {point['documents'] for point in points} == {2}
  assert points[-1]['bits_per_byte'] == pytest.approx(bits(rows[:2], 2))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'eval__validation': ''}, 'knn, .*eval.validation, which is empty'),
    (
      {'compare__names': 'none*'},
      "names='none\\*' fits none of the runs: base",
    ),
    ({'eval__at': '0,9'}, 'asks for 9'),
    ({'selection__pool': 99}, 'neighbors=99, but the store'),
  ],
)
def test_bad_input_is_refused(config, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(world_lib.changed(config, **changes), str(tmp_path))
