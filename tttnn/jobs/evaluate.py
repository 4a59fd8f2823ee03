"""Evaluates a method on documents: retrieve, select, adapt, score, write.

Leaves `results.jsonl`, `summary.json` and `summary.md` in the work directory;
rerunning goes on with the documents that are missing. Several processes each
take a part of the documents, and the main one puts their rows together. Of
pairs.test, see `pairs`.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import itertools
import json
import os
import sys

import tqdm

from tttnn import carry as carry_lib
from tttnn import checkpoint
from tttnn import device
from tttnn import distributed
from tttnn import estimate
from tttnn import language_model
from tttnn import prefetch
from tttnn import summary
from tttnn.corpus import choice
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.jobs import knn
from tttnn.jobs import knn_choice
from tttnn.jobs import live
from tttnn.jobs import neighbors
from tttnn.jobs import pairs
from tttnn.jobs import rows as rows_lib
from tttnn.jobs import trial
from tttnn.jobs import works
from tttnn.methods import interpolation
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.methods import ttt
from tttnn.scoring import results as results_lib
from tttnn.scoring import rolling

# What chooses documents, and their order.
_CHOOSE = ('tasks', 'portion', 'limit', 'rank', 'world_size')


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, model, document, store or server; a work
      directory that holds another run.
  """
  if config.pairs.test:
    pairs.run(config, workdir, identity)
    return
  at = works.counts(config)
  if distributed.count() > 1:
    _check_apart(config)
  documents = documents_lib.read(
    config.eval.documents, choice.Choice.create(config.eval)
  )
  if config.dry_run:
    _dry_run(config, at, distributed.part(documents))
    return
  alpha, chosen, given = None, None, config
  if config.method == 'interpolation':
    alpha = _alpha(config, workdir, at)
  if config.method in knn.METHODS and knn_choice.is_open(config):
    chosen = _chosen(config, workdir)
    config = chosen.settled(config)
  live.announce(workdir, len(documents))
  results = _evaluated(config, workdir, 'results', at, documents, alpha)
  if not distributed.is_main():
    return
  rows = [results.rows[document.doc_id] for document in documents]
  if config.method == 'interpolation' and alpha is None:
    rows = _at_best_of_each_task(rows)
    results.replace(rows)
  more = {'knn_chosen': chosen.to_json()} if chosen else {}
  more_tables = chosen.tables() if chosen else []
  summary.write(given, workdir, rows, more=more, more_tables=more_tables)


def is_done(config, workdir: str) -> bool:
  """Whether a run of this config has left its summary, of what is there now.

  Raises:
    ValueError: if what it reads is not there any more.
  """
  paths = [
    os.path.join(workdir, name)
    for name in ('summary.json', 'results.config.json')
  ]
  if not all(map(os.path.exists, paths)):
    return False
  made = []
  for path in paths:
    with open(path, encoding='utf-8') as file:
      made.append(json.load(file))
  wanted = json.loads(json.dumps([config.to_dict(), identity(config)]))
  return [made[0]['config'], made[1]] == wanted


def identity(config) -> dict:
  """What a row depends on, flat: settings, and digests of what is read."""
  chosen = {
    'method': config.method,
    'model': checkpoint.digest(config.model.path, config.model.revision),
    'model.dtype': config.model.dtype,
    **rows_lib.identity(config),
  }
  if config.method in knn.METHODS:
    chosen |= knn.identity(config)
  if config.method not in neighbors.WITHOUT:
    chosen |= {'seed': config.seed, **neighbors.identity(config)}
  for section in ('dynamic_eval', 'in_context', 'interpolation'):
    if section == config.method:
      chosen |= _settings(config, section)
  if _on_validation(config):
    chosen['eval.validation'] = jsonl.digest(config.eval.validation)
  if config.method in ttt.METHODS:
    chosen |= {'seed': config.seed, 'eval.at': config.eval.at}
    chosen |= _settings(config, 'ttt')
    del chosen['ttt.batch_documents']  # Changes no number.
    if config.ttt.optimizer_state == 'carry' or not config.ttt.reset_weights:
      chosen |= {f'eval.{key}': config.eval[key] for key in _CHOOSE}
  return chosen


def _check_apart(config) -> None:
  """Refuses what processes that each have a part of the documents cannot do."""
  if config.method in ttt.METHODS and (
    config.ttt.optimizer_state == 'carry' or not config.ttt.reset_weights
  ):
    raise ValueError(
      f'ttt.optimizer_state={config.ttt.optimizer_state!r} and '
      f'ttt.reset_weights={config.ttt.reset_weights}: documents go one after '
      f'another, not over {distributed.count()} processes'
    )
  for section, key in (('retrieval', 'save'), ('knn', 'cache')):
    if config[section][key]:
      raise ValueError(
        f'{section}.{key}={config[section][key]!r} is written by a run of one '
        f'process, this one has {distributed.count()}'
      )


def _settings(config, section: str) -> dict:
  return {f'{section}.{key}': value for key, value in config[section].items()}


def _on_validation(config) -> bool:
  """Whether something is chosen on validation documents."""
  chosen = config.interpolation.alpha == 'validation'
  return config.method == 'interpolation' and chosen


def _alpha(config, workdir: str, at: set[int]) -> float | None:
  """What `interpolation` mixes with; None: the best of each task at the end."""
  interpolation.grid(config.interpolation.alpha)  # Refuses what it is not.
  if config.interpolation.alpha == 'test':
    return None
  if not _on_validation(config):
    return float(config.interpolation.alpha)
  if not config.eval.validation:
    raise ValueError(
      'interpolation.alpha=validation needs eval.validation, documents on '
      'which it is chosen; or give a number'
    )
  if config.retrieval.replay:
    raise ValueError(
      'interpolation.alpha=validation searches for neighbours of '
      f'eval.validation, but retrieval.replay={config.retrieval.replay!r} has '
      'those of eval.documents: give a number'
    )
  documents = documents_lib.read(config.eval.validation)
  searching = config.copy_and_resolve_references()
  searching.retrieval.save = ''
  searching.eval.save_tokens = False
  searching.eval.tensorboard = False
  results = _evaluated(searching, workdir, 'validation', at, documents, None)
  alpha = interpolation.best([results.rows[d.doc_id] for d in documents])
  print(f'evaluate: alpha is {alpha:g}, the best on {config.eval.validation}')
  return alpha


def _chosen(config, workdir: str) -> knn_choice.Chosen:
  """Settings of kNN-LM; leaves in files what each gives on validation."""
  if not config.eval.validation:
    raise ValueError(
      'knn.lambdas, .temperatures and .ks need eval.validation, documents on '
      'which one is chosen; or give none of them'
    )
  validation = config.copy_and_resolve_references()
  validation.eval.documents = config.eval.validation
  documents = documents_lib.read(config.eval.validation)
  directory = os.path.join(config.knn.cache or workdir, 'validation')
  chosen = knn_choice.choose(validation, documents, directory)
  chosen.write(workdir)
  print(f'evaluate: {chosen.text}: the best on {config.eval.validation}')
  return chosen


def _at_best_of_each_task(rows: Sequence[dict]) -> list[dict]:
  """As published: for each task, the alpha that is best on these documents."""
  tasks = {row['task']: [] for row in rows}
  for row in rows:
    tasks[row['task']].append(row)
  best = {task: interpolation.best(of_task) for task, of_task in tasks.items()}
  for task, alpha in best.items():
    print(f'evaluate: alpha of {task} is {alpha:g}, the best on its documents')
  return [interpolation.at_alpha(row, best[row['task']]) for row in rows]


def _evaluated(
  config,
  workdir: str,
  name: str,
  at: set[int],
  documents: Sequence[documents_lib.Document],
  alpha: float | None,
) -> results_lib.Results:
  """The rows of all documents in the file of that name."""
  about = identity(config)
  with distributed.main_first(f'{name}: rows of earlier runs'):
    results = results_lib.Results(
      workdir,
      about,
      name,
      process=distributed.index(),
      processes=distributed.count(),
      tokens=config.eval.save_tokens,
    )
  done = sum(document.doc_id in results.rows for document in documents)
  print(f'evaluate: {len(documents)} documents, {done} done')
  _evaluate(config, workdir, results, at, distributed.part(documents), alpha)
  results.close()
  if distributed.count() > 1:
    distributed.meet(f'{name}: all rows')
    with distributed.main_first(f'{name}: one file'):
      results.unite([document.doc_id for document in documents])
  return results


def _evaluate(
  config,
  workdir: str,
  results: results_lib.Results,
  at: set[int],
  documents: Sequence[documents_lib.Document],
  alpha: float | None,
) -> None:
  """Adds the rows that are missing of these documents."""
  todo = [d for d in documents if d.doc_id not in results.rows]
  if not todo:
    return
  device.keep_compiled_programs()
  model = language_model.load(config)
  if config.method in knn.METHODS:
    rows = knn.rows(config, model, todo)
    _write(config, workdir, rows, documents, results)
    return
  pool = model.pool(
    model.documents_at_once(config.ttt.batch_documents), _say_compiling
  )
  carry = None
  if model.adaptation.settings.carries and config.method in ttt.METHODS:
    carry = _carry(config, workdir, pool, results)
    if config.eval.tasks:  # Each begins afresh, so they go one by one.
      documents = _task_by_task(documents)
  with neighbors.finder(config, documents, results.rows) as find:
    todo = [d for d in documents if d.doc_id not in results.rows]
    made = works.make(
      config, model, find, at, todo, carry.task if carry else ''
    )
    _write_rows(
      config, workdir, model, pool, made, documents, results, carry, alpha
    )


def _task_by_task(
  documents: Sequence[documents_lib.Document],
) -> list[documents_lib.Document]:
  """The documents of each task together, in the order of their first ones."""
  tasks = {document.task: [] for document in documents}
  for document in documents:
    tasks[document.task].append(document)
  return list(itertools.chain.from_iterable(tasks.values()))


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


def _write_rows(
  config,
  workdir: str,
  model: language_model.LanguageModel,
  pool: pool_lib.Pool,
  made: works.Works,
  documents: Sequence[documents_lib.Document],
  results: results_lib.Results,
  carry: carry_lib.Carry | None,
  alpha: float | None,
) -> None:
  def rows():
    # Neighbours are looked up while other documents adapt.
    for work, outcome in pool.run(prefetch.prefetch(made, pool.slots + 1)):
      row = works.row(config, model.tokenizer, work, outcome, alpha)
      yield row
      if carry:
        carry.end(pool.state, row['task'], list(results.rows))

  _write(config, workdir, rows(), documents, results)
  if carry:
    carry.close(pool.state, list(results.rows))
  _say_usage(pool)


def _write(
  config,
  workdir: str,
  rows: Iterable[dict],
  documents: Sequence[documents_lib.Document],
  results: results_lib.Results,
) -> None:
  """Writes rows as they come, and shows how it goes."""
  ids = [document.doc_id for document in documents]
  earlier = [results.rows[i] for i in ids if i in results.rows]
  board = live.board(config, workdir)
  with live.Live(config.method, earlier, len(ids), board=board) as shown:
    for row in rows:
      results.append(row)
      distributed.progress()
      shown.add(row)


def _say_compiling(what: str) -> None:
  distributed.progress()
  if distributed.is_main():
    tqdm.tqdm.write(f'evaluate: compiling a {what}', file=sys.stderr)


def _say_usage(pool: pool_lib.Pool) -> None:
  names = {'step': 'training steps', 'score': 'scoring'}
  for kind, name in names.items():
    usage = pool.usage[kind]
    if usage.dispatches:
      print(
        f'evaluate: {name}: {usage.rows / usage.dispatches:.1f} documents at a '
        f'time, {100 * usage.padding:.0f} % of tokens padding'
      )


def _dry_run(config, at: set[int], documents) -> None:
  """Counts windows, neighbours being documents of the corpus; times some."""
  model = language_model.load(config)
  pool = model.pool(model.documents_at_once(config.ttt.batch_documents))
  cases = [
    model.case(document, config.eval.protocol, config.eval.split_prefix)
    for document in documents
  ]
  scored = itertools.chain.from_iterable(map(model.scored, cases))
  seconds, steps = 0.0, 0
  inputs = [window.inputs for window in scored]
  once = ('interpolation', *knn.METHODS)  # Of which searches are not timed.
  passes = 1 if config.method in once else len(at)
  for size, count, programs in trial.sizes(inputs, model.context, pool.fine):
    document = rolling.windows([model.start] * size, size, model.start)
    work = schedule.Work('', {0: document})
    compiling, each = trial.timed(pool, work)
    seconds += compiling * programs + each * count * passes
  memory = estimate.num_bytes((model.params, pool.state))
  if config.method in ttt.METHODS:
    if config.method == 'ttt':
      texts = neighbors.sample(config, documents)
      each = config.retrieval.neighbors
    else:
      texts = [case.query for case in cases]
      each = config.dynamic_eval.steps
    steps, training = trial.training(model, pool, texts, len(documents) * each)
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
