"""Texts of a corpus, whose tokens a store holds: a `build_tokens.Source`."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
from typing import Any
from typing import Protocol

from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.scoring import rolling

_TEXTS = 256  # Tokenized at once.


class Reader(Protocol):
  """What reads them: `keys.Keys`."""

  context: int
  start: int

  def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


class Texts:
  """A text a line, of files of any format of `formats`.

  A malformed line is a text without tokens, where it is no error. Attributes
  and methods as of `build_tokens.Source`.
  """

  def __init__(
    self, reader: Reader, on_error: str, *, window: int = 0, stride: int = 0
  ):
    """Takes a model and how it reads.

    Args:
      reader: the model.
      on_error: what becomes of malformed lines, as `corpus.on_error`.
      window: tokens of the windows that a text is read in; 0: the model's
        context.
      stride: between these, see `rolling.windows`; 0: they do not overlap.

    Raises:
      ValueError: for windows that the model does not allow.
    """
    jsonl.check_on_error(on_error)
    rolling.check(window or reader.context, stride, reader.context, 'store')
    self._reader, self._on_error = reader, on_error
    self._window, self._stride = window or reader.context, stride
    cut = {'window': window, 'stride': stride}
    self.about: dict[str, Any] = {
      name: value for name, value in cut.items() if value
    }

  def stamp(self, path: str) -> seekable.Stamp:
    return seekable.stamp(path)

  def check(self, path: str, expected: seekable.Stamp) -> None:
    seekable.check(path, expected)

  def texts(self, path: str) -> Iterator[Sequence[int]]:
    texts = self._lines(path)
    while batch := list(itertools.islice(texts, _TEXTS)):
      yield from self._reader.encode(batch)

  def malformed(self, path: str, numbers: Collection[int]) -> int:
    if not numbers:
      return 0
    wanted, malformed = set(numbers), 0
    with open(path, 'rb') as file:
      for row, line in enumerate(jsonl.lines(file)):
        if row in wanted:
          try:
            jsonl.parse(line, path, row + 1)
          except jsonl.MalformedLine:
            if self._on_error == 'error':
              raise
            malformed += 1
    return malformed

  def pieces(
    self, path: str, number: int, tokens: Sequence[int], begin: int, end: int
  ) -> list[rolling.Window]:
    del path, number
    return rolling.windows(
      tokens,
      self._window,
      self._reader.start,
      begin,
      end,
      stride=self._stride,
    )

  def name(self, path: str, number: int) -> str:
    return f'{path}:{number + 1}'

  def _lines(self, path: str) -> Iterator[str]:
    with open(path, 'rb') as file:
      for row, line in enumerate(jsonl.lines(file)):
        try:
          yield jsonl.parse(line, path, row + 1)['text']
        except jsonl.MalformedLine:
          if self._on_error == 'error':
            raise
          yield ''
