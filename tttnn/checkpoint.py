"""Orbax checkpoints: training state with its step and data position.

A directory of checkpoints also carries the model's `config.json` and its
tokenizer, so that it can be named as `model.path`.
"""

import hashlib
import json
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from tttnn import files
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf
from tttnn.models import model as model_lib


class Checkpoints:
  """The checkpoints of one training run, newest last, saved in the background.

  A checkpoint is whole or not there: Orbax writes it under a temporary name.
  """

  def __init__(self, directory: str, *, every: int, keep: int):
    """Opens `directory`, made if needed; keeps the `keep` newest."""
    self._manager = ocp.CheckpointManager(
      os.path.abspath(directory),
      options=ocp.CheckpointManagerOptions(
        save_interval_steps=every,
        max_to_keep=keep,
        enable_async_checkpointing=True,
        # Two runs of saves that go on at once do not take each other's turns.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          primary_host=0, barrier_sync_key_prefix=os.path.basename(directory)
        ),
      ),
    )

  def save(self, step: int, state, record: dict, *, force=False) -> None:
    """Saves arrays `state` and the JSON `record`, if the interval says so."""
    if force and step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
      ),
      force=force,
    )

  def restore(self, abstract_state) -> tuple[int, object, dict] | None:
    """(step, state, record) of the newest checkpoint, or None.

    Args:
      abstract_state: `jax.ShapeDtypeStruct`s with shardings, as the state.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract_state),
        record=ocp.args.JsonRestore(),
      ),
    )
    return step, restored['state'], restored['record']

  def record(self) -> dict | None:
    """The record of the newest checkpoint alone, or None."""
    step = self._manager.latest_step()
    if step is None:
      return None
    return self._manager.restore(
      step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
    )['record']

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()


def abstract(state):
  """The shapes, dtypes and shardings of `state`, as Orbax wants its target."""
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def describe(directory: str, model: hf.Model, tokenizer) -> None:
  """Makes a directory of checkpoints a model.path by itself."""
  tokenizer_lib.save(tokenizer, directory)
  config = json.dumps(model.config.to_hf(), indent=2) + '\n'
  files.write_if_changed(os.path.join(directory, hf.CONFIG), config)


def is_orbax(directory: str) -> bool:
  """Whether `directory` holds checkpoints that `Checkpoints` wrote."""
  return os.path.isdir(directory) and bool(_steps(directory))


def load_model(
  path: str, *, revision: str = '', dtype: str = 'float32', role: str = 'lm'
) -> tuple[hf.Model, model_lib.Params]:
  """A model from a Hugging Face directory, a hub id or Orbax checkpoints.

  Arguments and errors as of `tttnn.models.hf.load`; of Orbax checkpoints the
  newest is read, without its optimizer state.

  Raises:
    ValueError: also if a checkpoint's tree differs from its config.json.
  """
  if not is_orbax(path):
    return hf.load(path, revision=revision, dtype=dtype, role=role)
  model = hf.read_model(hf.resolve(path, revision), dtype, role)
  wanted = jax.eval_shape(model.init, jax.random.key(0))
  params = _load_params(path, wanted)
  if role == 'embedder':
    params = {k: v for k, v in params.items() if k != hf.HEAD.strip('.')}
  return model, params


def digest(path: str, revision: str = '') -> str:
  """sha256 over the names and bytes of the files that make up a model.

  Raises:
    ValueError: if there is no such directory and no such hub id.
  """
  directory = pathlib.Path(hf.resolve(path, revision))
  if is_orbax(path):
    newest = directory / str(max(_steps(path))) / 'state'
    found = [p for p in newest.rglob('*') if p.is_file()]
  else:
    found = list(directory.glob('*.safetensors'))
  found += [directory / name for name in ('config.json', 'tokenizer.json')]
  total = hashlib.sha256()
  for file in sorted(p for p in found if p.exists()):
    total.update(str(file.relative_to(directory)).encode())
    total.update(files.sha256(str(file)))
  return total.hexdigest()


def _load_params(directory: str, wanted) -> model_lib.Params:
  path = os.path.join(
    os.path.abspath(directory), str(max(_steps(directory))), 'state'
  )
  # By this process for itself: others may not need the model.
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'p{own}'
  )
  with ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
  ) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree['params']
    differ = sorted(_shapes(tree) ^ _shapes(wanted))
    if differ:
      raise ValueError(
        f'{path} does not hold the parameters that its config.json describes: '
        f'{differ[:6]}'
      )
    # Restored as NumPy arrays: whoever uses them puts them on devices.
    target = {'params': wanted}
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), target)
    restored = checkpointer.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=target, restore_args=kinds, partial_restore=True
      ),
    )
  return restored['params']


def _shapes(tree) -> set[tuple[str, tuple[int, ...]]]:
  return {
    (jax.tree_util.keystr(path), tuple(leaf.shape))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _steps(directory: str) -> list[int]:
  return [
    int(name)
    for name in os.listdir(directory)
    if name.isdigit() and os.path.isdir(os.path.join(directory, name, 'state'))
  ]
