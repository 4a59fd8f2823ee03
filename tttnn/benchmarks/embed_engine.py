"""This engine's side of the `embed` benchmark, a process of its own.

`python -m tttnn.benchmarks.embed_engine`; see `engine`.
"""

import json
import time

import jax
import numpy as np

from tttnn import device
from tttnn.benchmarks import engine
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import embed
from tttnn.models import hf
from tttnn.models import model as model_lib
from tttnn.models import roberta

_BLOCK = 1024  # Texts, as `build` has them by default.


class Engine(engine.Side):
  """One embedder and its texts."""

  def write(
    self, directory: str, tokenizer: str, shape: dict, seed: int
  ) -> dict:
    """Writes the model of an `embed.Shape`, with that tokenizer."""
    loaded = tokenizer_lib.load(tokenizer)
    config = roberta.Config.create(
      vocab_size=len(loaded),
      layers=shape['layers'],
      width=shape['width'],
      heads=shape['heads'],
      context=shape['context'],
      pad_token_id=loaded.pad_token_id,
      bos_token_id=loaded.bos_token_id,
      eos_token_id=loaded.eos_token_id,
    )
    model = model_lib.Model('roberta', config)
    hf.save(directory, model, model.init(jax.random.key(seed)))
    tokenizer_lib.save(loaded, directory)
    return {}

  def load(self, model: str, texts: str, max_tokens: int) -> dict:
    """Makes ready what `run` runs; nothing is compiled yet."""
    device.keep_compiled_programs()
    with open(texts, encoding='utf-8') as file:
      self._texts = json.load(file)
    self._embedder = embed.load(model, max_length=max_tokens - 2)
    return {}

  def run(self, texts: int, output: str) -> dict:
    """Embeds the first `texts` texts and writes them to an .npy.

    The time is that of everything between texts and vectors on the host.
    """
    self._embedder.usage = embed.Usage()
    begin = time.perf_counter()
    blocks = (
      self._texts[first : min(first + _BLOCK, texts)]
      for first in range(0, texts, _BLOCK)
    )
    vectors = np.concatenate(list(self._embedder.blocks(blocks)))
    seconds = time.perf_counter() - begin
    np.save(output, vectors, allow_pickle=False)
    return {
      'seconds': seconds,
      'padded_share': self._embedder.usage.padding,
      **engine.peaks(),
    }


if __name__ == '__main__':
  engine.serve(Engine())
