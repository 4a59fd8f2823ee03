"""A profiler trace of some steps, which TensorBoard and Perfetto show."""

import re

import jax


class Profile:
  """Traces steps begin .. end - 1 of a run, as far as it runs them.

  Args:
    spec: 'begin:end', counted from 0; '': none.
    directory: where the trace goes.

  Raises:
    ValueError: for another spec, or no step in it.
  """

  def __init__(self, spec: str, directory: str):
    self._directory = directory
    self._steps = range(0)
    self._runs = False
    if not spec:
      return
    match = re.fullmatch(r'(\d+):(\d+)', spec)
    if match:
      self._steps = range(*map(int, match.groups()))
    if not self._steps:
      raise ValueError(
        f'train.profile={spec!r} is not BEGIN:END, steps from BEGIN to END - 1'
      )

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *_) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Begins, if `step` is the first of those to trace."""
    if not self._runs and step in self._steps:
      jax.profiler.start_trace(self._directory)
      self._runs = True

  def after(self, step: int, result: jax.Array) -> None:
    """Ends, if `step`, which makes `result`, is the last of them."""
    if self._runs and step + 1 not in self._steps:
      jax.block_until_ready(result)
      self._stop()

  def _stop(self) -> None:
    if self._runs:
      jax.profiler.stop_trace()
      self._runs = False
      print(f'train: {self._directory} has a profiler trace')
