"""Several processes, on one host or many, for one run, by `jax.distributed`.

Process 0 is the main one: it writes what is there once. A run of one process,
which is the default, passes by all of this without importing JAX.
"""

import atexit
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import socket
import sys
from typing import Any
from typing import Self
from typing import TypeVar

from tttnn import watch as watch_lib

_VARIABLE = 'TTTNN_PROCESS'

Item = TypeVar('Item')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Which processes there are; the fields are the keys `distributed.*`.

  Attributes:
    coordinator: HOST:PORT where process 0 waits for the others.
    processes: how many.
    process: this one, from 0 on; -1: $TTTNN_PROCESS.
    auto: whether `jax.distributed` is to find all that by itself.
    timeout: seconds to wait for others.

  Raises:
    ValueError: for a value out of its range, or that goes with another.
  """

  coordinator: str = ''
  processes: int = 1
  process: int = -1
  auto: bool = False
  timeout: float = 1800.0

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `distributed` of the config."""
    return cls(**section)

  def __post_init__(self):
    if self.processes < 1 or self.timeout <= 0:
      raise ValueError(
        f'distributed.processes={self.processes} and distributed.timeout='
        f'{self.timeout:g} must be above 0'
      )
    if self.auto and (self.coordinator or self.processes > 1):
      raise ValueError(
        'distributed.auto=True finds out what distributed.coordinator='
        f'{self.coordinator!r} and distributed.processes={self.processes} say'
      )
    if self.auto or self.processes == 1:
      return
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdigit():
      raise ValueError(
        f'distributed.coordinator={self.coordinator!r} is not HOST:PORT, where '
        f'process 0 of distributed.processes={self.processes} waits'
      )
    if not 0 <= self.index < self.processes:
      raise ValueError(
        f'distributed.process={self.index} is not in 0..{self.processes - 1}, '
        f'as distributed.processes={self.processes} wants'
      )

  @property
  def several(self) -> bool:
    """Whether there are, or may be, several processes."""
    return self.auto or self.processes > 1

  @property
  def index(self) -> int:
    """Of this process, as it was given.

    Raises:
      ValueError: the environment is to say it, and does not.
    """
    if self.process != -1:
      return self.process
    given = os.environ.get(_VARIABLE, '')
    if not given.isdigit():
      raise ValueError(
        f'distributed.process=-1 is what ${_VARIABLE} says, which is {given!r}'
      )
    return int(given)

  @property
  def address(self) -> tuple[str, int]:
    host, _, port = self.coordinator.rpartition(':')
    return host.strip('[]'), int(port)


@dataclasses.dataclass
class _Run:
  """The processes of the run that this one is in.

  Attributes:
    timeout: seconds to wait for others.
    watch: over them; None: this process is the only one.
  """

  timeout: float = 0.0
  watch: watch_lib.Watch | None = None


_run = _Run()


@contextlib.contextmanager
def session(settings: Settings) -> Iterator[None]:
  """Several processes are one run for the length of a context.

  It begins when all have come, before JAX's first use, and ends when all have
  ended. A process in which it ends by an exception tells the others, which
  exit; so they do when a process dies. Only the main process prints.

  Raises:
    ValueError: JAX was used before, or refuses the processes.
    OSError: the others do not come, or cannot be reached.
  """
  if not settings.several:
    yield
    return
  try:
    _begin(settings)
    sys.stdout.reconfigure(line_buffering=True)  # An exit loses no line.
    stopped = None
    with contextlib.ExitStack() as stack:
      if not is_main():
        silence = stack.enter_context(open(os.devnull, 'w'))
        stack.enter_context(contextlib.redirect_stdout(silence))
      try:
        yield
      except SystemExit as error:  # All end early, and nothing has failed.
        if error.code:
          raise
        stopped = error
      meet('the end')
  except BaseException as error:
    # JAX would wait for the others before it lets this process exit.
    atexit.register(_exit_now)
    if _run.watch:
      text = ' '.join(str(error).split()) or type(error).__name__
      _run.watch.fail(text, of_jax=isinstance(error, RuntimeError))
    raise
  import jax

  _run.watch.close()
  _run.watch = None
  jax.distributed.shutdown()
  if stopped:
    raise stopped


def count() -> int:
  """Of the processes of this run."""
  return _run.watch.own.count if _run.watch else 1


def index() -> int:
  """Of this process, from 0 on."""
  return _run.watch.own.index if _run.watch else 0


def is_main() -> bool:
  """Whether this process writes what is there once."""
  return index() == 0


def part(items: Sequence[Item]) -> Sequence[Item]:
  """Every count()-th item, from this process's on; all parts make up all."""
  return items[index() :: count()]


def meet(name: str) -> None:
  """Waits until all processes have come to `name`.

  Raises:
    TimeoutError: naming those that have not, when nobody has made progress for
      so long.
  """
  if _run.watch:
    _run.watch.meet(name, _run.timeout)


def progress() -> None:
  """Says that this process is at work: those that wait for it go on waiting."""
  if _run.watch:
    _run.watch.progress()


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
  """The others enter when the main process has left."""
  if not is_main():
    meet(name)
  yield
  if is_main():
    meet(name)


def _begin(settings: Settings) -> None:
  import jax

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  _run.timeout = settings.timeout
  if settings.auto:
    _initialize(settings.timeout)
    _run.watch = _watch_of_jax(settings.timeout)
    return
  # All are there before JAX begins, which aborts where one does not come.
  host, port = settings.address
  if settings.index:
    _run.watch = watch_lib.join(
      (host, port), settings.index, settings.processes, settings.timeout
    )
  else:
    with watch_lib.listen(0) as unused:
      note = str(unused.getsockname()[1])
    with watch_lib.listen(port) as listener:
      _run.watch = watch_lib.gather(
        listener, settings.processes, settings.timeout, note
      )
  host = f'[{host}]' if ':' in host else host
  _initialize(
    settings.timeout,
    coordinator_address=f'{host}:{_run.watch.note}',
    num_processes=settings.processes,
    process_id=settings.index,
    # SLURM's would leave a process one device, as if each had a process.
    cluster_detection_method='deactivate',
  )


def _initialize(timeout: float, **processes) -> None:
  import jax

  try:
    jax.distributed.initialize(
      initialization_timeout=max(1, round(timeout)), **processes
    )
  except RuntimeError as error:
    raise ValueError(f'jax.distributed: {error}') from error
  # Here, all together: the first one that asks waits for the others.
  jax.devices()


def _watch_of_jax(timeout: float) -> watch_lib.Watch:
  """Over the processes that `jax.distributed` has found."""
  import jax
  from jax.experimental import multihost_utils
  import numpy as np

  index, count = jax.process_index(), jax.process_count()
  if count == 1:
    return watch_lib.Watch(watch_lib.Process.own(0, 1), {}, '')
  listener = watch_lib.listen(0) if index == 0 else None
  address_256 = np.zeros(256, np.uint8)
  if listener:
    text = f'{_own_address()}:{listener.getsockname()[1]}'.encode()
    address_256[: len(text)] = list(text)
  address_256 = multihost_utils.broadcast_one_to_all(address_256)
  if listener:
    with listener:
      return watch_lib.gather(listener, count, timeout)
  text = bytes(np.asarray(address_256).tolist()).rstrip(b'\0').decode()
  host, _, port = text.rpartition(':')
  return watch_lib.join((host, int(port)), index, count, timeout)


def _own_address() -> str:
  """Of this host for others: its number, where its name stands for one."""
  name = socket.gethostname()
  address = socket.gethostbyname(name)
  return name if address.startswith('127.') else address


def _exit_now() -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)
