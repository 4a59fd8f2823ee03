"""Trains a masked LM (the embedder), a causal LM or a T5; rerunning resumes.

Leaves in the work directory: `checkpoints/` (Orbax), `history.jsonl`,
`export/` (a Hugging Face directory) and `summary.json`, written last; where it
validates on the way also `best/` (Orbax), the parameters of the smallest loss.
"""

import json
import math
import os
import shutil

import numpy as np
import tqdm

from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import files
from tttnn import optim
from tttnn import settings
from tttnn import sharding
from tttnn import training
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.jobs import learner as learner_lib
from tttnn.jobs import validation as validation_lib
from tttnn.models import hf

_CHECKPOINTS = 'checkpoints'
_SUMMARY = 'summary.json'
# Changing these does not change what a step computes.
_FREE_KEYS = (
  'steps',
  'log_every',
  'eval_every',
  'eval_batches',
  'checkpoint_every',
  'keep',
  'workers',
)


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting or corpus, a checkpoint of another run, or
      a loss that is not finite.
  """
  identity = _identity(config)
  if not config.dry_run and is_done(config, workdir):
    print(f'train: {workdir} is trained to step {config.train.steps}')
    return
  device.keep_compiled_programs()
  mesh = sharding.from_config(config.mesh)
  learner = learner_lib.make(config, workdir)
  optimizer = optim.adamw(
    training.schedule(config.train),
    weight_decay=config.train.weight_decay,
    clip_norm=config.train.clip_norm,
  )
  step = training.compile_step(
    learner.task,
    optimizer,
    config.seed,
    parts=config.train.accumulation,
    mesh=mesh,
  )
  state = training.start(optimizer, learner.params, mesh)
  if config.dry_run:
    _dry_run(config, learner, step, state)
    return
  record = {'identity': identity, 'digest': learner.texts['train'].digest}
  checkpoints, first, state = _restore(config, workdir, state, record)
  validation = None
  if 'validation' in learner.texts:
    validation = validation_lib.Validation(
      config, workdir, learner, record, mesh
    )

  def save(done: int, state) -> None:
    checkpoints.save(done, state, record, force=True)

  checkpoint.describe(
    os.path.join(workdir, _CHECKPOINTS), learner.model, learner.tokenizer
  )
  state, history = _train(
    config, workdir, learner, step, first, state, validation, save
  )
  checkpoints.close()
  summary = {
    'identity': identity,
    'steps': config.train.steps,
    'parameters': estimate.count(learner.params),
    'train_loss': history['loss'],
  }
  if validation is not None:
    summary |= _validated(config, validation, state['params'])
  _export(os.path.join(workdir, 'export'), learner, state['params'])
  files.write_atomic(
    os.path.join(workdir, _SUMMARY), json.dumps(summary, indent=2) + '\n'
  )
  print(f'train: {os.path.join(workdir, "export")} is a model.path')


def is_done(config, workdir: str) -> bool:
  """Whether a run of these settings has left its summary."""
  path = os.path.join(workdir, _SUMMARY)
  if not os.path.exists(path):
    return False
  with open(path, encoding='utf-8') as file:
    summary = json.load(file)
  return (
    summary['identity'] == _identity(config)
    and summary['steps'] == config.train.steps
  )


def _restore(config, workdir, state, record):
  """(the checkpoints, the step to go on from, the state then)."""
  train = config.train
  directory = os.path.join(workdir, _CHECKPOINTS)
  checkpoints = checkpoint.Checkpoints(
    directory, every=train.checkpoint_every, keep=train.keep
  )
  restored = checkpoints.restore(checkpoint.abstract(state))
  if restored is None:
    return checkpoints, 0, state
  first, state, saved = restored
  _check_record(saved, record, directory)
  print(f'train: resumes at step {first} of {train.steps}')
  return checkpoints, first, state


def _train(config, workdir, learner, step, first, state, validation, save):
  """Runs to train.steps; returns the last state and record of history."""
  train, task = config.train, learner.task
  history = training.History(
    os.path.join(workdir, 'history.jsonl'), first, train.log_every
  )
  bar = tqdm.tqdm(
    total=train.steps, initial=first, desc=train.objective, unit=' steps'
  )
  validated = range(train.eval_every or train.steps, train.steps)
  validated = validated[:: train.eval_every or 1]
  with bar, history:
    for number in range(first, train.steps):
      batch = task.batch(learner.texts['train'], number, config.seed)
      state, loss = step(state, batch, np.int32(number))
      # The loss of the step before is read while this one runs.
      history.push(number, loss, tokens=task.tokens, bar=bar)
      done = number + 1
      if validation is not None and done in validated:
        loss = validation.loss(done, state['params'])
        history.note(done, validation_loss=loss)
      if done % train.checkpoint_every == 0 or done == train.steps:
        history.settle(bar)
        save(done, state)
    history.settle(bar)
  return state, history.last


def _validated(config, validation, params) -> dict:
  """Of the last parameters and the best ones, for the summary."""
  loss = validation.loss(config.train.steps, params)
  print(f'train: validation loss {loss:.4f} nats a token')
  summary = {
    'validation_loss': loss,
    'validation_perplexity': math.exp(min(loss, 700)),
  }
  if validation.best is not None:
    summary |= {f'best_{key}': validation.best[key] for key in ('step', 'loss')}
    print(
      f'train: {validation.directory} has those of step '
      f'{validation.best["step"]}, {validation.best["loss"]:.4f} nats a token'
    )
  validation.close()
  return summary


def _export(directory: str, learner: learner_lib.Learner, params) -> None:
  if os.path.exists(directory):
    shutil.rmtree(directory)
  hf.save(directory, learner.model, params)
  tokenizer_lib.save(learner.tokenizer, directory)


def _identity(config) -> dict:
  """What a step computes depends on, flat."""
  train = settings.flatten(config.train)
  return {'seed': config.seed, 'model.dtype': config.model.dtype} | {
    f'train.{key}': train[key] for key in train if key not in _FREE_KEYS
  }


def _check_record(saved: dict, record: dict, directory: str) -> None:
  """Refuses to go on from a checkpoint of other tokens or settings."""
  if saved['digest'] != record['digest']:
    raise ValueError(
      f'{directory} was trained on other tokens (digest {saved["digest"][:12]} '
      f'there, {record["digest"][:12]} now): the corpus or tokenizer changed; '
      'take another --workdir'
    )
  differ = settings.difference(saved['identity'], record['identity'])
  if differ:
    raise ValueError(
      f'{directory} holds another run ({differ}): take another --workdir, or '
      'delete it'
    )


def _dry_run(config, learner: learner_lib.Learner, step, state) -> None:
  batch = learner.task.batch(learner.texts['train'], 0, config.seed)
  cost = estimate.measure(step, state, batch, np.int32(0))
  estimate.show(
    f'train ({config.train.objective})',
    documents=learner.documents,
    steps=config.train.steps,
    memory=cost.memory,
    seconds=cost.compile_seconds + config.train.steps * cost.call_seconds,
  )
