"""What both sides of the `ttt` benchmark are given, and what it has to cost.

Models with random weights, and documents and neighbours of random tokens: speed
does not depend on what a text says.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import os

import jax
import numpy as np

from tttnn.models import gpt2
from tttnn.models import hf
from tttnn.models import model as model_lib

# A document and its neighbours use so many ids, so that it gains by adapting:
# else whether a side adapts at all would hardly show in its numbers.
_TOPIC = 64


@dataclasses.dataclass(frozen=True)
class Shape:
  """A GPT-2, and documents for it.

  Attributes:
    layers: of the model, as `width` and `heads`.
    width: D.
    heads: H.
    vocab_size: V.
    context: of the model, in tokens.
    lengths: of documents and of neighbours, in tokens, least and most.
    documents: how many, on CPU and on accelerators.
    neighbors: a document's, likewise.
  """

  layers: int
  width: int
  heads: int
  vocab_size: int
  context: int
  lengths: tuple[int, int]
  documents: tuple[int, int]
  neighbors: tuple[int, int]

  @property
  def model(self) -> model_lib.Model:
    config = gpt2.Config.create(
      vocab_size=self.vocab_size,
      layers=self.layers,
      width=self.width,
      heads=self.heads,
      context=self.context,
      bos_token_id=self.start,
      eos_token_id=self.start,
    )
    return model_lib.Model('gpt2', config)

  @functools.cached_property
  def params(self) -> int:
    """P, how many parameters take part in products: all but the positions."""
    # Under eval_shape no device is opened: the sides need them.
    leaves = jax.eval_shape(lambda: self.model.init(jax.random.key(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(leaves))
    return total - leaves['wpe']['weight'].size

  @property
  def window(self) -> int:
    """Tokens of a training window: the context, or the longest text."""
    return min(self.context, self.lengths[1])

  @property
  def start(self) -> int:
    """The id that stands before a document; none of a document's own."""
    return self.vocab_size - 1


_SMALL = {'layers': 12, 'width': 768, 'heads': 12, 'vocab_size': 50257}
_TINY = {'layers': 4, 'width': 256, 'heads': 4, 'vocab_size': 8192}
SHAPES = {
  # Windows of the whole context.
  'small-1024': Shape(
    **_SMALL,
    context=1024,
    lengths=(1024, 1024),
    documents=(1, 64),
    neighbors=(1, 4),
  ),
  # Short documents.
  'small-128': Shape(
    **_SMALL,
    context=1024,
    lengths=(65, 128),
    documents=(2, 64),
    neighbors=(2, 4),
  ),
  # Of one window and of several.
  'tiny': Shape(
    **_TINY,
    context=256,
    lengths=(32, 400),
    documents=(16, 16),
    neighbors=(2, 4),
  ),
  # For a look at whether everything runs.
  'mini': Shape(
    layers=2,
    width=32,
    heads=2,
    vocab_size=257,
    context=64,
    lengths=(10, 150),
    documents=(3, 3),
    neighbors=(2, 2),
  ),
}


def write_model(directory: str, shape: Shape, seed: int) -> None:
  """Writes a Hugging Face directory of random weights."""
  hf.save(directory, shape.model, shape.model.init(jax.random.key(seed)))


def lengths(
  shape: Shape, documents: int, neighbors: int, seed: int
) -> list[tuple[int, list[int]]]:
  """(tokens of a document, tokens of each neighbour), as the shape has them."""
  generator = np.random.default_rng(seed)
  drawn = generator.integers(
    *shape.lengths, (documents, 1 + neighbors), endpoint=True
  )
  return [(first, others) for first, *others in drawn.tolist()]


def write_documents(
  path: str,
  shape: Shape,
  lengths: Sequence[tuple[int, Sequence[int]]],
  seed: int,
) -> list[dict]:
  """Writes a JSON list of {"tokens", "neighbors"}, and returns it."""
  generator = np.random.default_rng(seed)
  documents = []
  for own, others in lengths:
    topic = generator.integers(0, shape.start, _TOPIC)
    tokens, *neighbors = (
      generator.choice(topic, length).tolist() for length in (own, *others)
    )
    documents.append({'tokens': tokens, 'neighbors': neighbors})
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(documents, file)
  return documents


def window_lengths(tokens: Sequence[int], longest: int) -> list[int]:
  """Of the windows that a text is cut into, without those of one token."""
  lengths = [
    min(longest, len(tokens) - begin)
    for begin in range(0, len(tokens), longest)
  ]
  return [length for length in lengths if length > 1]


def forward_operations(shape: Shape, tokens: int) -> float:
  """Useful ones of a window of T tokens forward: 2 P T + 2 L T^2 D.

  A token's product with P parameters takes 2 P. Its attention to those before
  it, over all layers, takes 2 L T D: the causal half of 4 L T D. A gradient
  takes twice as much again.
  """
  return 2 * shape.params * tokens + 2 * shape.layers * tokens**2 * shape.width


@dataclasses.dataclass(frozen=True)
class Operations:
  """Useful floating-point operations: no padding, nothing computed twice.

  Attributes:
    steps: windows to train on.
    train: of training steps: 6 P T + 6 L T^2 D a window of T tokens.
    score: of scoring: 2 P T + 2 L T^2 D.
  """

  steps: int
  train: float
  score: float


def operations(shape: Shape, documents: Sequence[dict]) -> Operations:
  """What adapting to every neighbour, scoring around each, has to cost."""

  trained, scored = [], []
  for document in documents:
    for tokens in document['neighbors']:
      trained += window_lengths(tokens, shape.window)
    scored += window_lengths(document['tokens'], shape.context) * (
      1 + len(document['neighbors'])
    )
  return Operations(
    len(trained),
    3.0 * sum(forward_operations(shape, length) for length in trained),
    1.0 * sum(forward_operations(shape, length) for length in scored),
  )
