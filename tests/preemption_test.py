"""Training that is stopped, killed or moved to other devices goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import numpy as safetensors

from configs import base
from tests import tiny
from tttnn import jobs
from tttnn import settings
from tttnn.corpus import tokenizer as tokenizer_lib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  directory = tmp_path_factory.mktemp('world')
  texts = tiny.documents(80)
  tokenizer_lib.train(
    texts, f'{directory}/gpt2', vocab_size=256 + 16, kind='gpt2'
  )
  config = base.get_config()
  config.job = 'train'
  config.corpus.train = tiny.write_jsonl(directory / 'a.jsonl', texts[:60])
  config.corpus.validation = tiny.write_jsonl(directory / 'b.jsonl', texts[60:])
  config.train.update(
    layers=1,
    width=16,
    heads=2,
    context=32,
    tokenizer=f'{directory}/gpt2',
    steps=9,
    batch_size=8,
    warmup_steps=3,
    log_every=1,
    eval_batches=1,
    checkpoint_every=100,
  )
  return config


def parameters(workdir):
  return safetensors.load_file(f'{workdir}/export/model.safetensors')


def command(config, workdir):
  changed = settings.flatten(config)
  defaults = settings.flatten(base.get_config())
  return [
    *(sys.executable, '-m', 'tttnn.main', '--config=configs/train_lm.py'),
    f'--workdir={workdir}',
    *(
      f'--config.{key}={value}'
      for key, value in changed.items()
      if value != defaults[key]
    ),
  ]


def records(workdir):
  path = os.path.join(workdir, 'history.jsonl')
  if not os.path.exists(path):
    return []
  with open(path) as file:
    return [json.loads(line) for line in file if line.endswith('\n')]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_signal_saves_at_the_end_of_the_step(world, tmp_path, name):
  config = world.copy_and_resolve_references()
  config.train.update(steps=10**6, schedule='constant')
  config.train.update(tensorboard=True, profile='1:2')
  process = subprocess.Popen(
    command(config, tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 200
  while len(records(tmp_path)) < 3 and time.monotonic() < deadline:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.Signals[name])
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  saved = [
    int(path.name)
    for path in (tmp_path / 'checkpoints').iterdir()
    if path.name.isdigit()
  ]
  last = records(tmp_path)[-1]['step']
  # All that it has done, though no checkpoint was due.
  assert saved == [last]
  line = f'train: saved at step {last} of 1000000; the same command goes on'
  assert line in output.splitlines()[-1]
  assert not (tmp_path / 'export').exists()
  assert list((tmp_path / 'tensorboard').iterdir())
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  # It goes on to what an uninterrupted run ends with.
  config.train.update(steps=last + 2, tensorboard=False, profile='')
  jobs.run(config, str(tmp_path))
  jobs.run(config, str(tmp_path / 'whole'))
  for key, value in parameters(tmp_path / 'whole').items():
    np.testing.assert_array_equal(parameters(tmp_path)[key], value)


def test_a_stopped_run_ends_with_the_same_bytes(world, tmp_path, monkeypatch):
  """Within this process, so that the step is known."""
  from tttnn import objectives

  jobs.run(world, str(tmp_path / 'whole'))
  batch = objectives.StreamTask.batch

  def stopped(self, stream, number, seed):
    if number == 6:
      signal.raise_signal(signal.SIGTERM)
    return batch(self, stream, number, seed)

  monkeypatch.setattr(objectives.StreamTask, 'batch', stopped)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as ended:
    jobs.run(world, str(tmp_path / 'parts'))
  assert ended.value.code == 0
  assert signal.getsignal(signal.SIGTERM) is before
  assert 1 <= records(tmp_path / 'parts')[-1]['step'] <= 7
  monkeypatch.undo()
  jobs.run(world, str(tmp_path / 'parts'))
  one, two = (tmp_path / name for name in ('whole', 'parts'))
  path = 'export/model.safetensors'
  assert (one / path).read_bytes() == (two / path).read_bytes()
  losses = [[r['loss'] for r in records(workdir)] for workdir in (one, two)]
  assert losses[0] == losses[1]


def stop_at(monkeypatch, step):
  from tttnn import objectives

  batch = objectives.StreamTask.batch

  def interrupted(self, stream, number, seed):
    if number == step:
      raise KeyboardInterrupt
    return batch(self, stream, number, seed)

  monkeypatch.setattr(objectives.StreamTask, 'batch', interrupted)


def test_a_run_goes_on_over_other_devices(world, tmp_path, monkeypatch, capsys):
  """On 2 x 2 devices, 8 with FSDP, one in parts, 4 x 2 with FSDP, one."""
  config = world.copy_and_resolve_references()
  config.train.update(checkpoint_every=2, steps=11)
  jobs.run(config, str(tmp_path / 'whole'))
  wanted = parameters(tmp_path / 'whole')
  layouts = [
    (2, 2, 1, False),
    (8, 1, 1, True),
    (1, 1, 4, False),
    (4, 2, 2, True),
    (1, 1, 1, False),
  ]
  for stop, (data, model, parts, fsdp) in zip(
    (3, 5, 7, 9, None), layouts, strict=True
  ):
    config.mesh.update(data=data, model=model, fsdp=fsdp)
    config.train.accumulation = parts
    if stop is None:
      jobs.run(config, str(tmp_path / 'moved'))
      break
    stop_at(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
      jobs.run(config, str(tmp_path / 'moved'))
    monkeypatch.undo()
  found = parameters(tmp_path / 'moved')
  assert found.keys() == wanted.keys()
  output = capsys.readouterr().out
  for step in (2, 4, 6, 8):
    assert f'resumes at step {step} of 11' in output
  # Sums over devices and parts round otherwise (measured: 6e-7 at most), which
  # Adam makes larger where a gradient is nearly 0. The last step, the smallest,
  # moves a parameter by 1e-4.
  for name, x in wanted.items():
    np.testing.assert_allclose(found[name], x, rtol=0, atol=5e-6, err_msg=name)
  losses = [
    [r['loss'] for r in records(tmp_path / name)] for name in ('whole', 'moved')
  ]
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
  script = os.path.join(ROOT, 'launch', 'preemption.py')
  arguments = ['--kills', '3', '--workdir', str(tmp_path)]
  done = subprocess.run(
    [sys.executable, script, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'PYTHONPATH': ROOT},
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.split(':')[0] for line in lines[1:4]] == [
    'kill 1',
    'kill 2',
    'kill 3',
  ]
  assert lines[-1].startswith('same losses and parameters, bit for bit')
