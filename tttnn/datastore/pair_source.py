"""Outputs of pairs, whose tokens a store holds: a `build_tokens.Source`."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from tttnn.corpus import pairs as pairs_lib
from tttnn.corpus import seekable


@dataclasses.dataclass(frozen=True)
class Piece:
  """What the model reads of a pair for tokens of its output.

  Attributes:
    source: the tokens of the input.
    output: those of the output, up to the last that counts.
    begin: the first of them that counts.
  """

  source: list[int]
  output: list[int]
  begin: int

  @property
  def places(self) -> slice:
    return slice(self.begin, len(self.output))


class Outputs:
  """An output a pair, of files that `corpus.pairs` wrote.

  Attributes and methods as of `build_tokens.Source`. A file has the digest of
  its contents, whatever was noted beside them.
  """

  about: dict[str, Any] = {'pairs': True}

  def __init__(self):
    self._opened = {}

  def stamp(self, path: str) -> seekable.Stamp:
    return seekable.Stamp(os.path.getsize(path), self._pairs(path).digest)

  def check(self, path: str, expected: seekable.Stamp) -> None:
    found = pairs_lib.open(path).digest
    if found != expected.digest:
      raise ValueError(
        f'{path} has the digest {found[:12]} but had {expected.digest[:12]} '
        'before: the pairs have changed'
      )

  def texts(self, path: str) -> Iterator[Sequence[int]]:
    return (output for _, output in self._pairs(path))

  def malformed(self, path: str, numbers: Collection[int]) -> int:
    """None: what was malformed is not among the pairs."""
    del path, numbers
    return 0

  def pieces(
    self, path: str, number: int, tokens: Sequence[int], begin: int, end: int
  ) -> list[Piece]:
    source, _ = self._pairs(path)[number]
    return [Piece(source, list(map(int, tokens[:end])), begin)]

  def name(self, path: str, number: int) -> str:
    return f'{path}: pair {number}'

  def _pairs(self, path: str) -> pairs_lib.Pairs:
    """Those of a file, as it was at first."""
    path = os.path.realpath(path)
    if path not in self._opened:
      self._opened[path] = pairs_lib.open(path)
    return self._opened[path]
