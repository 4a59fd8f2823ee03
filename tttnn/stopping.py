"""Ends a run at a place of its own choosing when a signal asks for its end."""

from collections.abc import Callable
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

_SIGNALS = signal.SIGTERM, signal.SIGINT


class Vote:
  """Whether a process of several wants to stop, which all learn together.

  What is said at a step is known at the next one, so that no step waits for it.
  Of one process, it is known at once.
  """

  def __init__(self, mesh: jax.sharding.Mesh | None):
    self._several = mesh is not None and mesh.is_multi_process
    self._said = None
    if self._several:
      each = jax.sharding.PartitionSpec(mesh.axis_names)
      self._each = jax.NamedSharding(mesh, each)
      self._any = jax.jit(
        jnp.max,
        out_shardings=jax.NamedSharding(mesh, jax.sharding.PartitionSpec()),
      )
      self._count = mesh.size

  def __call__(self, wanted: bool) -> bool:
    """Says what this process wants; whether one wanted to at the last step."""
    if not self._several:
      return wanted
    before, mine = self._said, np.full(1, wanted, np.int32)
    flags = jax.make_array_from_callback(
      (self._count,), self._each, lambda _: mine
    )
    self._said = self._any(flags)
    return before is not None and bool(before)


class Stop:
  """Takes note of SIGTERM and SIGINT for the length of a context.

  A second SIGINT interrupts at once. In a thread, which cannot take signals,
  nothing is noted.

  Args:
    then: called when the first one comes.

  Attributes:
    signal: name of the one that came; '': none has.
  """

  def __init__(self, then: Callable[[], None]):
    self.signal = ''
    self._then = then
    self._before = {}

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is threading.main_thread():
      self._before = {s: signal.signal(s, self._note) for s in _SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame) -> None:
    del frame
    if self.signal and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal = signal.Signals(number).name
    if number == signal.SIGINT:
      print('\nsaves after this step; Ctrl-C stops at once', file=sys.stderr)
    self._then()
