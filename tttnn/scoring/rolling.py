"""Rolling log-likelihood: every token scored once, in windows of the context.

As EleutherAI's evaluation harness defines it and Hardt & Sun (2024) use it:
the first window sees only the end-of-text token, a full window after it has
one token of context, and the last, partial window is given as much context as
fits.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.corpus import buckets


@dataclasses.dataclass(frozen=True)
class Window:
  """A model input and the targets of its last positions.

  Attributes:
    inputs: token ids, at most the context.
    targets: the ids that follow the last `len(targets)` inputs.
  """

  inputs: list[int]
  targets: list[int]


def windows(tokens: Sequence[int], context: int, start: int) -> list[Window]:
  """Cuts a document of n tokens into windows; n = 0 gives none.

  Args:
    tokens: without special tokens.
    context: L, the model's context in tokens.
    start: the end-of-text id that stands before the document.
  """
  tokens = list(tokens)
  if not tokens:
    return []
  done = min(context, len(tokens))
  cut = [Window([start, *tokens[: done - 1]], tokens[:done])]
  while done < len(tokens):
    end = min(done + context, len(tokens))
    cut.append(Window(tokens[end - 1 - context : end - 1], tokens[done:end]))
    done = end
  return cut


def scorer(
  apply: Callable, context: int
) -> Callable[[object, Sequence[Window]], float]:
  """A compiled (params, windows) -> log-likelihood in nats.

  Args:
    apply: (params, tokens_BxT, targets_BxT) -> log-likelihood [B, T].
    context: L.

  Returns:
    A function that sums a window in float32 and the windows in double.
  """

  @jax.jit
  def window_log_likelihood(params, tokens_T, targets_T, weights_T):
    scores_T = apply(params, tokens_T[None], targets_T[None])[0]
    return jnp.sum(scores_T * weights_T)

  def score(params, cut: Sequence[Window]) -> float:
    sums = [
      window_log_likelihood(params, *_pad(window, context)) for window in cut
    ]
    return float(sum(np.float64(s) for s in sums))

  return score


def _pad(window: Window, context: int) -> tuple[np.ndarray, ...]:
  """(tokens [T], targets [T], weights [T]) with T a bucket's length."""
  used = len(window.inputs)
  scored = slice(used - len(window.targets), used)
  size = buckets.padded(used, context)
  tokens, targets = np.zeros((2, size), np.int32)
  weights = np.zeros(size, np.float32)
  tokens[:used] = window.inputs
  targets[scored] = window.targets
  weights[scored] = 1
  return tokens, targets, weights
