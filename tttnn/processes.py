"""Runs commands as processes, some at a time, each with a log of its own."""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time

import tqdm

import tttnn

_POLL = 0.1  # Seconds between two looks at those that run.
_GRACE = 60.0  # Seconds to stop in.


@dataclasses.dataclass(frozen=True)
class Task:
  """A command to run.

  Attributes:
    directory: is made, and gets the log.
    command: the program and its arguments.
  """

  directory: str
  command: list[str]

  @property
  def log(self) -> str:
    return os.path.join(self.directory, 'log.txt')

  def tail(self, lines: int) -> list[str]:
    """The last lines of the log; of a progress bar, its last state."""
    with open(self.log, encoding='utf-8', errors='replace') as file:
      found = [line for line in file.read().splitlines() if line.strip()]
    return found[-lines:]


@contextlib.contextmanager
def alone(workdir: str) -> Iterator[int]:
  """The descriptor of a lock, which processes that inherit it hold as well.

  Raises:
    BlockingIOError: if someone has the lock: others that run there, or what
      others that were killed have left running.
  """
  os.makedirs(workdir, exist_ok=True)
  path = os.path.join(workdir, 'lock')
  with open(path, 'ab') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BlockingIOError(
        f'{path} is held: the same runs there already, or was killed and its '
        'processes still run (fuser shows them)'
      ) from error
    yield file.fileno()


def execute(
  tasks: Sequence[Task],
  title: str,
  *,
  at_once: int = 1,
  gpus: Sequence[str] = (),
  lock: int,
) -> list[tuple[Task, int]]:
  """Runs all tasks, whichever of them fail.

  SIGTERM stops those that run, and this process with status 143.

  Args:
    tasks: in the order in which they begin.
    title: of the progress bar.
    at_once: how many run at a time.
    gpus: of which each sees one, if there are any; names as of
      CUDA_VISIBLE_DEVICES.
    lock: of `alone`.

  Returns:
    Those that failed, with their exit status (minus the signal, if it was one).
  """
  waiting, running, failed = collections.deque(tasks), {}, []
  slots = list(range(at_once))
  if not tasks:
    return failed
  before = signal.signal(signal.SIGTERM, _exit)
  with tqdm.tqdm(total=len(tasks), desc=title, unit=' runs') as bar:
    try:
      while waiting or running:
        while waiting and slots:
          task, slot = waiting.popleft(), slots.pop(0)
          gpu = gpus[slot % len(gpus)] if gpus else None
          running[_start(task, gpu, lock)] = task, slot
        time.sleep(_POLL)
        for process in [p for p in running if p.poll() is not None]:
          task, slot = running.pop(process)
          slots.append(slot)
          if process.returncode:
            failed.append((task, process.returncode))
            bar.set_postfix_str(f'{len(failed)} failed')
          bar.update()
    finally:
      _stop(list(running))
      signal.signal(signal.SIGTERM, before)
  return failed


def _exit(number: int, unused_frame) -> None:
  sys.exit(128 + number)


def _start(task: Task, gpu: str | None, lock: int) -> subprocess.Popen:
  root = os.path.dirname(os.path.dirname(tttnn.__file__))
  path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
  environment = os.environ | {'PYTHONPATH': path}
  if gpu is not None:
    environment['CUDA_VISIBLE_DEVICES'] = gpu
  os.makedirs(task.directory, exist_ok=True)
  with open(task.log, 'wb') as log:
    return subprocess.Popen(
      task.command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment,
      pass_fds=(lock,),
    )


def _stop(running: Sequence[subprocess.Popen]) -> None:
  for process in running:
    process.terminate()
  end = time.monotonic() + _GRACE
  for process in running:
    try:
      process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
