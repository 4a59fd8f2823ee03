"""The main job, small, as one command: run, killed, rerun, estimated."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from configs import base
from tests import world as world_lib
from tttnn import jobs

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMAND = [
  sys.executable,
  '-m',
  'tttnn.main',
  '--config=configs/quickstart.py:short',
  '--config.train.width=32',
  '--config.build.block=64',
  '--config.eval.limit=7',
]


def start(workdir):
  return subprocess.Popen(
    [*COMMAND, f'--workdir={workdir}'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def run(workdir) -> str:
  process = start(workdir)
  output, _ = process.communicate()
  assert process.returncode == 0
  return output


def files_of(directory):
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob('*')
    if path.is_file()
  }


def rows_of(workdir):
  return world_lib.timeless(world_lib.rows_of(workdir))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, run(workdir)


@pytest.mark.slow
def test_it_ends_with_the_table_and_the_page(finished):
  workdir, output = finished
  tail = output.splitlines()[-15:]
  assert any('before' in line and 'after' in line for line in tail)
  assert any(str(workdir / 'report' / 'index.html') in line for line in tail)
  assert (workdir / 'report' / 'index.html').stat().st_size > 10_000
  assert len(rows_of(workdir)) == 7


@pytest.mark.slow
def test_test_documents_are_not_in_the_store(finished):
  workdir, _ = finished
  text = workdir / 'corpus' / 'text'
  train = set()
  for path in text.glob('train/*.jsonl'):
    with open(path) as file:
      train |= {json.loads(line)['text'] for line in file}
  with open(text / 'test.jsonl') as file:
    test = {json.loads(line)['text'] for line in file}
  assert len(train) > 100 and len(test) > 50
  assert not train & test
  assert not any(document in other for document in test for other in train)


@pytest.mark.slow
def test_a_second_run_changes_nothing(finished):
  workdir, _ = finished
  before = {
    path: path.stat().st_mtime_ns
    for path in workdir.rglob('*')
    if path.is_file()
  }
  begin = time.monotonic()
  run(workdir)
  assert time.monotonic() - begin < 60
  after = {
    path: path.stat().st_mtime_ns
    for path in workdir.rglob('*')
    if path.is_file()
  }
  assert after == before


# Killed five times and started six: about a minute and a half.
@pytest.mark.slow
def test_killed_in_every_job_it_ends_with_the_same_store_and_rows(
  finished, tmp_path
):
  marks = [
    tmp_path / 'embedder' / 'history.jsonl',
    tmp_path / 'lm' / 'checkpoints',
    tmp_path / 'store' / 'offsets',
    tmp_path / 'store' / 'index',
    tmp_path / 'results.jsonl',
  ]
  for mark in marks:
    process = start(tmp_path)
    while process.poll() is None and not mark.exists():
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
  run(tmp_path)
  workdir, _ = finished
  assert files_of(tmp_path / 'store') == files_of(workdir / 'store')
  assert rows_of(tmp_path) == rows_of(workdir)


@pytest.mark.slow
def test_dry_run_estimates_every_job_and_leaves_nothing(tmp_path):
  done = subprocess.run(
    [*COMMAND, f'--workdir={tmp_path}/w', '--config.dry_run=true'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  for job in ('train (masked)', 'train (causal)', 'build', 'evaluate (ttt)'):
    assert f'{job}: what a run would take' in done.stdout
  assert done.stdout.count('estimated time') == 4
  assert not (tmp_path / 'w').exists()


def test_an_empty_pipeline_is_refused(tmp_path):
  config = base.get_config()
  config.job = 'pipeline'
  with pytest.raises(ValueError, match='pipeline.steps is empty'):
    jobs.run(config, str(tmp_path))
