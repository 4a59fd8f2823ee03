"""How an evaluation goes while it runs: a bar, or lines; TensorBoard; a file.

`progress.json` beside the rows says how many there will be, so that a report of
a run that still goes can say how far it is.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import json
import math
import os
import sys
import time

import tqdm

from tttnn import distributed
from tttnn import files
from tttnn import history
from tttnn.scoring import metrics

_SECONDS = 30.0  # Between lines, where nobody watches.


def announce(workdir: str, documents: int) -> None:
  """Writes how many documents (or pairs) the run has, if this is the main one.

  Only where results.jsonl is what the run leaves; not for validation.
  """
  if distributed.is_main():
    content = json.dumps({'documents': documents}) + '\n'
    files.write_if_changed(os.path.join(workdir, 'progress.json'), content)


def expected(workdir: str) -> int | None:
  """What `announce` has written; None if nothing."""
  path = os.path.join(workdir, 'progress.json')
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as file:
    return json.load(file)['documents']


def board(config, workdir: str) -> str:
  """Where TensorBoard's scalars go; '' where none are wanted."""
  return os.path.join(workdir, 'tensorboard') if config.eval.tensorboard else ''


class Live:
  """Shows rows as they come; of several processes only the main one does.

  A terminal gets a bar, anything else a line at times. Scores are micro
  averages over the rows so far, those of an earlier run that this one continues
  included; seconds a document and the time left come from this run alone.
  """

  def __init__(
    self,
    method: str,
    earlier: Iterable[Mapping],
    total: int,
    *,
    unit: str = 'documents',
    board: str = '',
  ):
    """Begins to count time.

    Args:
      method: for the bar.
      earlier: rows of this process that are there.
      total: of rows that it will have.
      unit: 'documents', of which bits a byte are shown, or 'pairs', of which
        nats a token are.
      board: directory for TensorBoard's scalars; '': none.

    Raises:
      ValueError: TensorBoard is wanted and its writer is not installed.
    """
    self._sums = [0.0, 0.0, 0.0]  # Nats before, after; bytes or tokens.
    self._unit, self._total, self._done = unit, total, 0
    for row in earlier:
      self._count(row)
    self._new, self._start = 0, time.monotonic()
    self._said = self._start
    self._name = f'evaluate {method}'
    if distributed.count() > 1:
      self._name += f', process 0 of {distributed.count()}'
    shown = distributed.is_main()
    self._board = None
    if board and shown:
      self._board = history.board(board, self._done, 'eval.tensorboard')
    watched = shown and sys.stderr.isatty()
    self._lines = shown and not watched
    self._bar = tqdm.tqdm(
      total=total,
      initial=self._done,
      desc=self._name,
      unit=f' {unit}',
      disable=not watched,
      smoothing=0.05,  # Documents differ; the last few say little.
    )

  def __enter__(self) -> 'Live':
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()
    if self._board:
      self._board.close()

  def add(self, row: Mapping) -> None:
    """Counts a row that was just written."""
    self._count(row)
    self._new += 1
    now = time.monotonic()
    each = (now - self._start) / self._new
    before, after = self.scores
    self._bar.update()
    self._bar.set_postfix_str(f'{self._scores_text()}, {each:.3g} s each')
    if self._board:
      for name, value in (
        ('before', before),
        ('after', after),
        ('seconds_per_document', each),
      ):
        if math.isfinite(value):
          self._board.add_scalar(f'evaluate/{name}', value, self._done)
      self._board.flush()  # What a kill would lose is not there a second time.
    last = self._done == self._total
    if self._lines and (last or now - self._said >= _SECONDS):
      self._said = now
      left = tqdm.tqdm.format_interval(each * (self._total - self._done))
      print(
        f'{self._name}: {self._done:,} of {self._total:,} {self._unit}, '
        f'{self._scores_text()}, {each:.3g} s each, {left} left',
        file=sys.stderr,
        flush=True,
      )

  @property
  def scores(self) -> tuple[float, float]:
    """Bits a byte, or nats a token, before and after; NaN where none is."""
    before, after, size = self._sums
    if self._unit == 'documents':
      return metrics.bits_per_byte(before, size), metrics.bits_per_byte(
        after, size
      )
    return (-before / size, -after / size) if size else (math.nan, math.nan)

  def _scores_text(self) -> str:
    before, after = self.scores
    name = 'bits/byte' if self._unit == 'documents' else 'nats/token'
    return f'{name} {before:.3f} -> {after:.3f}'

  def _count(self, row: Mapping) -> None:
    self._done += 1
    values = row['log_likelihood'][0], row['log_likelihood'][-1]
    if any(v is None or not math.isfinite(v) for v in values):
      return  # The summary counts those; here they would hide the others.
    size = row['num_bytes' if self._unit == 'documents' else 'num_tokens']
    for place, value in enumerate((*values, size)):
      self._sums[place] += value
