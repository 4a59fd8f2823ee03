"""One side of a comparison: a process that answers JSON lines in JSON lines."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import subprocess
import tempfile
from typing import Self

_LAST_LINES = 5  # Of a failed process's errors, to show.
_PATIENCE = 60  # Seconds that a process has to end once it was asked to.


class MissingError(Exception):
  """What a side computes with is not installed here."""


class Process:
  """A side; a context that ends it.

  It reads a JSON object a line from its stdin and answers each with one on its
  stdout: with {"missing": WHAT}, at any time, where it lacks a package. It
  ends at the end of its stdin.

  Attributes:
    name: for errors.
    environment: the variables that it was given beyond this process's own.
  """

  def __init__(
    self,
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
  ):
    self.name = name
    self.environment = dict(environment)
    self._errors = tempfile.TemporaryFile('w+', encoding='utf-8')  # noqa: SIM115
    self._process = subprocess.Popen(
      command,
      env=os.environ | self.environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )

  def send(self, **request) -> None:
    """Asks without waiting for the answer."""
    # Where it has ended, `receive` says how.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()

  def receive(self) -> dict:
    """The answer to the oldest request that has none yet.

    Raises:
      MissingError: it lacks a package.
      ValueError: it ended, or said something else than JSON.
    """
    line = self._process.stdout.readline()
    if not line:
      status = self._process.wait()
      raise ValueError(
        f'{self.name} ended with status {status}: {self._last_errors()}'
      )
    try:
      answer = json.loads(line)
    except ValueError as error:
      raise ValueError(f'{self.name} answered {line!r}, not JSON') from error
    if 'missing' in answer:
      raise MissingError(answer['missing'])
    return answer

  def ask(self, **request) -> dict:
    """The answer to a request; raises what `receive` raises."""
    self.send(**request)
    return self.receive()

  def close(self) -> None:
    """Lets it end, and ends it where it does not."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
      self.kill()
    self._process.stdout.close()
    self._errors.close()

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if kind is not None:
      self.kill()
    self.close()

  def _last_errors(self) -> str:
    self._errors.seek(0)
    lines = self._errors.read().strip().splitlines()
    return ' / '.join(lines[-_LAST_LINES:]) or 'it said nothing'
