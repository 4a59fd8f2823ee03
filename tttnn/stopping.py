"""Ends a run at a place of its own choosing when a signal asks for its end."""

from collections.abc import Callable
import signal
import sys
import threading

_SIGNALS = signal.SIGTERM, signal.SIGINT


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
