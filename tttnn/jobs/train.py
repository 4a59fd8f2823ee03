"""Trains a masked LM (the embedder) or a causal LM; rerunning resumes.

Leaves in the work directory: `checkpoints/` (Orbax), `history.jsonl`,
`export/` (a Hugging Face directory) and `summary.json`, written last.
"""

import json
import math
import os
import shutil

import jax
import numpy as np
import tqdm

from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import files
from tttnn import optim
from tttnn import settings
from tttnn import training
from tttnn.corpus import packing
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf
from tttnn.models import model as model_lib

# Changing these does not change what a step computes.
_FREE_KEYS = (
  'steps',
  'log_every',
  'eval_every',
  'eval_batches',
  'checkpoint_every',
  'keep',
)


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting or corpus, a checkpoint of another run, or
      a loss that is not finite.
  """
  identity = _identity(config)
  done = os.path.join(workdir, 'summary.json')
  if not config.dry_run and _is_done(done, identity, config.train.steps):
    print(f'train: {workdir} is trained to step {config.train.steps}')
    return
  device.keep_compiled_programs()
  tokenizer, model, params = _start(config)
  task = training.Task.create(config.train, model, tokenizer)
  streams = {
    split: packing.pack(
      tokenizer,
      tokenizer.eos_token_id,
      config.corpus[split],
      os.path.join(workdir, 'tokens', split),
      on_error=config.corpus.on_error,
    )
    for split in ('train', 'validation')
    if config.corpus[split]
  }
  if 'train' not in streams:
    raise ValueError('train needs corpus.train: JSONL paths or globs')
  optimizer = optim.adamw(
    training.schedule(config.train),
    weight_decay=config.train.weight_decay,
    clip_norm=config.train.clip_norm,
  )
  state = {'params': params, 'optimizer': optimizer.init(params)}
  step = training.compile_step(task, optimizer, config.seed)
  if config.dry_run:
    _dry_run(config, task, streams['train'], step, state)
    return
  record = {'identity': identity, 'digest': streams['train'].digest}
  state, history = _train(config, workdir, task, streams, step, state, record)
  summary = {
    'identity': identity,
    'steps': config.train.steps,
    'parameters': estimate.count(params),
    'train_loss': history['loss'],
  }
  if 'validation' in streams:
    loss = _validate(config, task, streams['validation'], state['params'])
    summary['validation_loss'] = loss
    summary['validation_perplexity'] = math.exp(min(loss, 700))
    print(f'train: validation loss {loss:.4f} nats a token')
  _export(os.path.join(workdir, 'export'), model, state['params'], tokenizer)
  files.write_atomic(done, json.dumps(summary, indent=2) + '\n')
  print(f'train: {os.path.join(workdir, "export")} is a model.path')


def _start(config) -> tuple[object, model_lib.Model, dict]:
  """Tokenizer, model and parameters to begin with."""
  train = config.train
  dtype = device.compute_dtype(config.model.dtype)
  if train.init:
    tokenizer = tokenizer_lib.load(train.init, train.revision)
    model, params = checkpoint.load_model(
      train.init, revision=train.revision, dtype=dtype
    )
    return tokenizer, model, params
  if not train.tokenizer:
    raise ValueError(
      'train needs train.init (a model to start from) or train.tokenizer'
    )
  tokenizer = tokenizer_lib.load(train.tokenizer)
  if train.model_type not in model_lib.ARCHITECTURES:
    raise ValueError(
      f'train.model_type={train.model_type!r} is not one of '
      f'{sorted(model_lib.ARCHITECTURES)}'
    )
  ids = {
    f'{role}_token_id': getattr(tokenizer, f'{role}_token_id')
    for role in ('bos', 'eos', 'pad')
    if getattr(tokenizer, f'{role}_token_id') is not None
  }
  sizes = model_lib.ARCHITECTURES[train.model_type].Config.create(
    len(tokenizer),
    train.layers,
    train.width,
    train.heads,
    train.context,
    **ids,
  )
  model = model_lib.Model(train.model_type, sizes, dtype)
  return tokenizer, model, model.init(jax.random.key(config.seed))


def _train(config, workdir, task, streams, step, state, record):
  """Runs to train.steps from the newest checkpoint; returns the last state."""
  train = config.train
  directory = os.path.join(workdir, 'checkpoints')
  checkpoints = checkpoint.Checkpoints(
    directory, every=train.checkpoint_every, keep=train.keep
  )
  first = 0
  restored = checkpoints.restore(checkpoint.abstract(state))
  if restored:
    first, state, saved = restored
    _check_record(saved, record, directory)
    print(f'train: resumes at step {first} of {train.steps}')
  _describe(directory, task)
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
      batch = task.batch(streams['train'], number, config.seed)
      state, loss = step(state, batch, np.int32(number))
      # The loss of the step before is read while this one runs.
      history.push(number, loss, tokens=task.tokens, bar=bar)
      done = number + 1
      if 'validation' in streams and done in validated:
        loss = _validate(config, task, streams['validation'], state['params'])
        history.note(done, validation_loss=loss)
      if done % train.checkpoint_every == 0 or done == train.steps:
        history.settle(bar)
        checkpoints.save(done, state, record, force=True)
    history.settle(bar)
  checkpoints.close()
  return state, history.last


def _validate(config, task, stream, params) -> float:
  return task.validate(
    stream, params, batches=config.train.eval_batches, seed=config.seed
  )


def _export(directory: str, model, params, tokenizer) -> None:
  if os.path.exists(directory):
    shutil.rmtree(directory)
  hf.save(directory, model, params)
  tokenizer_lib.save(tokenizer, directory)


def _describe(directory: str, task) -> None:
  """Makes the checkpoints' directory a model.path by itself."""
  tokenizer_lib.save(task.tokenizer, directory)
  config = json.dumps(task.model.config.to_hf(), indent=2) + '\n'
  files.write_if_changed(os.path.join(directory, 'config.json'), config)


def _identity(config) -> dict:
  """What a step computes depends on, flat."""
  train = settings.flatten(config.train)
  return {'seed': config.seed, 'model.dtype': config.model.dtype} | {
    f'train.{key}': train[key] for key in train if key not in _FREE_KEYS
  }


def _is_done(path: str, identity: dict, steps: int) -> bool:
  if not os.path.exists(path):
    return False
  with open(path, encoding='utf-8') as file:
    summary = json.load(file)
  return summary['identity'] == identity and summary['steps'] == steps


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


def _dry_run(config, task, stream, step, state) -> None:
  batch = task.batch(stream, 0, config.seed)
  cost = estimate.measure(step, state, batch, np.int32(0))
  estimate.show(
    f'train ({config.train.objective})',
    documents=stream.documents,
    steps=config.train.steps,
    memory=cost.memory,
    seconds=cost.compile_seconds + config.train.steps * cost.call_seconds,
  )
