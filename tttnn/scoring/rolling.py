"""Log-likelihood of a document: every token scored once, window by window.

Rolling windows are those of EleutherAI's evaluation harness, which Hardt & Sun
(2024) use: the first window sees only the end-of-text token, a full window
after it has one token of context, and the last, partial window is given as much
context as fits.

Sliding windows are those of Hugging Face's guide to perplexity: they begin
every `stride` tokens, the end-of-text token before the document being the
first, and what a window holds beyond the one before it is scored. So all tokens
but the first ones have at least window - stride tokens before them.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
  """A model input and the targets of its last positions.

  Attributes:
    inputs: token ids, at most the context.
    targets: the ids that follow the last `len(targets)` inputs.
  """

  inputs: list[int]
  targets: list[int]

  @property
  def places(self) -> slice:
    """Of the inputs that the targets follow."""
    return slice(len(self.inputs) - len(self.targets), len(self.inputs))


def windows(
  tokens: Sequence[int],
  context: int,
  start: int,
  begin: int = 0,
  end: int | None = None,
  *,
  stride: int = 0,
) -> list[Window]:
  """Cuts a document of n tokens into windows; n = 0 gives none.

  Args:
    tokens: without special tokens.
    context: L, tokens of a window: of rolling ones its inputs; a sliding one
      holds its last target too, so that it has an input less.
    start: the end-of-text id that stands before the document.
    begin: the first token that is scored; those before it are context alone.
    end: after the last one, None: n. What lies behind is left out of the
      windows, which else are those of the whole document.
    stride: of sliding windows, below L; 0: rolling ones.
  """
  end = len(tokens) if end is None else end
  spans = _sliding(len(tokens), context, stride)
  if not stride:
    spans = _rolling(len(tokens), context)
  cut = []
  for left, first, last in spans:
    if last <= begin:
      continue
    if first >= end:
      break
    used = min(last, end)
    if left:
      inputs = [*tokens[left - 1 : used - 1]]
    else:
      inputs = [start, *tokens[: used - 1]]
    cut.append(Window(inputs, [*tokens[max(first, begin) : used]]))
  return cut


def check(window: int, stride: int, context: int, section: str) -> None:
  """Raises `ValueError` for windows that a model's context does not allow.

  `section` is the one of the config that has both, for the error.
  """
  if not 1 <= window <= context:
    raise ValueError(
      f'{section}.window={window} is not from 1 to {context}, the context of '
      'the model'
    )
  if not 0 <= stride < window:
    raise ValueError(
      f'{section}.stride={stride} is not from 0 to {window - 1}: windows of '
      f'{window} tokens that overlap by none score no token at a border'
    )


# (left, first, last) of each window: it scores tokens first .. last - 1 and
# begins with the token before `left`, of which the end-of-text token is the one
# before 0.
_Spans = Iterator[tuple[int, int, int]]


def _rolling(count: int, context: int) -> _Spans:
  for first in range(0, count, context):
    last = min(first + context, count)
    yield max(0, last - context), first, last


def _sliding(count: int, window: int, stride: int) -> _Spans:
  left = first = 0
  while first < count:
    last = min(left + window - 1, count)
    yield left, first, last
    left, first = left + stride, last


def pad(window: Window, size: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens [T], targets [T]) with T = size, filled up at their ends.

  The targets of what is scored stand at the last inputs; elsewhere they are 0.
  """
  tokens, targets = np.zeros((2, size), np.int32)
  tokens[: len(window.inputs)] = window.inputs
  targets[window.places] = window.targets
  return tokens, targets
