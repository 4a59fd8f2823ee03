"""Lines of history, TensorBoard's events and the profiler's trace."""

import json
import sys

import numpy as np
import pytest
import tqdm

from tests import events
from tttnn import history
from tttnn import profiling


def about():
  return history.Step(
    tokens=100,
    operations=1e6,
    peak=1e9,
    learning_rate=lambda step: np.float32(0.5**step),
  )


def write(workdir, first, steps, board=True):
  """A run from step `first` on, whose losses are its steps."""
  path = str(workdir / 'history.jsonl')
  directory = str(workdir / 'tensorboard') if board else ''
  found = history.History(path, first, 2, about(), tensorboard=directory)
  with found, tqdm.tqdm(total=8, disable=True) as bar:
    for number in range(first, steps):
      found.push(number, np.float32(number), np.float32(2 * number), bar)
      if number == 4:
        found.note(5, validation_loss=1.5)
    found.settle(bar)
  with open(path) as file:
    return [json.loads(line) for line in file]


def test_lines_have_the_means_since_the_last_one(tmp_path):
  lines = write(tmp_path, 0, 6)
  assert [line['step'] for line in lines] == [2, 4, 5, 6]
  assert [line.get('loss') for line in lines] == [0.5, 2.5, None, 4.5]
  assert [line.get('gradient_norm') for line in lines] == [1, 5, None, 9]
  rates = [line.get('learning_rate') for line in lines]
  assert rates == [0.5, 0.5**3, None, 0.5**5]
  for line in lines[:2]:
    speed = line['tokens_per_second'] / 100
    expected = speed * 1e6 / 1e9
    assert line['share_of_peak'] == pytest.approx(expected, abs=1e-4, rel=0.02)


def test_tensorboard_has_the_same_and_forgets_what_was_undone(tmp_path):
  write(tmp_path, 0, 6)
  lines = write(tmp_path, 2, 6)  # Killed, it goes on from step 2.
  expected = {
    (name, line['step']): value
    for line in lines
    for name, value in line.items()
    if name != 'step'
  }
  assert ('validation_loss', 5) in expected and ('loss', 2) in expected
  found = events.scalars(tmp_path / 'tensorboard')
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    assert found[key] == pytest.approx(value, rel=1e-6)


def test_tensorboard_without_its_writer_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(ValueError, match=r'tttnn\[tensorboard\]'):
    write(tmp_path, 0, 2)
  assert write(tmp_path, 0, 2, board=False)


@pytest.mark.parametrize('spec', ['5', '5:5', 'a:b', '-1:3'])
def test_a_wrong_profile_is_refused(tmp_path, spec):
  with pytest.raises(ValueError, match=f"'{spec}' is not BEGIN:END"):
    profiling.Profile(spec, str(tmp_path))


@pytest.mark.parametrize('first, traced', [(0, [3, 4]), (4, [4]), (5, [])])
def test_the_steps_of_the_profile_are_traced(
  tmp_path, monkeypatch, first, traced
):
  import jax

  calls = []
  monkeypatch.setattr(
    jax.profiler, 'start_trace', lambda directory: calls.append('start')
  )
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  with profiling.Profile('3:5', str(tmp_path)) as profile:
    for step in range(first, 8):
      profile.before(step)
      calls.append(step)
      profile.after(step, np.zeros(()))
  steps = [call for call in calls if isinstance(call, int)]
  assert steps == list(range(first, 8))
  if not traced:
    assert calls == steps
    return
  begin, end = calls.index('start'), calls.index('stop')
  assert calls[begin + 1 : end] == traced
  assert calls.count('start') == calls.count('stop') == 1
