"""What a training run says of itself: JSON lines, TensorBoard, progress bar."""

from collections.abc import Callable
import dataclasses
import json
import math
import os
import time

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Step:
  """What lines of history say that no step measures.

  Attributes:
    tokens: of a step.
    operations: of a step.
    peak: operations a second that the devices can do at most.
    learning_rate: by step, from 0 on.
  """

  tokens: int
  operations: float
  peak: float
  learning_rate: Callable[[int], jax.Array]


class History:
  """Losses of a run as JSON lines, on the progress bar and for TensorBoard.

  A loss is read one step late, so that the device never waits for the host.

  Attributes:
    last: the newest record with a loss.
  """

  def __init__(
    self, path: str, first: int, every: int, about: Step, tensorboard: str = ''
  ):
    """Continues `path` at step `first`: later lines are dropped.

    Args:
      path: of the JSON lines.
      first: step to go on from.
      every: steps between two lines.
      about: the steps.
      tensorboard: directory of TensorBoard's events; '': none.

    Raises:
      ValueError: TensorBoard is wanted and its writer is not installed.
    """
    self._every, self._about = every, about
    self._board = None
    if tensorboard:
      self._board = board(tensorboard, first, 'train.tensorboard')
    self._pending = None
    self._seen = []
    self._since = time.monotonic()
    self.last = {'loss': None}
    kept = []
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        kept = [line for line in file if _step(line) <= first]
    self._file = open(path, 'w', encoding='utf-8')  # noqa: SIM115
    self._file.writelines(kept)
    self._file.flush()

  def __enter__(self) -> 'History':
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
    if self._board:
      self._board.close()

  def push(self, number: int, loss: jax.Array, norm: jax.Array, bar) -> None:
    """Takes loss and gradient norm of step `number`, not waited for yet."""
    self.settle(bar)
    self._pending = (number, loss, norm)

  def settle(self, bar) -> None:
    """Reads the loss that is pending.

    Raises:
      ValueError: if it is not finite.
    """
    if self._pending is None:
      return
    number, loss, norm = self._pending
    self._pending = None
    loss = float(loss)
    if not math.isfinite(loss):
      raise ValueError(
        f'loss {loss} at step {number}: try a smaller train.learning_rate; '
        'the newest checkpoint is from before'
      )
    bar.update()
    self._seen.append((loss, float(norm)))
    if (number + 1) % self._every == 0 or number + 1 == bar.total:
      now, about = time.monotonic(), self._about
      rate = len(self._seen) / (now - self._since)  # Steps a second.
      tokens = rate * about.tokens
      self._since = now
      mean, norm = np.mean(self._seen, axis=0).tolist()
      self._seen.clear()
      self.note(
        number + 1,
        loss=mean,
        learning_rate=float(about.learning_rate(number)),
        gradient_norm=norm,
        tokens_per_second=round(tokens),
        share_of_peak=round(rate * about.operations / about.peak, 4),
      )
      bar.set_postfix_str(f'loss {mean:.3f}, {tokens:,.0f} tokens/s')

  def note(self, step: int, **values: float) -> None:
    """Writes a line."""
    record = {'step': step, **values}
    if 'loss' in values:
      self.last = record
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    if self._board:
      for name, value in values.items():
        self._board.add_scalar(name, value, step)


def board(directory: str, first: int, key: str):
  """A writer of TensorBoard's events, which hides those behind step `first`.

  Raises:
    ValueError: it is not installed, which `key` of the configuration wants.
  """
  try:
    import tensorboardX
  except ImportError as error:
    raise ValueError(
      f"{key}=True needs tensorboardX: pip install 'tttnn[tensorboard]'"
    ) from error
  # Hides what a run has written that went on from before it. Names of files
  # have seconds alone.
  return tensorboardX.SummaryWriter(
    directory, purge_step=first + 1, filename_suffix=f'.{first}.{os.getpid()}'
  )


def _step(line: str) -> float:
  """The step of a line of history; infinite for a torn one."""
  return json.loads(line)['step'] if line.endswith('\n') else math.inf
