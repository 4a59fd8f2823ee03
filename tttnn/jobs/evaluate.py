"""Evaluates a method on documents: retrieve, select, adapt, score, write.

Leaves `results.jsonl`, `summary.json` and `summary.md` in the work directory;
rerunning goes on with the documents that are missing.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import os
import sys
import time

import tqdm

from tttnn import carry as carry_lib
from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import language_model
from tttnn import prefetch
from tttnn import summary
from tttnn.corpus import choice as choice_lib
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.jobs import neighbors
from tttnn.jobs import trial
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.methods import select
from tttnn.methods import ttt
from tttnn.scoring import metrics
from tttnn.scoring import results as results_lib
from tttnn.scoring import rolling

METHODS = ('base', 'ttt')
_BATCH = 64  # Documents of one search.
# What chooses documents, and their order.
_CHOOSE = ('tasks', 'portion', 'limit', 'rank', 'world_size')


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, model, document, store or server; a work
      directory that holds another run.
  """
  counts = neighbor_counts(config)
  documents = documents_lib.read(config.eval.documents, choice(config))
  if config.dry_run:
    _dry_run(config, counts, documents)
    return
  results = results_lib.Results(workdir, identity(config))
  todo = [d for d in documents if d.doc_id not in results.rows]
  print(
    f'evaluate: {len(documents)} documents, {len(documents) - len(todo)} done'
  )
  if todo:
    device.keep_compiled_programs()
    model = language_model.load(config)
    pool = model.pool(
      model.documents_at_once(config.ttt.batch_documents), _say_compiling
    )
    carry = None
    if model.adaptation.settings.carries and config.method != 'base':
      carry = _carry(config, workdir, pool, results)
      if config.eval.tasks:  # Each begins afresh, so they go one by one.
        documents = sorted(documents, key=lambda document: document.task)
    with neighbors.finder(config, documents, results.rows) as find:
      _evaluate(config, model, pool, find, counts, documents, results, carry)
  results.close()
  rows = [results.rows[document.doc_id] for document in documents]
  summary.write(config, workdir, rows)


def choice(config) -> choice_lib.Choice:
  """Which documents are evaluated; `ValueError` for a wrong setting."""
  return choice_lib.Choice(
    tasks=config.eval.tasks,
    portion=config.eval.portion,
    limit=config.eval.limit,
    rank=config.eval.rank,
    world_size=config.eval.world_size,
    missing_tasks=config.eval.missing_tasks,
  )


def neighbor_counts(config) -> set[int]:
  """The neighbour counts to score at.

  Raises:
    ValueError: for an unknown method, or counts that are not numbers between 0
      and retrieval.neighbors.
  """
  if config.method not in METHODS:
    raise ValueError(f'method={config.method!r} is not one of {METHODS}')
  if config.method == 'base':
    return {0}
  most = config.retrieval.neighbors
  if config.eval.at == 'all':
    return set(range(most + 1))
  parts = [part.strip() for part in config.eval.at.split(',')]
  if not all(part.isdigit() for part in parts):
    raise ValueError(
      f"eval.at={config.eval.at!r} is neither 'all' nor numbers as '0,1,5'"
    )
  counts = {int(part) for part in parts}
  if max(counts) > most:
    raise ValueError(
      f'eval.at={config.eval.at!r} asks for {max(counts)} neighbours, '
      f'retrieval.neighbors is {most}'
    )
  return counts


def identity(config) -> dict:
  """What a row depends on, flat: settings, and digests of what is read."""
  chosen = {
    'method': config.method,
    'model': checkpoint.digest(config.model.path, config.model.revision),
    'model.dtype': config.model.dtype,
    'eval.documents': jsonl.digest(config.eval.documents),
    'eval.protocol': config.eval.protocol,
    'eval.split_prefix': config.eval.split_prefix,
  }
  if config.method == 'base':
    return chosen
  chosen['seed'] = config.seed
  chosen['eval.at'] = config.eval.at
  if config.ttt.optimizer_state == 'carry' or not config.ttt.reset_weights:
    chosen |= {f'eval.{key}': config.eval[key] for key in _CHOOSE}
  settings = config.ttt.to_dict()
  del settings['batch_documents']  # Changes no number.
  chosen |= {f'ttt.{key}': value for key, value in settings.items()}
  return chosen | neighbors.identity(config)


def _carry(config, workdir, pool: pool_lib.Pool, results) -> carry_lib.Carry:
  """The state that earlier documents left; drops the rows it has not seen."""
  carry = carry_lib.Carry(
    os.path.join(workdir, 'state'), config.eval.checkpoint_every
  )
  state, seen = carry.restore(pool.state)
  if state is not None:
    pool.resume(state)
  results.keep(seen)
  print('evaluate: documents go in order, each goes on from the one before')
  return carry


def _evaluate(
  config,
  model: language_model.LanguageModel,
  pool: pool_lib.Pool,
  find: neighbors.Find,
  counts: set[int],
  documents: Sequence[documents_lib.Document],
  results: results_lib.Results,
  carry: carry_lib.Carry | None,
) -> None:
  """Writes the rows that are missing."""
  todo = [d for d in documents if d.doc_id not in results.rows]
  works = _works(config, model, find, counts, todo, carry.task if carry else '')
  before = after = num_bytes = 0.0
  with tqdm.tqdm(
    total=len(todo), desc=f'evaluate {config.method}', unit=' documents'
  ) as bar:
    # Neighbours are looked up while other documents adapt.
    for work, outcome in pool.run(prefetch.prefetch(works, pool.slots + 1)):
      row = _row(work.key, outcome)
      results.append(row)
      if carry:
        carry.end(pool.state, row['task'], list(results.rows))
      before += row['log_likelihood'][0]
      after += row['log_likelihood'][-1]
      num_bytes += row['num_bytes']
      bar.update()
      bar.set_postfix_str(
        f'bits/byte {metrics.bits_per_byte(before, num_bytes):.3f} -> '
        f'{metrics.bits_per_byte(after, num_bytes):.3f}'
      )
  if carry:
    carry.close(pool.state, list(results.rows))
  _say_usage(pool)


def _works(
  config,
  model: language_model.LanguageModel,
  find: neighbors.Find,
  counts: set[int],
  documents: Sequence[documents_lib.Document],
  task: str,
) -> Iterator[schedule.Work]:
  """Retrieves, selects and cuts; a work's key is what the row has already.

  `task` is that of the document before the first; where eval.tasks names tasks,
  each begins afresh.
  """
  wanted = config.retrieval.neighbors if config.method == 'ttt' else 0
  for batch in prefetch.batches(documents, _BATCH):
    cases = [
      model.case(document, config.eval.protocol, config.eval.split_prefix)
      for document in batch
    ]
    begin = time.monotonic()
    found = find(cases)
    retrieve = (time.monotonic() - begin) / len(batch)
    for document, case, nearest in zip(batch, cases, found, strict=True):
      begin = time.monotonic()
      chosen = select.within(
        nearest,
        minimum=config.retrieval.min_distance,
        maximum=config.retrieval.max_distance,
      )
      row = {
        'doc_id': document.doc_id,
        'task': document.task,
        'method': config.method,
        'protocol': config.eval.protocol,
        'num_bytes': case.num_bytes,
        'num_words': case.num_words,
        'num_tokens': len(case.tokens),
        'neighbors': [{'id': n.id, 'distance': n.distance} for n in chosen],
        'missing_neighbors': wanted - len(chosen),
        'missing_shards': nearest.missing_shards,
        'seconds': {
          'retrieve': retrieve,
          'select': time.monotonic() - begin,
        },
      }
      yield schedule.Work(
        key=row,
        scored=dict.fromkeys(counts, model.scored(case)),
        neighbors=model.trained([neighbor.text for neighbor in chosen]),
        number=neighbors.number(document),
        afresh=bool(config.eval.tasks) and document.task != task,
      )
      task = document.task


def _row(row: dict, outcome: ttt.Outcome) -> dict:
  """A row of `results.jsonl`."""
  seconds = row.pop('seconds') | {
    'adapt': sum(outcome.adapt_seconds),
    'score': sum(outcome.score_seconds),
  }
  neighbors_, missing = row.pop('neighbors'), row.pop('missing_neighbors')
  shards = row.pop('missing_shards')
  return {
    **row,
    'at': outcome.at,
    'log_likelihood': outcome.log_likelihood,
    'train_loss': outcome.train_loss,
    'steps': outcome.steps,
    'neighbors': neighbors_,
    'missing_neighbors': missing,
    **({'missing_shards': shards} if shards else {}),
    'seconds': seconds,
    'adapt_seconds': outcome.adapt_seconds,
    'score_seconds': outcome.score_seconds,
  }


def _say_compiling(what: str) -> None:
  tqdm.tqdm.write(f'evaluate: compiling a {what}', file=sys.stderr)


def _say_usage(pool: pool_lib.Pool) -> None:
  names = {'step': 'training steps', 'score': 'scoring'}
  for kind, name in names.items():
    usage = pool.usage[kind]
    if usage.dispatches:
      print(
        f'evaluate: {name}: {usage.rows / usage.dispatches:.1f} '
        f'documents at a time, {100 * usage.padding:.0f} % of tokens padding'
      )


def _dry_run(config, counts: set[int], documents) -> None:
  """Counts windows, neighbours being documents of the corpus; times some."""
  model = language_model.load(config)
  pool = model.pool(model.documents_at_once(config.ttt.batch_documents))
  scored = [
    window
    for document in documents
    for window in model.scored(
      model.case(document, config.eval.protocol, config.eval.split_prefix)
    )
  ]
  seconds, steps = 0.0, 0
  inputs = [window.inputs for window in scored]
  for size, count, programs in trial.sizes(inputs, model.context, pool.fine):
    document = rolling.windows([model.start] * size, size, model.start)
    work = schedule.Work('', {0: document})
    compiling, each = trial.timed(pool, work)
    seconds += compiling * programs + each * count * len(counts)
  memory = estimate.num_bytes((model.params, pool.state))
  if config.method == 'ttt':
    steps, training = trial.training(config, model, pool, documents)
    seconds += training
    memory = pool.memory(model.adaptation.settings.max_length)
  estimate.show(
    f'evaluate ({config.method})',
    documents=len(documents),
    steps=steps,
    memory=memory,
    seconds=seconds,
    at_once=pool.slots,
  )
