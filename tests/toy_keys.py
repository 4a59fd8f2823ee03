"""A model for stores of tokens that needs neither JAX nor weights."""

import hashlib

import numpy as np

from tests import build_test
from tttnn.datastore import build_tokens
from tttnn.datastore import text_source


class Toy:
  """Keys by a hash of what the model has read; tokens are bytes."""

  kind = 'toy'
  dim = 4
  context = 8
  start = 256
  computed = 'float32'

  def __init__(self, on_block=lambda number: None):
    self._on_block = on_block

  def encode(self, texts):
    return [list(text.encode()) for text in texts]

  def fingerprint(self):
    return 'toy'

  def blocks(self, blocks, rows):
    for number, windows in enumerate(blocks):
      self._on_block(number)
      yield np.stack(
        [
          key(window.inputs[: len(window.inputs) - later])
          for window in windows
          for later in range(len(window.targets))[::-1]
        ]
      )


def key(inputs):
  text = ' '.join(str(int(token)) for token in inputs)
  digest = hashlib.sha256(text.encode()).digest()
  whole = np.frombuffer(digest[: 2 * Toy.dim], '<i2')
  return (whole / 1024).astype(np.float16)


def run(directory, paths, model=None, **kwargs):
  arguments = {'dtype': 'float16', 'block': 6, 'threads': 1} | kwargs
  cut = {
    name: arguments.pop(name)
    for name in ('window', 'stride')
    if name in arguments
  }
  model, arguments = model or Toy(), build_test.split(arguments)
  source = text_source.Texts(model, arguments['options'].on_error, **cut)
  return build_tokens.build(directory, paths, source, model, **arguments)
