"""Rolling log-likelihood: every token scored once, in windows of the context.

As EleutherAI's evaluation harness defines it and Hardt & Sun (2024) use it:
the first window sees only the end-of-text token, a full window after it has
one token of context, and the last, partial window is given as much context as
fits.
"""

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


def windows(
  tokens: Sequence[int],
  context: int,
  start: int,
  begin: int = 0,
  end: int | None = None,
) -> list[Window]:
  """Cuts a document of n tokens into windows; n = 0 gives none.

  Args:
    tokens: without special tokens.
    context: L, the model's context in tokens.
    start: the end-of-text id that stands before the document.
    begin: the first token that is scored; those before it are context alone.
    end: after the last one, None: n. What lies behind is left out of the
      windows, which else are those of the whole document.
  """
  end = len(tokens) if end is None else end
  cut = []
  for first in range(begin // context * context, end, context):
    last = min(first + context, len(tokens))
    used = min(last, end)
    if first:
      inputs = [*tokens[last - 1 - context : used - 1]]
    else:
      inputs = [start, *tokens[: used - 1]]
    cut.append(Window(inputs, [*tokens[max(first, begin) : used]]))
  return cut


def pad(window: Window, size: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens [T], targets [T]) with T = size, filled up at their ends.

  The targets of what is scored stand at the last inputs; elsewhere they are 0.
  """
  used = len(window.inputs)
  tokens, targets = np.zeros((2, size), np.int32)
  tokens[:used] = window.inputs
  targets[used - len(window.targets) : used] = window.targets
  return tokens, targets
