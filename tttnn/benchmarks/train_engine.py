"""This engine's side of the `train` benchmark, a process of its own.

`python -m tttnn.benchmarks.train_engine`; see `engine`.
"""

import time

import jax
import numpy as np

from tttnn import checkpoint
from tttnn import device
from tttnn import objectives
from tttnn import operations
from tttnn import optim
from tttnn import training
from tttnn.benchmarks import engine
from tttnn.corpus import packing
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf
from tttnn.models import model as model_lib

_MASKED = 0.15  # Share of tokens that a RoBERTa predicts.
_NONE = -100  # Where PyTorch predicts nothing.


class Engine(engine.Side):
  """One model and its batches."""

  def write(
    self,
    directory: str,
    tokenizer: str,
    shape: dict,
    texts: list[str],
    steps: int,
    seed: int,
  ) -> dict:
    """Writes the model of a `train.Shape`, and batches of some steps.

    Into the directory: the model with the tokenizer, and `batches.npz`, as
    `objectives.StreamTask` makes them of the files `texts`.
    """
    loaded = tokenizer_lib.load(tokenizer)
    ids = {f'{r}_token_id': getattr(loaded, f'{r}_token_id') for r in _ROLES}
    config = model_lib.ARCHITECTURES[shape['model_type']].Config.create(
      shape['vocabulary'],
      shape['layers'],
      shape['width'],
      shape['heads'],
      shape['context'],
      **{name: value for name, value in ids.items() if value is not None},
    )
    model = model_lib.Model(shape['model_type'], config)
    hf.save(directory, model, model.init(jax.random.key(seed)))
    tokenizer_lib.save(loaded, directory)
    task = _task(model, loaded, shape)
    stream = packing.pack(
      loaded, loaded.eos_token_id, ','.join(texts), f'{directory}.tokens'
    )
    batches = [task.batch(stream, step, seed) for step in range(steps)]
    stream.close()
    arrays = {
      name: np.stack([batch[name] for batch in batches]) for name in batches[0]
    }
    np.savez(f'{directory}/batches.npz', **arrays)
    np.savez(f'{directory}/plain.npz', **_plain(arrays))
    return {}

  def load(self, model: str, shape: dict, settings: dict, dtype: str) -> dict:
    """Makes ready what `run` runs; nothing is compiled yet."""
    device.keep_compiled_programs()
    loaded, self._params = checkpoint.load_model(model, dtype=dtype)
    task = _task(loaded, tokenizer_lib.load(model), shape)
    self._optimizer = optim.adamw(
      settings['learning_rate'],
      weight_decay=settings['weight_decay'],
      clip_norm=settings['clip_norm'],
    )
    self._step = training.compile_step(task, self._optimizer, seed=0)
    with np.load(f'{model}/batches.npz', allow_pickle=False) as arrays:
      self._batches = dict(arrays)
    return {
      'operations': operations.of_step(task, self._params),
      'peak': device.peak(1),
    }

  def run(self, steps: int) -> dict:
    """Trains for some steps; the time is that of the steps alone."""
    state = jax.block_until_ready(
      training.start(self._optimizer, jax.tree.map(np.copy, self._params))
    )
    losses = []
    begin = time.perf_counter()
    for number in range(steps):
      batch = {name: array[number] for name, array in self._batches.items()}
      state, loss, _ = self._step(state, batch, np.int32(number))
      losses.append(loss)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    return {
      'seconds': seconds,
      'losses': [float(loss) for loss in losses],
      **engine.peaks(),
    }


_ROLES = ('bos', 'eos', 'pad')


def _task(model, tokenizer, shape: dict) -> objectives.StreamTask:
  return objectives.StreamTask(
    model=model,
    tokenizer=tokenizer,
    objective='masked' if shape['model_type'] == 'roberta' else 'causal',
    rows=shape['rows'],
    length=shape['context'],
    mask_probability=_MASKED,
    dropout=False,
  )


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Tokens, and for each what is predicted there: [steps, rows, T]."""
  if 'positions' not in arrays:
    return {name: arrays[name] for name in ('tokens', 'targets')}
  targets = np.full_like(arrays['tokens'], _NONE)
  step, row, place = np.nonzero(arrays['weights'])
  chosen = arrays['positions'][step, row, place]
  targets[step, row, chosen] = arrays['targets'][step, row, place]
  return {'tokens': arrays['tokens'], 'targets': targets}


if __name__ == '__main__':
  engine.serve(Engine())
