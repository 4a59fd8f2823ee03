"""Test-time training on nearest neighbours (Hardt & Sun, ICLR 2024).

For a document: score it with the model as it is; then, nearest first, take
one AdamW step on each window of each neighbour's text and score again; then
forget. Here is what happens to one document, as pure functions of its state;
`pool` compiles them and runs many documents at once.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tttnn import optim
from tttnn.methods import trainable

# Methods that take training steps.
METHODS = ('ttt', 'dynamic_eval')
# What a document has of its own: (what trains, the optimizer's state).
State = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a document is adapted to; fields as `ttt` of `configs/base.py`.

  `max_length` and `stride` are tokens; 0 stands for the model's context, and is
  resolved before anything adapts.
  """

  learning_rate: float = 2e-5
  weight_decay: float = 0.0
  adam_epsilon: float = 1e-8
  clip_norm: float = 1.0
  max_length: int = 0
  stride: int = 0
  max_windows: int = 0
  short_windows: str = 'skip'
  optimizer_state: str = 'fresh'
  reset_weights: bool = True
  dropout: bool = False
  gradient_reuse: int = 1

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `ttt` of the config, which has more than this."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: section[name] for name in names})

  @property
  def carries(self) -> bool:
    """Whether something of a document's state is left for the next one."""
    return self.optimizer_state == 'carry' or not self.reset_weights

  def __post_init__(self):
    if self.stride and not 0 < self.stride <= (self.max_length or math.inf):
      raise ValueError(
        f'ttt.stride={self.stride} must be 1 to ttt.max_length='
        f'{self.max_length}, or tokens would go untrained'
      )
    if self.gradient_reuse < 1:
      raise ValueError(
        f'ttt.gradient_reuse={self.gradient_reuse} must be 1 (a gradient is '
        'used once) or more'
      )
    if self.gradient_reuse > 1 and self.max_windows != 1:
      raise ValueError(
        f'ttt.gradient_reuse={self.gradient_reuse} keeps the gradient of one '
        f'window, but ttt.max_windows={self.max_windows}: set that to 1'
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
  cross_entropy: Callable, params, tokens_T: jax.Array, length, key=None
) -> jax.Array:
  """Mean negative log-likelihood of tokens 1 .. length - 1, in nats.

  A window of one token has no target; its loss is 0, and so is its gradient.
  A `key` switches dropout on.
  """
  targets_T = jnp.roll(tokens_T, -1)
  weights_T = (jnp.arange(tokens_T.size) < length - 1) / jnp.maximum(
    length - 1, 1
  )
  return cross_entropy(
    params, tokens_T[None], targets_T[None], weights_T[None], dropout_key=key
  )


@dataclasses.dataclass(frozen=True)
class Adaptation:
  """What happens to one document.

  Parameters are values: the base model, `frozen` and `trained` as
  `trainable.split` gives them, is an input and never changes.

  Attributes:
    cross_entropy: (params, tokens_BxT, targets_BxT, weights_BxT,
      dropout_key=None) -> -sum(weights * log-likelihood), in nats.
    log_likelihood: (params, tokens_BxT, targets_BxT) -> that of each target,
      [B, T], in nats; or [B, T, K], with what else is to be known of each.
    settings: how it adapts.
    seed: of dropout.
  """

  cross_entropy: Callable
  log_likelihood: Callable
  settings: Settings
  seed: int = 0

  @property
  def optimizer(self) -> optax.GradientTransformation:
    settings = self.settings
    return optim.adamw(
      settings.learning_rate,
      weight_decay=settings.weight_decay,
      clip_norm=settings.clip_norm,
      epsilon=settings.adam_epsilon,
    )

  def start(self, trained) -> State:
    """The state of a document that begins with the base model."""
    return trained, self.optimizer.init(trained)

  def renew(self, trained, state: State) -> State:
    """The state of a document after another one.

    It takes from the other's what the settings say is carried on.
    """
    adapted, moments = state
    if self.settings.reset_weights:
      adapted = trained
    if self.settings.optimizer_state == 'fresh':
      moments = self.optimizer.init(adapted)
    return adapted, moments

  def gradient(
    self, frozen, state: State, tokens_T: jax.Array, length, number_2
  ) -> tuple[Any, jax.Array]:
    """Of the loss of a window, by what trains; and the loss.

    Args:
      frozen: what does not train.
      state: of the document.
      tokens_T: the window, filled up at its end.
      length: of the window without the filling; where it is 1 there is no
        target, the gradient is zero and the loss NaN.
      number_2: of the document and of the step in it; dropout's keys are made
        of them.
    """
    key = None
    if self.settings.dropout:
      key = jax.random.fold_in(jax.random.key(self.seed), number_2[0])
      key = jax.random.fold_in(key, number_2[1])

    def objective(trained):
      params = trainable.combine(frozen, trained)
      return loss(self.cross_entropy, params, tokens_T, length, key)

    value, gradient = jax.value_and_grad(objective)(state[0])
    return gradient, jnp.where(length > 1, value, jnp.nan)

  def update(self, state: State, gradient) -> State:
    """An AdamW step: what trains and its moments after it."""
    trained, moments = state
    updates, moments = self.optimizer.update(gradient, moments, trained)
    return jax.tree.map(jnp.add, trained, updates), moments

  def score(self, frozen, state: State, tokens_T, targets_T) -> jax.Array:
    """`log_likelihood` of the targets, [T] or [T, K], by the adapted model."""
    params = trainable.combine(frozen, state[0])
    return self.log_likelihood(params, tokens_T[None], targets_T[None])[0]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What adaptation did to one document.

  Attributes:
    at: the neighbour counts that were scored.
    log_likelihood: nats, one a count.
    token_log_likelihood: nats, an array [tokens] a count; or [tokens, K], as
      `Adaptation.log_likelihood` gives them.
    train_loss: mean loss of each neighbour's steps, nats a token; 0 where it
      has no step, NaN where one of them had no target. A step by a gradient
      that is used again counts with the loss of that.
    steps: of each neighbour.
    adapt_seconds: in the steps of each neighbour; of a step that several
      documents took together, an equal part.
    score_seconds: in scoring at each count, likewise.
  """

  at: list[int]
  log_likelihood: list[float]
  token_log_likelihood: list[np.ndarray]
  train_loss: list[float]
  steps: list[int]
  adapt_seconds: list[float]
  score_seconds: list[float]
