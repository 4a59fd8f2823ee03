"""Test-time training on nearest neighbours (Hardt & Sun, ICLR 2024).

For a document: score it with the model as it is; then, nearest first, take
one AdamW step on each window of each neighbour's text and score again; then
forget. Parameters are values here: the base model is the input of every
document and is never changed.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import optim
from tttnn.corpus import buckets
from tttnn.scoring import rolling


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a document is adapted to; fields as `ttt` of `configs/base.py`.

  `max_length` and `stride` are tokens, resolved (not 0).
  """

  learning_rate: float
  weight_decay: float
  adam_epsilon: float
  clip_norm: float
  max_length: int
  stride: int
  max_windows: int
  short_windows: str
  optimizer_state: str
  reset_weights: bool
  dropout: bool

  @property
  def carries(self) -> bool:
    """Whether something of a document's state is left for the next one."""
    return self.optimizer_state == 'carry' or not self.reset_weights

  def __post_init__(self):
    if not 0 < self.stride <= self.max_length:
      raise ValueError(
        f'ttt.stride={self.stride} must be 1 to ttt.max_length='
        f'{self.max_length}, or tokens would go untrained'
      )
    if self.short_windows not in ('skip', 'step'):
      raise ValueError(
        f'ttt.short_windows={self.short_windows!r} is not skip or step'
      )
    if self.optimizer_state not in ('fresh', 'carry'):
      raise ValueError(
        f'ttt.optimizer_state={self.optimizer_state!r} is not fresh or carry'
      )


def windows(tokens: Sequence[int], settings: Settings) -> list[list[int]]:
  """Cuts a neighbour's tokens into training windows; no tokens give none.

  Windows share no context, and the first token of each is not predicted.
  """
  starts = range(0, len(tokens), settings.stride)
  cut = [list(tokens[s : s + settings.max_length]) for s in starts]
  if settings.short_windows == 'skip':
    cut = [window for window in cut if len(window) > 1]
  return cut[: settings.max_windows or None]


def loss(
  apply: Callable, params, tokens_T: jax.Array, length: jax.Array, key=None
) -> jax.Array:
  """Mean negative log-likelihood of tokens 1 .. length - 1, in nats.

  A window of one token has no target; its loss is 0, and so is its gradient.
  A `key` switches dropout on.
  """
  targets_T = jnp.roll(tokens_T, -1)
  scores_T = apply(params, tokens_T[None], targets_T[None], dropout_key=key)[0]
  weights_T = jnp.arange(tokens_T.size) < length - 1
  return -jnp.sum(scores_T * weights_T) / jnp.maximum(length - 1, 1)


@dataclasses.dataclass(frozen=True)
class Program:
  """The compiled pieces of a run.

  Attributes:
    score: (params, scored windows) -> log-likelihood in nats.
    start: params -> state, a copy of the parameters with a fresh optimizer.
    renew: (params, state) -> state of the next document, which takes from the
      given one, used up, what `settings` says is carried on.
    step: (state, tokens_T, length, key) -> (state, loss) of a window as `pad`
      gives it; the given state is used up. state[0] are the adapted
      parameters; the loss is NaN where the window has no target; the key is
      dropout's, or None.
    settings: of adaptation.
  """

  score: Callable
  start: Callable
  renew: Callable
  step: Callable
  settings: Settings

  def pad(self, window: Sequence[int]) -> tuple[np.ndarray, np.int32]:
    """The window at the length of its bucket, and its own length."""
    size = buckets.padded(len(window), self.settings.max_length)
    tokens_T = np.zeros(size, np.int32)
    tokens_T[: len(window)] = window
    return tokens_T, np.int32(len(window))


def compile_program(
  apply: Callable, settings: Settings, context: int
) -> Program:
  """Compiles, at first use, scoring and adaptation.

  Args:
    apply: (params, tokens_BxT, targets_BxT, dropout_key=None) ->
      log-likelihood [B, T].
    settings: of adaptation.
    context: of the model, in tokens.
  """
  optimizer = optim.adamw(
    settings.learning_rate,
    weight_decay=settings.weight_decay,
    clip_norm=settings.clip_norm,
    epsilon=settings.adam_epsilon,
  )

  @jax.jit
  def start(params):
    return jax.tree.map(jnp.copy, params), optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=1)
  def renew(params, state):
    adapted, moments = state
    if settings.reset_weights:
      adapted = jax.tree.map(jnp.copy, params)
    if settings.optimizer_state == 'fresh':
      moments = optimizer.init(adapted)
    return adapted, moments

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, tokens_T, length, key):
    params, moments = state
    value, gradient = jax.value_and_grad(
      lambda p: loss(apply, p, tokens_T, length, key)
    )(params)
    updates, moments = optimizer.update(gradient, moments, params)
    params = jax.tree.map(jnp.add, params, updates)
    return (params, moments), jnp.where(length > 1, value, jnp.nan)

  score = rolling.scorer(apply, context)
  return Program(score, start, renew, step, settings)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What adaptation did to one document.

  Attributes:
    at: the neighbour counts that were scored.
    log_likelihood: nats, one a count.
    train_loss: mean loss of each neighbour's steps, nats a token; 0 where it
      has no step, NaN where one of them had no target.
    steps: of each neighbour.
    adapt_seconds: in training steps.
    score_seconds: in scoring.
  """

  at: list[int]
  log_likelihood: list[float]
  train_loss: list[float]
  steps: list[int]
  adapt_seconds: float
  score_seconds: float


def run(
  program: Program,
  params,
  document: Sequence[rolling.Window],
  neighbors: Sequence[Sequence[Sequence[int]]],
  counts: Collection[int],
  *,
  carried=None,
  key: jax.Array | None = None,
) -> tuple[Outcome, object]:
  """Scores a document, adapts to its neighbours one by one, scores again.

  Args:
    program: the compiled pieces.
    params: of the base model; they stay as they are.
    document: the windows to score.
    neighbors: the training windows of each neighbour, nearest first.
    counts: after how many neighbours to score; 0 is the model before it
      adapts. Counts above the number of neighbours are not reached.
    carried: the state that the document before left behind, used up; None at
      the beginning, or where nothing is carried on.
    key: of dropout, each step folding in its number; None: no dropout.

  Returns:
    What happened, and the state for the next document; None where nothing is
    carried on.
  """
  clock = _Clock()
  at, log_likelihood, train_loss, steps = [], [], [], []

  def score(count, params):
    if count in counts:
      at.append(count)
      log_likelihood.append(program.score(params, document))
      clock.stop('score')

  state = None
  if carried is not None:
    state = program.renew(params, carried)
  elif neighbors:
    state = program.start(params)
  jax.block_until_ready(state)
  clock.stop('adapt')
  score(0, params if state is None else state[0])
  for count, windows_ in enumerate(neighbors, 1):
    losses = []
    for window in windows_:
      number = sum(steps) + len(losses)
      step_key = None if key is None else jax.random.fold_in(key, number)
      state, value = program.step(state, *program.pad(window), step_key)
      losses.append(value)
    train_loss.append(float(np.mean(losses)) if losses else 0.0)
    steps.append(len(losses))
    jax.block_until_ready(state)
    clock.stop('adapt')
    score(count, state[0])
  seconds = clock.seconds
  outcome = Outcome(
    at, log_likelihood, train_loss, steps, seconds['adapt'], seconds['score']
  )
  return outcome, state if program.settings.carries else None


class _Clock:
  """Charges the time since the last stop to what is stopped."""

  def __init__(self):
    self.seconds = {'adapt': 0.0, 'score': 0.0}
    self._since = time.monotonic()

  def stop(self, name: str) -> None:
    now = time.monotonic()
    self.seconds[name] += now - self._since
    self._since = now
