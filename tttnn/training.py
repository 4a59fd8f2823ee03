"""The training loop's parts: objectives, schedule, compiled step, history."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import json
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tttnn.corpus import packing
from tttnn.models import model as model_lib
from tttnn.models import seq2seq

_MASKS = 1  # Keys the random numbers of masking; 0 is the order of rows.


@dataclasses.dataclass(frozen=True)
class Task:
  """What one step trains on, for either objective.

  causal: rows of a packed stream, each token predicts the next. masked: rows
  `<s> tokens </s>`; of round(p * tokens) positions, chosen anew each time, 80 %
  read <mask>, 10 % a random token, 10 % what is there, and all are predicted
  (Devlin et al., NAACL 2019, section 3.1).

  Attributes:
    model: what is trained.
    tokenizer: of the stream.
    objective: 'causal' or 'masked'.
    rows: of a step.
    length: tokens of a row.
    mask_probability: p.
    dropout: whether dropout is on.
  """

  model: model_lib.Model
  tokenizer: object
  objective: str
  rows: int
  length: int
  mask_probability: float
  dropout: bool

  @classmethod
  def create(cls, train, model: model_lib.Model, tokenizer) -> 'Task':
    """From the section `train` of the config.

    Raises:
      ValueError: if objective, length and model do not go together.
    """
    masked = train.objective == 'masked'
    if train.objective not in ('causal', 'masked'):
      raise ValueError(
        f'train.objective={train.objective!r} is not causal or masked'
      )
    if masked != (model.model_type == 'roberta'):
      raise ValueError(
        f'train.objective={train.objective!r} does not fit a '
        f'{model.model_type}: roberta is trained masked, the others causal'
      )
    length = train.sequence_length or model.context
    if length > model.context:
      raise ValueError(
        f'train.sequence_length={length} exceeds the {model.context} positions '
        'of the model'
      )
    return cls(
      model=model,
      tokenizer=tokenizer,
      objective=train.objective,
      rows=train.batch_size,
      length=length,
      mask_probability=train.mask_probability,
      dropout=train.dropout,
    )

  @property
  def tokens(self) -> int:
    """Tokens of a step."""
    return self.rows * self.length

  def batch(
    self, stream: packing.Stream, step: int, seed: int
  ) -> dict[str, np.ndarray]:
    """The arrays of step `step`, a function of its arguments alone."""
    if self.objective == 'causal':
      rows = packing.batch(
        stream,
        step,
        rows=self.rows,
        length=self.length,
        overlap=1,
        seed=seed,
      )
      return {'tokens': rows[:, :-1], 'targets': rows[:, 1:]}
    rows = packing.batch(
      stream,
      step,
      rows=self.rows,
      length=self.length - 2,
      overlap=0,
      seed=seed,
    )
    rng = np.random.default_rng([seed, _MASKS, step])
    return self._mask(rows, rng)

  def loss(self, params, batch: dict, dropout_key=None) -> jax.Array:
    """Mean negative log-likelihood of the predicted tokens, in nats."""
    if self.objective == 'causal':
      targets = batch['targets']
      return self.model.cross_entropy(
        params,
        batch['tokens'],
        targets,
        jnp.full(targets.shape, 1 / targets.size),
        dropout_key=dropout_key,
      )
    scores = self.model.masked_log_likelihood(
      params,
      batch['tokens'],
      jnp.ones_like(batch['tokens']),
      batch['positions'],
      batch['targets'],
      dropout_key=dropout_key,
    )
    return -jnp.mean(scores)

  def validate(
    self, stream: packing.Stream, params, *, batches: int, seed: int
  ) -> float:
    """Mean loss over the first `batches` batches, without dropout."""
    loss = _compile_loss(self)
    losses = [
      float(loss(params, self.batch(stream, number, seed)))
      for number in range(batches)
    ]
    return float(np.mean(losses))

  def _mask(self, rows: np.ndarray, rng) -> dict[str, np.ndarray]:
    tokenizer = self.tokenizer
    count, length = rows.shape
    chosen = max(1, round(self.mask_probability * length))
    order = rng.random((count, length)).argsort(axis=1)
    positions = np.sort(order[:, :chosen], axis=1)
    targets = np.take_along_axis(rows, positions, axis=1)
    kind = rng.random(positions.shape)
    shown = np.where(kind < 0.8, tokenizer.mask_token_id, targets)
    anything = rng.integers(len(tokenizer), size=positions.shape)
    shown = np.where(kind >= 0.9, anything, shown).astype(np.int32)
    tokens = np.empty((count, length + 2), np.int32)
    tokens[:, 0] = tokenizer.bos_token_id
    tokens[:, -1] = tokenizer.eos_token_id
    tokens[:, 1:-1] = rows
    np.put_along_axis(tokens, positions + 1, shown, axis=1)
    return {
      'tokens': tokens,
      'positions': (positions + 1).astype(np.int32),
      'targets': targets,
    }


@dataclasses.dataclass(frozen=True)
class PairTask:
  """What one step trains on: second texts of pairs, given the first ones.

  To be used as a Task. Pairs are a sequence of (input ids, target ids), special
  tokens included; each epoch visits all of them in an order of its own.

  Attributes:
    model: what is trained.
    rows: pairs of a step.
    input_length: tokens that inputs are padded to.
    target_length: tokens that targets are padded to.
    dropout: whether dropout is on.
  """

  model: seq2seq.Model
  rows: int
  input_length: int
  target_length: int
  dropout: bool

  @property
  def tokens(self) -> int:
    """Tokens of a step, padding included."""
    return self.rows * (self.input_length + self.target_length)

  def batch(
    self,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    step: int,
    seed: int,
  ) -> dict[str, np.ndarray]:
    """The arrays of step `step`, a function of its arguments alone.

    Raises:
      ValueError: a pair has no target, or a text longer than its row.
    """
    inputs = np.zeros((self.rows, self.input_length), np.int32)
    targets = np.zeros((self.rows, self.target_length), np.int32)
    mask, weights = np.zeros(inputs.shape, bool), np.zeros(targets.shape, bool)
    for row, position in enumerate(
      range(step * self.rows, (step + 1) * self.rows)
    ):
      epoch, index = divmod(position, len(pairs))
      number = int(packing.order(seed, epoch, len(pairs))[index])
      source, target = pairs[number]
      sizes = len(source), len(target)
      if sizes[0] > self.input_length or not 0 < sizes[1] <= self.target_length:
        raise ValueError(
          f'pair {number} has {sizes[0]} and {sizes[1]} tokens, a row takes '
          f'{self.input_length} and 1 to {self.target_length}'
        )
      inputs[row, : sizes[0]], mask[row, : sizes[0]] = source, True
      targets[row, : sizes[1]], weights[row, : sizes[1]] = target, True
    return {
      'inputs': inputs,
      'mask': mask,
      'targets': targets,
      'weights': weights / np.float32(weights.sum()),
    }

  def loss(self, params, batch: dict, dropout_key=None) -> jax.Array:
    """Mean negative log-likelihood of the target tokens, in nats."""
    return self.model.cross_entropy(
      params,
      batch['inputs'],
      batch['mask'],
      batch['targets'],
      batch['weights'],
      dropout_key,
    )

  def validate(self, pairs, params, *, batches: int, seed: int) -> float:
    """Mean loss of the target tokens of `batches` batches, without dropout."""
    loss = _compile_loss(self)
    losses, counts = [], []
    for number in range(batches):
      batch = self.batch(pairs, number, seed)
      losses.append(float(loss(params, batch)))
      counts.append(np.count_nonzero(batch['weights']))
    return float(np.average(losses, weights=counts))


def schedule(train) -> Callable[[jax.Array], jax.Array]:
  """Learning rate by step: linear warm-up, then constant or cosine to a tenth.

  Raises:
    ValueError: for another `train.schedule`.
  """
  peak, warmup = train.learning_rate, train.warmup_steps
  if train.schedule == 'constant':
    after = optax.constant_schedule(peak)
  elif train.schedule == 'cosine':
    after = optax.cosine_decay_schedule(
      peak, max(1, train.steps - warmup), alpha=0.1
    )
  else:
    raise ValueError(
      f'train.schedule={train.schedule!r} is not constant or cosine'
    )
  # The first step, number 0, already moves.
  rise = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
  return optax.join_schedules([rise, after], [warmup])


def compile_step(task: Task | PairTask, optimizer, seed: int) -> Callable:
  """(state, batch, step) -> (state, loss), compiled; the state is used up.

  Args:
    task: what is trained.
    optimizer: an optax transformation.
    seed: of dropout; each step has a key of its own.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch, number):
    key = None
    if task.dropout:
      key = jax.random.fold_in(jax.random.key(seed), number)
    loss, gradient = jax.value_and_grad(task.loss)(state['params'], batch, key)
    updates, moments = optimizer.update(
      gradient, state['optimizer'], state['params']
    )
    params = optax.apply_updates(state['params'], updates)
    return {'params': params, 'optimizer': moments}, loss

  return step


@functools.lru_cache(maxsize=1)
def _compile_loss(task: Task | PairTask) -> Callable:
  return jax.jit(task.loss)


class History:
  """Losses of a run as JSON lines, and on the progress bar.

  A loss is read one step late, so that the device never waits for the host.

  Attributes:
    last: the newest record, {'step', 'loss', 'tokens_per_second'}.
  """

  def __init__(self, path: str, first: int, every: int):
    """Continues `path` at step `first`: later lines are dropped."""
    self._every = every
    self._pending = None
    self._losses = []
    self._since = time.monotonic()
    self.last = {'loss': None}
    kept = []
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        kept = [line for line in file if _step(line) <= first]
    self._file = open(path, 'w', encoding='utf-8')  # noqa: SIM115
    self._file.writelines(kept)
    self._file.flush()

  def __enter__(self) -> 'History':
    return self

  def __exit__(self, *_) -> None:
    self._file.close()

  def push(self, number: int, loss: jax.Array, *, tokens: int, bar) -> None:
    """Takes the loss of step `number`, not waited for yet."""
    self.settle(bar)
    self._pending = (number, loss, tokens)

  def settle(self, bar) -> None:
    """Reads the loss that is pending.

    Raises:
      ValueError: if it is not finite.
    """
    if self._pending is None:
      return
    number, loss, tokens = self._pending
    self._pending = None
    loss = float(loss)
    if not math.isfinite(loss):
      raise ValueError(
        f'loss {loss} at step {number}: try a smaller train.learning_rate; '
        'the newest checkpoint is from before'
      )
    bar.update()
    self._losses.append(loss)
    if (number + 1) % self._every == 0 or number + 1 == bar.total:
      now = time.monotonic()
      rate = tokens * len(self._losses) / (now - self._since)
      self._since = now
      mean = float(np.mean(self._losses))
      self._losses.clear()
      self.note(number + 1, loss=mean, tokens_per_second=round(rate))
      bar.set_postfix_str(f'loss {mean:.3f}, {rate:,.0f} tokens/s')

  def note(self, step: int, **values) -> None:
    """Writes a line."""
    record = {'step': step, **values}
    if 'loss' in values:
      self.last = record
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()


def _step(line: str) -> float:
  """The step of a line of history; infinite for a torn one."""
  return json.loads(line)['step'] if line.endswith('\n') else math.inf
