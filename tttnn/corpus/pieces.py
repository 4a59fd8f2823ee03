"""Token files of a corpus, one a piece, made in the background where missing.

A piece is a part of a plain file, or a whole one that is compressed. What its
tokens depend on is in the name of its file, which is whole or not there. So any
processes may make the pieces of one corpus together, and those of another time
are taken as they are.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np

from tttnn import files
from tttnn.corpus import formats
from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.corpus import tokenizer as tokenizer_lib

# Some minutes of one core; few enough that a trillion bytes are 4000 files.
PIECE_BYTES = 1 << 28
_DOCUMENTS = 256  # Tokenized at once.
_HEADER = np.dtype(np.int64)  # Documents of the piece, before its tokens.
_WAIT = 0.02  # Seconds between looks for a file.


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How text becomes tokens.

  Attributes:
    tokenizer: as `tttnn.corpus.tokenizer.load` gives it.
    separator: token id after each document.
    on_error: of malformed lines, see `jsonl.records`.
  """

  tokenizer: object
  separator: int
  on_error: str = 'error'

  @property
  def dtype(self) -> np.dtype:
    """The smallest that holds the vocabulary."""
    return np.dtype(np.uint16 if len(self.tokenizer) <= 1 << 16 else np.int32)


@dataclasses.dataclass(frozen=True)
class Piece:
  """Lines of a corpus file, and where their tokens go.

  Attributes:
    path: the corpus file.
    begin: the lines are those that begin at this byte or later ...
    end: ... and before this one; 0: all lines.
    out: the token file.
  """

  path: str
  begin: int
  end: int
  out: str


def plan(
  recipe: Recipe, spec: str, directory: str, piece_bytes: int = PIECE_BYTES
) -> list[Piece]:
  """The pieces of the files `spec`, in order.

  Args:
    recipe: of their tokens.
    spec: comma-separated paths or globs.
    directory: of token files.
    piece_bytes: of a plain file at most.
  """
  jsonl.check_on_error(recipe.on_error)
  rules = {
    'tokenizer': tokenizer_lib.fingerprint(recipe.tokenizer),
    'separator': recipe.separator,
    'on_error': recipe.on_error,
  }
  found = []
  for path in jsonl.expand(spec):
    stamp = seekable.stamp(path)
    parts = [(0, 0)]
    if formats.is_plain(path) and stamp.bytes > piece_bytes:
      begins = range(0, stamp.bytes, piece_bytes)
      parts = [(begin, begin + piece_bytes) for begin in begins]
    for begin, end in parts:
      source = [stamp.bytes, stamp.digest, begin, end]
      key = json.dumps({**rules, 'source': source}, sort_keys=True)
      name = hashlib.sha256(key.encode()).hexdigest()[:32]
      out = os.path.join(directory, f'{name}.tokens')
      found.append(Piece(path, begin, end, out))
  return found


def make(
  recipe: Recipe, piece: Piece, stop: threading.Event | None = None
) -> None:
  """Makes the token file, unless it is there.

  Raises:
    ValueError: for what `jsonl` refuses.
    InterruptedError: `stop` was set meanwhile.
  """

  def write(out) -> None:
    count = 0
    out.write(np.array(0, _HEADER).tobytes())
    texts = _texts(piece, recipe.on_error)
    while batch := list(itertools.islice(texts, _DOCUMENTS)):
      if stop is not None and stop.is_set():
        raise InterruptedError(f'{piece.path} was not tokenized to its end')
      rows = tokenizer_lib.encode(recipe.tokenizer, batch)
      ids = (token for row in rows for token in (*row, recipe.separator))
      flat = np.fromiter(ids, recipe.dtype)
      out.write(flat.tobytes())
      count += len(batch)
    out.seek(0)
    out.write(np.array(count, _HEADER).tobytes())

  files.write_once(piece.out, write)


class Pieces(Sequence):
  """The tokens of pieces, each waited for when it is asked for.

  Args:
    recipe: of their tokens.
    pieces: in order.
    first: their numbers, in the order in which they are needed first.
    workers: processes that make them; 1: a thread of this one.
    share: (this process, of how many) that make them together, each every
      so-many-th; those of others are waited for.
  """

  def __init__(
    self,
    recipe: Recipe,
    pieces: Sequence[Piece],
    first: Sequence[int],
    workers: int,
    share: tuple[int, int] = (0, 1),
  ):
    self._recipe, self._pieces = recipe, pieces
    own, count = share
    first = first[own::count]
    self._own = set(first)
    self._open: dict[int, np.ndarray] = {}
    self._stop = threading.Event()
    self._makers: dict[str, threading.Thread | multiprocessing.Process] = {}
    missing = [pieces[i] for i in first if not os.path.exists(pieces[i].out)]
    if missing:
      os.makedirs(os.path.dirname(missing[0].out), exist_ok=True)
      self._start(missing, min(workers, len(missing)))

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, number: int) -> np.ndarray:
    """The tokens of a piece: [n], memory-mapped.

    Raises:
      ValueError: for what `jsonl` refuses.
      InterruptedError: closed meanwhile.
    """
    if number not in self._open:
      path, dtype = self._wait(number), self._recipe.dtype
      count = (os.path.getsize(path) - _HEADER.itemsize) // dtype.itemsize
      self._open[number] = (
        np.memmap(path, dtype, 'r', _HEADER.itemsize, (count,))
        if count
        else np.empty(0, dtype)
      )
    return self._open[number]

  def documents(self, number: int) -> int:
    """Of a piece."""
    with open(self._wait(number), 'rb') as file:
      return int(np.frombuffer(file.read(_HEADER.itemsize), _HEADER)[0])

  def close(self) -> None:
    """Stops making pieces; those that are there can still be read."""
    self._stop.set()
    for maker in set(self._makers.values()):
      if not isinstance(maker, threading.Thread):  # Which ends by `stop`.
        maker.kill()
        maker.join()
    self._makers = {}

  def _start(self, missing: Sequence[Piece], workers: int) -> None:
    # Daemons: none keeps a process that ends from ending.
    if workers == 1:
      args = self._recipe, missing, self._stop
      makers = [threading.Thread(target=_make_all, args=args, daemon=True)]
    else:
      context = multiprocessing.get_context('spawn')  # JAX may have threads.
      parts = [missing[i::workers] for i in range(workers)]
      makers = [
        context.Process(
          target=_work, args=(self._recipe, part, workers), daemon=True
        )
        for part in parts
      ]
    for maker in makers:
      maker.start()
    for number, piece in enumerate(missing):
      self._makers[piece.out] = makers[number % workers]

  def _wait(self, number: int) -> str:
    piece = self._pieces[number]
    while not os.path.exists(piece.out):
      if self._stop.is_set():
        raise InterruptedError(f'{piece.path} is not tokenized yet')
      maker = self._makers.get(piece.out)
      if number not in self._own or (maker is not None and maker.is_alive()):
        time.sleep(_WAIT)
      else:
        # Made here, it raises what has stopped its maker.
        make(self._recipe, piece, self._stop)
    return piece.out


def _texts(piece: Piece, on_error: str) -> Iterator[str]:
  if not piece.end:
    for _, record in jsonl.records(piece.path, on_error):
      yield record['text']
    return
  with open(piece.path, 'rb') as file:
    # The line before `begin` ends here, or it goes on and is not of this piece.
    file.seek(max(0, piece.begin - 1))
    if piece.begin:
      file.readline()
    while (begin := file.tell()) < piece.end and (line := file.readline()):
      try:
        record = jsonl.parse(line, piece.path, 0)
      except jsonl.MalformedLine:
        if on_error == 'skip':
          continue
        jsonl.parse(line, piece.path, _line_number(piece.path, begin))
        raise
      yield record['text']


def _line_number(path: str, begin: int) -> int:
  """Of the line that begins at this byte, from 1 on."""
  with open(path, 'rb') as file:
    blocks = iter(functools.partial(file.read, 1 << 20), b'')
    number, left = 1, begin
    while left:
      block = next(blocks)[:left]
      number += block.count(b'\n')
      left -= len(block)
  return number


def _make_all(
  recipe: Recipe, missing: Sequence[Piece], stop: threading.Event | None = None
) -> bool:
  """Whether all could be made; who waits for one that is missing makes it."""
  try:
    for piece in missing:
      make(recipe, piece, stop)
  except (ValueError, OSError):
    return False
  return True


def _work(recipe: Recipe, missing: Sequence[Piece], workers: int) -> None:
  """What a process does; it ends with the one that has started it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def end_with_parent() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()
  # The tokenizer's own threads, of which all processes have as many as cores.
  os.environ['RAYON_NUM_THREADS'] = str(max(1, os.cpu_count() // workers))
  sys.exit(not _make_all(recipe, missing))
