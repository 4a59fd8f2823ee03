"""What a training step trains on, and the loss it goes down.

For the training loop all objectives look alike: `batch` makes the arrays of a
step, with the rows in front, and `loss` is the step's mean negative
log-likelihood of the tokens that are predicted. Of a part of the rows, it is
their share of that mean, so that losses and gradients of parts add up.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.corpus import packing
from tttnn.models import model as model_lib
from tttnn.models import seq2seq

_MASKS = 1  # Keys the random numbers of masking; 0 is the order of rows.
_MASKINGS = 'bert', 'always'

Pair = tuple[Sequence[int], Sequence[int]]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StreamTask:
  """Rows of a packed stream of text.

  causal: each token predicts the next. masked: rows `<s> tokens </s>`, of which
  some tokens, chosen anew each time, are hidden and predicted. By masking:
    bert: round(p * tokens) of a row; 80 % read <mask>, 10 % a random token,
      10 % what is there (Devlin et al., NAACL 2019, section 3.1).
    always: each with probability p; all read <mask> (the code of Hardt & Sun
      2024). A row predicts up to `chosen` of them, which one in 10^9 exceeds.

  Attributes:
    model: what is trained.
    tokenizer: of the stream.
    objective: 'causal' or 'masked'.
    rows: of a step.
    length: tokens of a row.
    mask_probability: p.
    dropout: whether dropout is on.
    masking: 'bert' or 'always'.
  """

  model: model_lib.Model
  tokenizer: object
  objective: str
  rows: int
  length: int
  mask_probability: float
  dropout: bool
  masking: str = 'bert'

  @classmethod
  def create(cls, train, model: model_lib.Model, tokenizer) -> 'StreamTask':
    """From the section `train` of the config.

    Raises:
      ValueError: if objective, length and model do not go together.
    """
    masked = train.objective == 'masked'
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
    if train.masking not in _MASKINGS:
      raise ValueError(
        f'train.masking={train.masking!r} is not one of {", ".join(_MASKINGS)}'
      )
    return cls(
      model=model,
      tokenizer=tokenizer,
      objective=train.objective,
      rows=train.batch_size,
      length=length,
      mask_probability=train.mask_probability,
      dropout=train.dropout,
      masking=train.masking,
    )

  @property
  def chosen(self) -> int:
    """Tokens of a row that `masked` predicts; with 'always', at most."""
    length, p = self.length - 2, self.mask_probability
    if self.masking == 'bert':
      return max(1, round(p * length))
    # Six standard deviations above the mean.
    return min(length, math.ceil(p * length + 6 * math.sqrt(p * length)))

  @property
  def tokens(self) -> int:
    """Tokens of a step."""
    return self.rows * self.length

  def batch(
    self,
    stream: packing.Stream,
    step: int,
    seed: int,
    own: np.ndarray | None = None,
  ) -> Batch:
    """The arrays of step `step`, a function of its arguments alone.

    Of the rows `own`, ascending, where not all are wanted.
    """
    if self.objective == 'causal':
      rows = packing.batch(
        stream,
        step,
        rows=self.rows,
        length=self.length,
        overlap=1,
        seed=seed,
        own=own,
      )
      return {'tokens': rows[:, :-1], 'targets': rows[:, 1:]}
    rows = packing.batch(
      stream,
      step,
      rows=self.rows,
      length=self.length - 2,
      overlap=0,
      seed=seed,
      own=own,
    )
    rng = np.random.default_rng([seed, _MASKS, step])
    return self._mask(rows, slice(None) if own is None else own, rng)

  def predicted(self, batch: Batch) -> jax.Array | int:
    """How many tokens a batch has predicted; may be traced."""
    if self.objective == 'causal':
      return batch['targets'].size
    return (batch['weights'] > 0).sum()

  def loss(self, params, batch: Batch, dropout_key=None) -> jax.Array:
    """Mean negative log-likelihood of the predicted tokens, in nats."""
    targets = batch['targets']
    if self.objective == 'causal':
      weight = 1 / (self.rows * targets.shape[1])
      return self.model.cross_entropy(
        params,
        batch['tokens'],
        targets,
        jnp.full(targets.shape, weight),
        dropout_key=dropout_key,
      )
    scores = self.model.masked_log_likelihood(
      params,
      batch['tokens'],
      jnp.ones_like(batch['tokens']),
      batch['positions'],
      targets,
      dropout_key=dropout_key,
    )
    return -jnp.sum(batch['weights'] * scores)

  def _mask(self, rows: np.ndarray, own, rng) -> Batch:
    """The batch of the rows `own`; random numbers are drawn for all."""
    tokenizer = self.tokenizer
    count, length = self.rows, rows.shape[1]
    # The first in a random order are those that are hidden.
    order = rng.random((count, length)).argsort(axis=1)[:, : self.chosen]
    if self.masking == 'bert':
      sizes = np.full(count, self.chosen)
    else:
      sizes = rng.binomial(length, self.mask_probability, count)
    hidden = np.arange(self.chosen) < sizes[:, None]
    positions = np.sort(np.where(hidden, order, length), axis=1)
    hidden = positions < length
    weights = (hidden / np.float32(max(1, hidden.sum())))[own]
    kind = anything = None
    if self.masking == 'bert':
      kind = rng.random(positions.shape)[own]
      anything = rng.integers(len(tokenizer), size=positions.shape)[own]
    hidden = hidden[own]
    positions = np.where(hidden, positions[own], 0)
    targets = np.take_along_axis(rows, positions, axis=1)
    shown = np.full_like(targets, tokenizer.mask_token_id)
    if self.masking == 'bert':
      shown = np.where(kind < 0.8, shown, targets)
      shown = np.where(kind >= 0.9, anything, shown)
    tokens = np.empty((len(rows), length + 2), np.int32)
    tokens[:, 0] = tokenizer.bos_token_id
    tokens[:, -1] = tokenizer.eos_token_id
    tokens[:, 1:-1] = rows
    row, place = np.nonzero(hidden)
    tokens[row, positions[row, place] + 1] = shown[row, place]
    # Of a position that is not used, <s>, with no weight.
    return {
      'tokens': tokens,
      'positions': np.where(hidden, positions + 1, 0).astype(np.int32),
      'targets': targets,
      'weights': weights,
    }


@dataclasses.dataclass(frozen=True)
class PairTask:
  """Outputs of pairs, given their inputs, for an encoder-decoder.

  Pairs are a sequence of (input ids, output ids), special tokens included; each
  epoch visits all of them in an order of its own.

  Attributes:
    model: what is trained.
    rows: pairs of a step.
    input_length: tokens that inputs are padded to.
    output_length: tokens that outputs are padded to.
    dropout: whether dropout is on.
  """

  model: seq2seq.Model
  rows: int
  input_length: int
  output_length: int
  dropout: bool

  @property
  def tokens(self) -> int:
    """Tokens of a step, padding included."""
    return self.rows * (self.input_length + self.output_length)

  def batch(self, pairs: Sequence[Pair], step: int, seed: int) -> Batch:
    """The arrays of step `step`, a function of its arguments alone.

    Raises:
      ValueError: a pair without an output, or a text longer than its row.
    """
    inputs = np.zeros((self.rows, self.input_length), np.int32)
    targets = np.zeros((self.rows, self.output_length), np.int32)
    mask, weights = np.zeros(inputs.shape, bool), np.zeros(targets.shape, bool)
    chosen = _choose(self, pairs, step, seed)
    for row, (source, target) in enumerate(chosen):
      inputs[row, : len(source)], mask[row, : len(source)] = source, True
      targets[row, : len(target)], weights[row, : len(target)] = target, True
    return {
      'inputs': inputs,
      'mask': mask,
      'targets': targets,
      'weights': weights / np.float32(weights.sum()),
    }

  def predicted(self, batch: Batch) -> jax.Array | int:
    """How many tokens a batch has predicted; may be traced."""
    return (batch['weights'] > 0).sum()

  def loss(self, params, batch: Batch, dropout_key=None) -> jax.Array:
    """Mean negative log-likelihood of the outputs' tokens, in nats."""
    return self.model.cross_entropy(
      params,
      batch['inputs'],
      batch['mask'],
      batch['targets'],
      batch['weights'],
      dropout_key,
    )


@dataclasses.dataclass(frozen=True)
class CausalPairTask:
  """Outputs of pairs, given their inputs, for a causal LM.

  A row is a pair: the output goes on from the input, whose own tokens are not
  predicted. Padding follows, which none of them sees. Pairs and their order as
  of `PairTask`.

  Attributes:
    model: what is trained.
    rows: pairs of a step.
    input_length: tokens of an input at most.
    output_length: tokens of an output at most.
    dropout: whether dropout is on.
  """

  model: model_lib.Model
  rows: int
  input_length: int
  output_length: int
  dropout: bool

  def __post_init__(self):
    if self.length > self.model.context:
      raise ValueError(
        f'an input of {self.input_length} tokens and an output of '
        f'{self.output_length} exceed the {self.model.context} positions of '
        'the model: take a smaller train.input_length or train.output_length'
      )

  @property
  def length(self) -> int:
    """Tokens of a row; the last one of an output is predicted, not read."""
    return self.input_length + self.output_length - 1

  @property
  def tokens(self) -> int:
    """Tokens of a step, padding included."""
    return self.rows * self.length

  def batch(self, pairs: Sequence[Pair], step: int, seed: int) -> Batch:
    """The arrays of step `step`, a function of its arguments alone.

    Raises:
      ValueError: a pair without an input or output, or a text that is longer
        than it may be.
    """
    tokens = np.zeros((self.rows, self.length), np.int32)
    targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    chosen = _choose(self, pairs, step, seed, shortest=1)
    for row, (source, target) in enumerate(chosen):
      both = [*source, *target]
      tokens[row, : len(both) - 1] = both[:-1]
      # The input's last token predicts the output's first.
      predicted = slice(len(source) - 1, len(both) - 1)
      targets[row, predicted], weights[row, predicted] = target, True
    return {
      'tokens': tokens,
      'targets': targets,
      'weights': weights / np.float32(weights.sum()),
    }

  def predicted(self, batch: Batch) -> jax.Array | int:
    """How many tokens a batch has predicted; may be traced."""
    return (batch['weights'] > 0).sum()

  def loss(self, params, batch: Batch, dropout_key=None) -> jax.Array:
    """Mean negative log-likelihood of the outputs' tokens, in nats."""
    return self.model.cross_entropy(
      params,
      batch['tokens'],
      batch['targets'],
      batch['weights'],
      dropout_key=dropout_key,
    )


Task = StreamTask | PairTask | CausalPairTask


def _choose(
  task: PairTask | CausalPairTask,
  pairs: Sequence[Pair],
  step: int,
  seed: int,
  *,
  shortest: int = 0,
) -> Iterator[Pair]:
  """The pairs of a step; an input has at least `shortest` tokens."""
  for position in range(step * task.rows, (step + 1) * task.rows):
    epoch, index = divmod(position, len(pairs))
    number = int(packing.order(seed, epoch, len(pairs))[index])
    source, target = pairs[number]
    sizes = len(source), len(target)
    fits = (
      shortest <= sizes[0] <= task.input_length,
      1 <= sizes[1] <= task.output_length,
    )
    if not all(fits):
      raise ValueError(
        f'pair {number} has {sizes[0]} and {sizes[1]} tokens, a row takes '
        f'{shortest} to {task.input_length} and 1 to {task.output_length}'
      )
    yield source, target
