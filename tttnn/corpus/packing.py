"""Training rows from a corpus: packed streams of tokens, cut in blocks.

Documents are tokenized piece by piece into files (`pieces`), each followed by a
separator, and mapped from there. Which rows a step trains on is a function of
the seed and the step alone, so the step is the whole data position.

A stream has all pieces in file order, or as many at a time as a window holds:
then each epoch visits all pieces in an order of its own, and mixes the rows of
those in a window. So training begins when the first window is tokenized, and
order and position still need no memory.
"""

import bisect
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import os

import numpy as np
import tqdm

from tttnn.corpus import pieces as pieces_lib
from tttnn.corpus import shuffle

# Behind (seed, epoch): keys of the order of pieces, and of rows in window 0, 1.
_PIECES, _WINDOWS = 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Tokens of a corpus.

  Attributes:
    pieces: token arrays [n], in file order.
    documents: how many there are; with a window, as far as is known.
    digest: of what the tokens are made of; a resumed run compares it.
    window: pieces whose rows are mixed; 0: all, as one stream in file order.
  """

  pieces: Sequence[np.ndarray]
  documents: int
  digest: str
  window: int = 0

  def windows(self, seed: int, epoch: int) -> list[Sequence[int]]:
    """The numbers of the pieces in each window of an epoch, in order."""
    count = len(self.pieces)
    if not self.window:
      return [range(count)]
    visited = shuffle.Shuffle((seed, epoch, _PIECES), count)[np.arange(count)]
    return [
      visited[begin : begin + self.window].tolist()
      for begin in range(0, count, self.window)
    ]

  def close(self) -> None:
    """Ends what makes its pieces."""
    if isinstance(self.pieces, pieces_lib.Pieces):
      self.pieces.close()


def pack(
  tokenizer,
  separator: int,
  spec: str,
  directory: str,
  *,
  on_error: str = 'error',
  window: int = 0,
  seed: int = 0,
  workers: int = 1,
  share: tuple[int, int] = (0, 1),
  piece_bytes: int = pieces_lib.PIECE_BYTES,
) -> Stream:
  """The tokens of the files `spec`, kept in `directory` for the next time.

  Returns when the first window is tokenized.

  Args:
    tokenizer: as `tttnn.corpus.tokenizer.load` gives it.
    separator: token id after each document.
    spec: comma-separated paths or globs.
    directory: of the files to keep.
    on_error: of malformed lines, see `jsonl.records`.
    window: as of `Stream`.
    seed: of `batch`, for the order in which pieces are made.
    workers: processes that tokenize, or 1: a thread; 0: a fourth of the cores.
    share: (this process, of how many) that share the files and tokenize a part
      of them each.
    piece_bytes: of a plain file that make a piece, at most.

  Raises:
    ValueError: for what `jsonl` refuses, a corpus without documents, or numbers
      below 0.
  """
  if min(window, workers) < 0:
    raise ValueError(
      f'train.window={window} and train.workers={workers} must be 0 or more'
    )
  recipe = pieces_lib.Recipe(tokenizer, separator, on_error)
  planned = pieces_lib.plan(recipe, spec, directory, piece_bytes)
  names = ' '.join(os.path.basename(piece.out) for piece in planned)
  digest = hashlib.sha256(names.encode()).hexdigest()
  stream = Stream(planned, 0, digest, window)
  windows = stream.windows(seed, 0)
  made = pieces_lib.Pieces(
    recipe,
    planned,
    [number for members in windows for number in members],
    workers or max(1, (os.cpu_count() or 1) // 4),
    share,
  )
  try:
    documents = _documents(made, windows[0], os.path.basename(directory))
    if not documents and len(windows) == 1:
      paths = dict.fromkeys(piece.path for piece in planned)
      raise ValueError(f'the corpus is empty: {", ".join(paths)}')
  except BaseException:
    made.close()
    raise
  return dataclasses.replace(stream, pieces=made, documents=documents)


def batch(
  stream: Stream,
  step: int,
  *,
  rows: int,
  length: int,
  overlap: int,
  seed: int,
  own: Sequence[int] | None = None,
) -> np.ndarray:
  """The rows of step `step`: int32 [rows, length + overlap].

  The pieces of a window, one after another, are cut into blocks of `length`
  tokens, and each epoch visits all of them in an order of its own. `overlap`
  tokens of the next block follow (1 where the row's last token is only a
  target). Of `own`, ascending, those rows alone are read.

  Raises:
    ValueError: if no window is as long as one row.
  """
  layout = _layout(stream, length, overlap, seed)
  own = range(rows) if own is None else own
  places = {int(row): place for place, row in enumerate(own)}
  out = np.empty((len(own), length + overlap), np.int32)
  row = 0
  while row < rows:
    span = layout.span(step * rows + row)
    first = step * rows + row - span.begin
    count = min(rows - row, span.blocks - first)
    for block in span.order[np.arange(first, first + count)]:
      if row in places:
        span.read(stream.pieces, int(block) * length, out[places[row]])
      row += 1
  return out


@functools.lru_cache(maxsize=2)  # A batch may span two epochs.
def order(seed: int, epoch: int, count: int) -> shuffle.Shuffle:
  """The order in which an epoch visits what there is of `count`."""
  return shuffle.Shuffle((seed, epoch), count)


@dataclasses.dataclass(frozen=True)
class _Span:
  """The rows of a window in an epoch.

  Attributes:
    begin: position of its first one in training.
    blocks: how many there are.
    members: numbers of its pieces.
    starts: position in the window of each one's first token, and the end.
    order: in which they are visited.
  """

  begin: int
  blocks: int
  members: Sequence[int]
  starts: np.ndarray
  order: shuffle.Shuffle

  def read(
    self, pieces: Sequence[np.ndarray], begin: int, out: np.ndarray
  ) -> None:
    """Copies the window's tokens from `begin` on, over ends of pieces."""
    place = int(np.searchsorted(self.starts, begin, side='right')) - 1
    done = 0
    while done < len(out):
      tokens = pieces[self.members[place]]
      first = begin + done - int(self.starts[place])
      part = tokens[first : first + len(out) - done]
      out[done : done + len(part)] = part
      done += len(part)
      place += 1


class _Layout:
  """Where in training the rows of a stream are; grows as training goes on."""

  def __init__(self, stream: Stream, length: int, overlap: int, seed: int):
    self._stream, self._seed = stream, seed
    self._length, self._overlap = length, overlap
    self._spans: list[_Span] = []
    self._end = 0
    self._coming = self._all()

  def span(self, position: int) -> _Span:
    """The window that the row at a position is of."""
    while position >= self._end:
      span = next(self._coming)
      self._spans.append(span)
      self._end = span.begin + span.blocks
    place = bisect.bisect_right(self._spans, position, key=lambda s: s.begin)
    return self._spans[place - 1]

  def _all(self) -> Iterator[_Span]:
    stream, length, overlap = self._stream, self._length, self._overlap
    begin = 0
    for epoch in itertools.count():
      before, longest = begin, 0
      for number, members in enumerate(stream.windows(self._seed, epoch)):
        sizes = [len(stream.pieces[member]) for member in members]
        starts = np.cumsum([0, *sizes])
        longest = max(longest, int(starts[-1]))
        blocks = (int(starts[-1]) - overlap) // length
        if blocks < 1:
          continue
        key = self._seed, epoch, _WINDOWS + number
        order = shuffle.Shuffle(key, blocks)
        yield _Span(begin, blocks, members, starts, order)
        begin += blocks
      if begin == before:
        raise ValueError(
          f'the corpus has {longest} tokens, a row needs {length + overlap}: '
          'take a smaller train.sequence_length, a larger train.window or more '
          'text'
        )


@functools.lru_cache(maxsize=4)
def _layout(stream: Stream, length: int, overlap: int, seed: int) -> _Layout:
  return _Layout(stream, length, overlap, seed)


def _documents(
  made: pieces_lib.Pieces, members: Sequence[int], name: str
) -> int:
  """Of these pieces and their share of all others, when they are tokenized."""
  bar = tqdm.tqdm(desc=f'tokenize {name}', total=len(members), unit=' pieces')
  total = 0
  with bar:
    for member in members:
      total += made.documents(member)
      bar.update()
  return round(total * len(made) / len(members))
