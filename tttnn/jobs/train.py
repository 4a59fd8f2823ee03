"""Trains a masked LM (the embedder), a causal LM or a T5; rerunning resumes.

Leaves in the work directory: `checkpoints/` (Orbax), `history.jsonl`,
`export/` (a Hugging Face directory) and `summary.json`, written last; where it
validates on the way also `best/` (Orbax), the parameters of the smallest loss;
on request `tensorboard/` and `profile/`. SIGTERM and the first Ctrl-C end it
after the step that runs, with a checkpoint.
"""

import contextlib
import json
import math
import os
import shutil

import numpy as np
import tqdm

from tttnn import checkpoint
from tttnn import device
from tttnn import distributed
from tttnn import estimate
from tttnn import files
from tttnn import history as history_lib
from tttnn import operations
from tttnn import optim
from tttnn import prefetch
from tttnn import profiling
from tttnn import settings
from tttnn import sharding
from tttnn import stopping
from tttnn import training
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.jobs import learner as learner_lib
from tttnn.jobs import validation as validation_lib
from tttnn.models import hf

_CHECKPOINTS = 'checkpoints'
_SUMMARY = 'summary.json'
_AHEAD = 2  # Batches made while a step runs.
# Changing these does not change what a step computes; of accumulation, but for
# rounding and which units drop out, so that other devices can go on.
_FREE_KEYS = (
  'steps',
  'accumulation',
  'log_every',
  'eval_every',
  'eval_batches',
  'checkpoint_every',
  'keep',
  'workers',
  'tensorboard',
  'profile',
)


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting or corpus, a checkpoint of another run, or
      a loss that is not finite.
    SystemExit: with status 0, once a signal has ended it and all is saved.
  """
  if not config.dry_run and is_done(config, workdir):
    print(f'train: {workdir} is trained to step {config.train.steps}')
    return
  device.keep_compiled_programs()
  with contextlib.closing(learner_lib.make(config, workdir)) as learner:
    _run(config, workdir, learner)


def _run(config, workdir: str, learner: learner_lib.Learner) -> None:
  mesh = sharding.for_training(config.mesh)
  rate = training.schedule(config.train)
  step, state = _compiled(config, learner, rate, mesh)
  if config.dry_run:
    _dry_run(config, learner, mesh, step, state)
    return
  record = {
    'identity': _identity(config),
    'digest': learner.texts['train'].digest,
  }
  with contextlib.ExitStack() as stack:
    checkpoints, first, state = _restore(config, workdir, state, record)
    # Whatever ends it, what is being saved is saved.
    stack.callback(checkpoints.close)
    validation = None
    if 'validation' in learner.texts:
      validation = validation_lib.Validation(
        config, workdir, learner, record, mesh
      )
      stack.callback(validation.close)

    def save(done: int, state) -> None:
      checkpoints.save(done, state, record, force=True)

    if distributed.is_main():
      checkpoint.describe(
        os.path.join(workdir, _CHECKPOINTS), learner.model, learner.tokenizer
      )
    about = history_lib.Step(
      tokens=learner.task.tokens,
      operations=operations.of_step(learner.task, learner.params),
      peak=device.peak(mesh.size if mesh else 1),
      learning_rate=rate,
    )
    history = _history(config, workdir, first, about)
    state, reached = _train(
      config,
      workdir,
      learner,
      mesh,
      step,
      first,
      state,
      validation,
      save,
      history,
    )
    measured = {}
    if validation is not None and reached == config.train.steps:
      measured = _validated(config, validation, state['params'])
  if reached < config.train.steps:
    print(
      f'train: saved at step {reached} of {config.train.steps}; the same '
      'command goes on from here'
    )
    raise SystemExit(0)
  params = state['params']
  if distributed.count() > 1:
    params = sharding.to_host(params)
  if distributed.is_main():
    summary = {
      'identity': record['identity'],
      'steps': config.train.steps,
      'parameters': estimate.count(learner.params),
      'train_loss': history.last['loss'],
      **measured,
    }
    _write(workdir, learner, params, summary)


def _compiled(config, learner: learner_lib.Learner, rate, mesh):
  """(the step, the state before the first one)."""
  optimizer = optim.adamw(
    rate,
    weight_decay=config.train.weight_decay,
    clip_norm=config.train.clip_norm,
  )
  fsdp = config.mesh.fsdp
  step = training.compile_step(
    learner.task,
    optimizer,
    config.seed,
    parts=config.train.accumulation,
    mesh=mesh,
    fsdp=fsdp,
  )
  return step, training.start(optimizer, learner.params, mesh, fsdp=fsdp)


def _write(workdir: str, learner: learner_lib.Learner, params, summary) -> None:
  """What a finished run leaves; the summary last."""
  directory = os.path.join(workdir, 'export')
  if os.path.exists(directory):
    shutil.rmtree(directory)
  hf.save(directory, learner.model, params)
  tokenizer_lib.save(learner.tokenizer, directory)
  files.write_atomic(
    os.path.join(workdir, _SUMMARY), json.dumps(summary, indent=2) + '\n'
  )
  print(f'train: {directory} is a model.path')


def _history(config, workdir: str, first: int, about) -> history_lib.History:
  path, board = os.path.join(workdir, 'history.jsonl'), ''
  if not distributed.is_main():
    path = os.devnull
  elif config.train.tensorboard:
    board = os.path.join(workdir, 'tensorboard')
  return history_lib.History(
    path, first, config.train.log_every, about, tensorboard=board
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


def _train(
  config, workdir, learner, mesh, step, first, state, validation, save, history
):
  """Runs to train.steps or a signal; returns the last state and its step."""
  train = config.train
  bar = tqdm.tqdm(
    total=train.steps,
    initial=first,
    desc=train.objective,
    unit=' steps',
    disable=not distributed.is_main(),
  )
  profile = profiling.Profile(
    train.profile if distributed.is_main() else '',
    os.path.join(workdir, 'profile'),
  )
  validated = range(train.eval_every or train.steps, train.steps)
  validated = validated[:: train.eval_every or 1]
  batches = _batches(config, learner, mesh, range(first, train.steps))
  vote = stopping.Vote(mesh)
  # What waits for a text does not hold up the end; of several processes, it has
  # to come for all at the same step.
  hurry = learner.close if distributed.count() == 1 else lambda: None
  done = first
  with (
    bar,
    history,
    contextlib.closing(batches),
    profile,
    stopping.Stop(hurry) as stop,
  ):
    try:
      for number, batch in batches:
        profile.before(number)
        distributed.progress()
        state, loss, norm = step(state, batch, np.int32(number))
        # The loss of the step before is read while this one runs.
        history.push(number, loss, norm, bar)
        profile.after(number, loss)
        done = number + 1
        if validation is not None and done in validated:
          loss = validation.loss(done, state['params'])
          history.note(
            done, validation_loss=loss, validation_perplexity=_perplexity(loss)
          )
        if vote(bool(stop.signal)):
          break
        if done % train.checkpoint_every == 0:
          history.settle(bar)
          save(done, state)
    except InterruptedError:
      if not stop.signal:
        raise
    history.settle(bar)
    if done > first:
      save(done, state)
  return state, done


def _batches(config, learner: learner_lib.Learner, mesh, steps: range):
  """(step, its batch), the next ones made while a step runs."""
  task, texts = learner.task, learner.texts['train']
  made = (
    (step, training.batch(task, texts, step, config.seed, mesh))
    for step in steps
  )
  return prefetch.prefetch(made, _AHEAD)


def _perplexity(loss: float) -> float:
  return math.exp(min(loss, 700))


def _validated(config, validation, params) -> dict:
  """Of the last parameters and the best ones, for the summary."""
  loss = validation.loss(config.train.steps, params)
  print(f'train: validation loss {loss:.4f} nats a token')
  summary = {
    'validation_loss': loss,
    'validation_perplexity': _perplexity(loss),
  }
  if validation.best is not None:
    summary |= {f'best_{key}': validation.best[key] for key in ('step', 'loss')}
    print(
      f'train: {validation.directory} has those of step '
      f'{validation.best["step"]}, {validation.best["loss"]:.4f} nats a token'
    )
  return summary


def _identity(config) -> dict:
  """What a step computes depends on, flat."""
  train = settings.flatten(config.train)
  return {'seed': config.seed, 'model.dtype': config.model.dtype} | {
    f'train.{key}': train[key] for key in train if key not in _FREE_KEYS
  }


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


def _dry_run(config, learner: learner_lib.Learner, mesh, step, state) -> None:
  texts = learner.texts['train']
  batch = training.batch(learner.task, texts, 0, config.seed, mesh)
  cost = estimate.measure(step, state, batch, np.int32(0))
  estimate.show(
    f'train ({config.train.objective})',
    documents=learner.documents,
    steps=config.train.steps,
    memory=cost.memory,
    seconds=cost.compile_seconds + config.train.steps * cost.call_seconds,
  )
