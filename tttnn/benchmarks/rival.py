"""Another program to be measured with, in the surroundings that suit it best.

Threads and memory of a PyTorch process depend on variables that must be set
before it starts. Which of them help depends on the machine, so they are tried.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import os
import sys

from tttnn.benchmarks import process

# glibc: huge pages spare most of the faults of freshly mapped buffers ...
HUGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
# ... and a heap that is never given back nearly all.
_KEPT_HEAP = {
  'GLIBC_TUNABLES': (
    'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:'
    'glibc.malloc.trim_threshold=1099511627776'
  )
}
# Threads that spin while they wait can cost a busy machine ten times the time.
_PASSIVE = {'OMP_WAIT_POLICY': 'PASSIVE'}
ENVIRONMENTS = (
  _PASSIVE | _KEPT_HEAP,
  _PASSIVE | HUGE_PAGES,
  _PASSIVE,
  _KEPT_HEAP,
)
_RUNS = 2  # Of a trial, after one to warm up; the fastest counts.
_FAR = 2.0  # Times the fastest so far: one run of it is enough.


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a rival is run.

  Attributes:
    options: on its command line.
    environment: variables that are set for it.
  """

  options: tuple[str, ...]
  environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Trial:
  """What came of a setting.

  Attributes:
    setting: that was tried.
    seconds: of each run.
  """

  setting: Setting
  seconds: list[float]


def check(script: str) -> None:
  """Raises ValueError where there is no such script."""
  if not os.path.isfile(script):
    raise ValueError(
      f'benchmark.rival={script!r} is no file; --config.benchmark.rival= (with '
      'nothing after it) measures this engine alone'
    )


def start(script: str, python: str, setting: Setting) -> process.Process:
  """A process of the rival; `python` is its interpreter, '' this one."""
  return process.Process(
    os.path.basename(script),
    [python or sys.executable, script, *setting.options],
    setting.environment,
  )


def try_all(
  script: str,
  python: str,
  settings: Sequence[Setting],
  load: Mapping,
  request: Mapping,
) -> list[Trial]:
  """Tries settings one after another, each in a process of its own.

  Args:
    script: of the rival.
    python: its interpreter; '' is this one.
    settings: to try.
    load: its first request.
    request: what it is to do, whose answer has `seconds`.

  Returns:
    The trials, the fastest first.

  Raises:
    process.MissingError: it lacks a package.
    ValueError: it failed.
  """
  trials = []
  for setting in settings:
    with start(script, python, setting) as side:
      side.ask(**load)
      side.ask(**request)
      seconds = [side.ask(**request)['seconds']]
      best = min((min(trial.seconds) for trial in trials), default=math.inf)
      while len(seconds) < _RUNS and seconds[0] < _FAR * best:
        seconds.append(side.ask(**request)['seconds'])
    trials.append(Trial(setting, seconds))
  return sorted(trials, key=lambda trial: min(trial.seconds))
