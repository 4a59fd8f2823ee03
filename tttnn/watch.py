"""Processes of one run, on one host or many, that end when one of them dies.

Process 0 has a TCP connection to each other process. The kernel closes those of
a process that dies, however it died, and its keep-alives find a host that is
lost after some 20 s; a process that computes for long without a word stays.
Whoever hears of a death tells it on, says so in a line, and exits, even while
its own main thread waits in a collective for the one that is dead.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import socket
import threading
import time

_KEEP_ALIVE = 5  # Seconds between signs of life; three that are missed end it.
_TELL = 5.0  # Seconds that a process which ends gives the others to hear of it.
# Seconds between an error of JAX and telling it: a collective fails when a
# process dies, which is then the thing to say.
_LISTEN = 1.0
_RETRY = 0.2  # Seconds between attempts to connect.


@dataclasses.dataclass(frozen=True)
class Process:
  """A process of the run.

  Attributes:
    index: from 0 on.
    count: of processes.
    host: its name.
    pid: there.
  """

  index: int
  count: int
  host: str
  pid: int

  @classmethod
  def own(cls, index: int, count: int) -> 'Process':
    return cls(index, count, socket.gethostname(), os.getpid())

  def __str__(self) -> str:
    return f'process {self.index} of {self.count} ({self.host}, pid {self.pid})'


class Watch:
  """The connections of this process, each read by a thread of its own.

  Attributes:
    own: this process.
    note: what process 0 gave all of them.
  """

  def __init__(
    self, own: Process, links: Mapping[Process, socket.socket], note: str
  ):
    """Over all connections there are: of process 0 to all, of others to it."""
    self.own, self.note = own, note
    self._links = dict(links)
    self._sending = threading.Lock()
    self._changed = threading.Condition()
    self._open = set(self._links)
    self._come = {}  # What was asked to meet at -> the processes there.
    self._ending = self._heard = False
    self._moved = self._told = time.monotonic()
    for peer in self._links:
      thread = threading.Thread(target=self._read, args=(peer,), daemon=True)
      thread.start()

  def meet(self, name: str, timeout: float) -> None:
    """Waits until all processes have come to `name`.

    Args:
      name: of the place.
      timeout: seconds without progress of anyone that are waited.

    Raises:
      TimeoutError: naming those that have not come.
    """
    main = self.own.index == 0
    if not main:
      timeout += 2 * _TELL  # Process 0 knows who is missing: it is to say it.
      self._send(self._links, kind='come', name=name)
    with self._changed:
      self._moved = time.monotonic()
      while missing := self._links.keys() - self._come.get(name, set()):
        left = self._moved + timeout - time.monotonic()
        if left <= 0:
          who = ', '.join(sorted(str(peer) for peer in missing))
          raise TimeoutError(
            f'{who} did not come to {name!r}, and nobody made progress for '
            f'{timeout:g} s (distributed.timeout)'
          )
        self._changed.wait(left)
      self._come.pop(name, None)
    if main:
      self._send(self._links, kind='come', name=name)

  def progress(self) -> None:
    """Tells that this process is at work, so that others go on waiting."""
    now = time.monotonic()
    if now - self._told >= 1:
      self._told = now
      self._send(self._links, kind='progress')

  def fail(self, text: str, *, of_jax: bool) -> None:
    """Tells the others why this process ends, and waits until they know.

    Args:
      text: what went wrong.
      of_jax: whether it may be another process's death that shows so.
    """
    if of_jax:
      time.sleep(_LISTEN)
    with self._changed:
      ending, self._ending = self._ending, True
    if ending:  # The thread that knows why is about to exit.
      time.sleep(3 * _TELL)
    self._send(self._links, kind='stop', text=f'{self.own} failed: {text}')
    # Process 0 has what JAX needs: it is the last to exit.
    with self._changed:
      self._changed.wait_for(lambda: self._heard or not self._open, _TELL)

  def close(self) -> None:
    """Leaves the others to themselves, after all have met."""
    with self._changed:
      self._ending = True
    self._send(self._links, kind='bye')
    self._await_closed()
    for link in self._links.values():
      link.close()

  def _read(self, peer: Process) -> None:
    """Hears a process until its connection closes."""
    link, said_why = self._links[peer], False
    with contextlib.suppress(OSError):  # Reset, or no sign of life.
      for line in link.makefile('rb'):
        message = json.loads(line)
        kind = message['kind']
        if kind == 'stop':
          said_why = True
          self._send({peer: link}, kind='heard')
          arguments = message['text'], peer
          threading.Thread(
            target=self._end, args=arguments, daemon=True
          ).start()
        elif kind == 'bye':
          said_why = True
          # Half of it: what is on its way to us is still read.
          with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_WR)
        else:
          self._hear(peer, message)
    with self._changed:
      self._open.discard(peer)
      self._changed.notify_all()
    if not said_why:
      self._end(f'{peer} died', peer)

  def _hear(self, peer: Process, message: dict) -> None:
    with self._changed:
      self._moved = time.monotonic()
      if message['kind'] == 'come':
        self._come.setdefault(message['name'], set()).add(peer)
      # Of all that process 0 tells; the others tell it alone.
      self._heard |= message['kind'] == 'heard' and self.own.index > 0
      self._changed.notify_all()
    if message['kind'] == 'progress' and self.own.index == 0:
      self.progress()

  def _end(self, text: str, cause: Process) -> None:
    """Exits and says why, unless this process is ending anyway."""
    with self._changed:
      if self._ending:
        return
      self._ending = True
    # Before anything else: when process 0 is dead, JAX is about to abort.
    with contextlib.suppress(OSError):
      os.write(2, f'\nerror: {text}\n'.encode())
    if self.own.index == 0:
      others = {p: link for p, link in self._links.items() if p != cause}
      self._send(others, kind='stop', text=text)
      self._await_closed()
    os._exit(1)

  def _send(self, links: Mapping[Process, socket.socket], **message) -> None:
    data = (json.dumps(message) + '\n').encode()
    for link in links.values():
      # Whoever reads this connection learns that it is closed.
      with self._sending, contextlib.suppress(OSError):
        link.sendall(data)

  def _await_closed(self) -> None:
    with self._changed:
      self._changed.wait_for(lambda: not self._open, _TELL)


def listen(port: int) -> socket.socket:
  """A socket for `gather`; port 0: one of the system's choice.

  Raises:
    OSError: the port is in use.
  """
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(('', port), family=family, dualstack_ipv6=both)
  except OSError as error:
    raise OSError(f'distributed.coordinator: port {port}: {error}') from error


def gather(
  listener: socket.socket, count: int, timeout: float, note: str = ''
) -> Watch:
  """Process 0 of `count`: waits for the others, and gives them `note`.

  Raises:
    TimeoutError: naming those that did not come in so many seconds.
    ValueError: two say that they are the same one, or other counts.
  """
  own, links = Process.own(0, count), {}
  end = time.monotonic() + timeout
  while len(links) < count - 1:
    listener.settimeout(max(0.01, end - time.monotonic()))
    try:
      link, _ = listener.accept()
    except TimeoutError:
      there = {peer.index for peer in links}
      missing = [str(i) for i in range(1, count) if i not in there]
      text = (
        f'process {", ".join(missing)} of {count} did not come to port '
        f'{listener.getsockname()[1]} of {own.host} in {timeout:g} s '
        '(distributed.timeout)'
      )
      _refuse(links.values(), text)
      raise TimeoutError(text) from None
    try:
      peer = Process(**_line(link, 5.0))
    except (ValueError, TypeError, OSError):  # Not one of ours.
      link.close()
      continue
    wrong = _wrong(peer, own, links)
    if wrong:
      _refuse([link, *links.values()], wrong)
      raise ValueError(wrong)
    links[peer] = link
  welcome = dataclasses.asdict(own) | {'note': note}
  for link in links.values():
    link.sendall((json.dumps(welcome) + '\n').encode())
    _keep_alive(link)
  return Watch(own, links, note)


def join(
  address: tuple[str, int], index: int, count: int, timeout: float
) -> Watch:
  """Process `index` of `count`, at least 1: goes to where process 0 waits.

  Raises:
    TimeoutError: nobody is there for so many seconds.
    OSError: process 0 went away, or ends since another process did not come.
    ValueError: process 0 does not want this process.
  """
  own, end = Process.own(index, count), time.monotonic() + timeout
  place = f'process 0 of {count} at {address[0]}:{address[1]}'
  while True:
    try:
      link = socket.create_connection(
        address, max(0.01, end - time.monotonic())
      )
      break
    except OSError as error:
      if time.monotonic() > end:
        raise TimeoutError(
          f'{own} did not reach {place} in {timeout:g} s '
          f'(distributed.timeout): {error}'
        ) from error
      time.sleep(_RETRY)
  link.sendall((json.dumps(dataclasses.asdict(own)) + '\n').encode())
  # Process 0 may wait for others as long, and began later.
  try:
    answer = _line(link, 2 * timeout)
  except TimeoutError:
    raise TimeoutError(f'{place} did not answer in {2 * timeout:g} s') from None
  if not answer:
    raise ConnectionError(f'{place} went away before all processes were there')
  if 'text' in answer:
    raise ValueError(answer['text'])
  note = answer.pop('note')
  _keep_alive(link)
  return Watch(own, {Process(**answer): link}, note)


def _line(link: socket.socket, timeout: float) -> dict:
  """The first line that comes, and not a byte more; {} if none does."""
  link.settimeout(timeout)
  data = b''
  while not data.endswith(b'\n'):
    byte = link.recv(1)
    if not byte:
      return {}
    data += byte
  link.settimeout(None)
  found = json.loads(data)
  if not isinstance(found, dict):
    raise ValueError(f'{data!r} is not an object')
  return found


def _wrong(peer: Process, own: Process, links) -> str:
  """What speaks against a process that came; '' for nothing."""
  if peer.count != own.count:
    return (
      f'{peer.host}, pid {peer.pid} says distributed.processes={peer.count}, '
      f'process 0 says {own.count}'
    )
  twice = [other for other in [own, *links] if other.index == peer.index]
  if twice:
    return f'{twice[0]} and {peer} have the same distributed.process'
  return ''


def _refuse(links, text: str) -> None:
  for link in links:
    with contextlib.suppress(OSError):
      link.sendall((json.dumps({'text': text}) + '\n').encode())
    link.close()


def _keep_alive(link: socket.socket) -> None:
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (
    (socket.TCP_KEEPIDLE, _KEEP_ALIVE),
    (socket.TCP_KEEPINTVL, _KEEP_ALIVE),
    (socket.TCP_KEEPCNT, 3),
    # As long for what was sent and not acknowledged; in milliseconds.
    (socket.TCP_USER_TIMEOUT, 4000 * _KEEP_ALIVE),
    (socket.TCP_NODELAY, 1),
  ):
    link.setsockopt(socket.IPPROTO_TCP, option, value)
