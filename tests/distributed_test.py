"""Two processes of four devices each do what one does, and end together."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import distributed_worker
from tests import world as world_lib
from tttnn import distributed
from tttnn import jobs
from tttnn import settings
from tttnn import watch
from tttnn.scoring import token_scores

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COUNT = world_lib.COUNT
# Seconds in which the others are to end; as many for a busy machine.
BOUND = 40


class Processes:
  """Two processes of `tests/distributed_worker.py`, killed at the end."""

  def __init__(self, what, arguments, environment=lambda i: {}):
    self._all = []
    for i in range(2):
      mine = arguments(i) if callable(arguments) else arguments
      self._all.append(
        subprocess.Popen(
          [sys.executable, '-m', 'tests.distributed_worker', what]
          + [json.dumps(argument) for argument in mine],
          cwd=ROOT,
          env=os.environ
          | {'JAX_NUM_CPU_DEVICES': '4', 'TTTNN_PROCESS': str(i)}
          | environment(i),
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self._all:
      process.kill()
      process.communicate()

  def __getitem__(self, i):
    return self._all[i]

  def end(self, i, seconds):
    """(exit code, what it said) of a process that is to end so soon."""
    out, err = self._all[i].communicate(timeout=seconds)
    return self._all[i].returncode, out + err


def two_processes():
  with watch.listen(0) as listener:
    port = listener.getsockname()[1]
  return {'coordinator': f'localhost:{port}', 'processes': 2, 'timeout': 120.0}


def overrides(config):
  """What is to be said of a config to another process."""
  keys = settings.flatten(config) | {
    f'distributed.{key}': value for key, value in two_processes().items()
  }
  return {
    key: value for key, value in keys.items() if not isinstance(value, tuple)
  }


def wait_for_rows(path, count):
  end = time.monotonic() + 120
  while not os.path.exists(path) or len(path.read_text().splitlines()) < count:
    assert time.monotonic() < end, path
    time.sleep(0.05)


def assert_equal(rows, expected):
  assert [row['doc_id'] for row in rows] == [row['doc_id'] for row in expected]
  for row, wanted in zip(
    world_lib.timeless(rows), world_lib.timeless(expected), strict=True
  ):
    for name in ('log_likelihood', 'train_loss'):
      np.testing.assert_allclose(row.pop(name), wanted.pop(name), rtol=1e-5)
    assert row == wanted


def summary_of(workdir):
  """Of one process or several: what does not tell how it was run."""
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['config'].pop('distributed')
  summary.pop('seconds_per_document')
  return json.loads(
    json.dumps(summary), parse_float=lambda text: f'{float(text):.5g}'
  )


@pytest.mark.slow
@pytest.mark.parametrize('method, victim', [('ttt', 1), ('base', 0)])
def test_killed_and_resumed_it_gives_what_one_process_gives(
  world, tmp_path, method, victim
):
  config = world_lib.changed(world, method=method, eval__save_tokens=True)
  alone, shared = tmp_path / 'alone', tmp_path / 'shared'
  jobs.run(config, str(alone))
  other = 1 - victim
  arguments = [str(shared), overrides(config), victim]
  with Processes('evaluate', arguments) as pair:
    wait_for_rows(shared / f'results.{victim}.jsonl', 2)
    wait_for_rows(shared / f'results.{other}.jsonl', COUNT // 2)
    pair[victim].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    code, said = pair.end(other, BOUND)
    print(f'{time.monotonic() - begin:.1f} s after the kill')
  assert code == 1
  named = rf'^error: process {victim} of 2 \(.+, pid {pair[victim].pid}\) died$'
  assert re.search(named, said, re.MULTILINE), said
  assert not os.path.exists(shared / 'summary.json')
  done = {
    row['doc_id']: row
    for i in range(2)
    for row in world_lib.rows_of(shared, f'results.{i}.jsonl')
  }
  assert len(done) == 2 + COUNT // 2
  # What one process left, the next two go on with, or the next one.
  if victim:
    with Processes('evaluate', [str(shared), overrides(config)]) as pair:
      for i in range(2):
        code, said = pair.end(i, 120)
        assert code == 0, said
        assert (f'{COUNT} documents, {len(done)} done' in said) == (i == 0)
  else:
    jobs.run(config, str(shared))
  rows = world_lib.rows_of(shared)
  if not victim:  # One process writes the rows as they come.
    rows.sort(key=lambda row: row['doc_id'])
  assert_equal(rows, world_lib.rows_of(alone))
  for row in rows:
    assert row == done.get(row['doc_id'], row)
  assert summary_of(shared) == summary_of(alone)
  assert not list(shared.glob('results.?.jsonl'))
  assert not list(shared.glob('tokens.?.bin'))
  scores = token_scores.Reader(str(shared))
  assert scores.ids == {row['doc_id'] for row in rows}
  for row in rows:
    scores.read(row['doc_id']).of_row(row)  # Refuses what is not the row's.


@pytest.mark.slow
def test_a_step_counts_all_devices_and_does_not_wait_for_the_dead(tmp_path):
  path = str(tmp_path / 'trained.npz')
  with Processes('collective', [two_processes(), path, 1]) as pair:
    code, said = pair.end(0, 120)
    assert 'the sum over 8 devices is 28.0' in said
    assert (code, pair.end(1, 1)[0]) == (1, -signal.SIGKILL)
    named = rf'^error: process 1 of 2 \(.+, pid {pair[1].pid}\) died$'
    assert re.search(named, said, re.MULTILINE), said
  # The same steps on whole batches by one device.
  model, params = distributed_worker.model()
  gradient = jax.jit(
    jax.value_and_grad(functools.partial(distributed_worker.loss, model))
  )
  about, losses = distributed_worker.TRAINED, []
  for step in range(about['steps']):
    tokens_BxT = np.stack(
      [distributed_worker.row(step, i) for i in range(about['rows'])]
    )
    loss, slope = gradient(params, tokens_BxT)
    losses.append(float(loss))
    params = jax.tree.map(lambda x, g: x - about['rate'] * g, params, slope)
  found = np.load(path)
  np.testing.assert_allclose(found['losses'], losses, rtol=1e-5)
  assert losses[-1] != pytest.approx(losses[0], rel=1e-2)
  leaves = jax.tree.leaves(params)
  for i, leaf in enumerate(leaves):
    np.testing.assert_allclose(found[f'arr_{i}'], leaf, rtol=0, atol=1e-5)
  # A process holds half of all weights, but for those that do not divide.
  whole = sum(leaf.nbytes for leaf in leaves)
  assert whole / 2 <= found['held'] < 0.6 * whole


def slurm(job, i):
  """What SLURM sets in two tasks on this host."""
  return {
    'SLURM_JOB_ID': str(job),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(i),
    'SLURM_LOCALID': str(i),
  }


@pytest.mark.slow
@pytest.mark.parametrize('auto', [False, True])
def test_an_error_of_one_process_is_told_to_the_other(world, tmp_path, auto):
  common = overrides(world_lib.changed(world, method='base'))
  # Of auto, JAX makes a port of the number of the job.
  job = int(common['distributed.coordinator'].split(':')[1])
  if auto:
    common |= {
      'distributed.auto': True,
      'distributed.coordinator': '',
      'distributed.processes': 1,
    }
  with Processes(
    'evaluate',
    lambda i: [str(tmp_path), common | {'seed': i}],
    lambda i: slurm(job, i) if auto else {},
  ) as pair:
    (code, said), (other_code, other_said) = (pair.end(i, 120) for i in (0, 1))
  assert code == other_code == 1
  text = 'processes differ in their config (seed: 0 there, 1 now)'
  assert f'ValueError: {text}' in other_said
  who = rf'process 1 of 2 \(.+, pid {pair[1].pid}\)'
  named = rf'^error: {who} failed: {re.escape(text)}$'
  assert re.search(named, said, re.MULTILINE), said


@pytest.mark.parametrize(
  'given, message',
  [
    ({'processes': 0}, 'processes=0'),
    ({'timeout': 0.0}, 'timeout=0'),
    ({'processes': 2}, "coordinator='' is not HOST:PORT"),
    ({'processes': 2, 'coordinator': 'a:b'}, "coordinator='a:b' is not"),
    ({'processes': 2, 'coordinator': 'a:1'}, r'\$TTTNN_PROCESS says.*is \'\''),
    ({'processes': 2, 'coordinator': 'a:1', 'process': 2}, 'is not in 0..1'),
    ({'auto': True, 'processes': 2}, 'auto=True finds out'),
    ({'auto': True, 'coordinator': 'a:1'}, 'auto=True finds out'),
  ],
)
def test_wrong_settings_are_refused(monkeypatch, given, message):
  monkeypatch.delenv('TTTNN_PROCESS', raising=False)
  with pytest.raises(ValueError, match=message):
    distributed.Settings(**given)


def test_the_environment_says_which_process_this_is(monkeypatch):
  monkeypatch.setenv('TTTNN_PROCESS', '1')
  found = distributed.Settings('[::1]:90', processes=2)
  assert (found.index, found.address) == (1, ('::1', 90))


def test_one_process_needs_no_other_and_does_not_import_jax():
  code = (
    'import sys; from tttnn import distributed as d\n'
    'with d.session(d.Settings()), d.main_first("x"):\n'
    '  d.meet("y"); d.progress(); print(d.index(), d.count(), d.part([1, 2]))\n'
    'assert "jax" not in sys.modules'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == ('0 1 [1, 2]\n', '')


def test_jobs_of_one_process_refuse_several(world, tmp_path):
  config = world_lib.changed(world, job='build', distributed__processes=2)
  config.distributed.update(coordinator='localhost:1', process=1)
  with pytest.raises(ValueError, match="'build' is a run of one process"):
    jobs.run(config, str(tmp_path))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'ttt__optimizer_state': 'carry'}, "optimizer_state='carry'.*2 processes"),
    ({'ttt__reset_weights': False}, 'reset_weights=False.*2 processes'),
    ({'retrieval__save': 'a'}, "retrieval.save='a' is written by a run of one"),
    ({'knn__cache': 'a'}, "knn.cache='a' is written by a run of one"),
  ],
)
def test_evaluate_refuses_what_goes_in_order(
  monkeypatch, world, tmp_path, changes, message
):
  monkeypatch.setattr(distributed, 'count', lambda: 2)
  with pytest.raises(ValueError, match=message):
    jobs.run(world_lib.changed(world, **changes), str(tmp_path))
