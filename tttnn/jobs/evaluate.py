"""Evaluates a method on documents: retrieve, select, adapt, score, write.

Leaves `results.jsonl`, `summary.json` and `summary.md` in the work directory;
rerunning goes on with the documents that are missing.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import time
import zlib

import jax
import tqdm

from tttnn import carry as carry_lib
from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import language_model
from tttnn import summary
from tttnn.corpus import buckets
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.datastore import embed
from tttnn.datastore import replay as replay_lib
from tttnn.datastore import retrieve
from tttnn.datastore import store as store_lib
from tttnn.methods import select
from tttnn.methods import ttt
from tttnn.scoring import metrics
from tttnn.scoring import results as results_lib
from tttnn.scoring import rolling

METHODS = ('base', 'ttt')
_SAMPLE = 64  # Documents that `dry_run` looks at.

Find = Callable[[documents_lib.Case], list[retrieve.Neighbor]]


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, model, document, store or server; a work
      directory that holds another run.
  """
  counts = neighbor_counts(config)
  documents = documents_lib.read(
    config.eval.documents, tasks=config.eval.tasks, limit=config.eval.limit
  )
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
    carry = None
    if config.method == 'ttt' and model.program.settings.carries:
      carry = _carry(config, workdir, model, results)
      if config.eval.tasks:  # Each begins afresh, so they go one by one.
        documents = sorted(documents, key=lambda document: document.task)
    with _finder(config, documents, results) as find:
      _evaluate(config, model, find, counts, documents, results, carry)
  results.close()
  rows = [results.rows[document.doc_id] for document in documents]
  summary.write(config, workdir, rows)


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
    chosen |= {'eval.tasks': config.eval.tasks, 'eval.limit': config.eval.limit}
  chosen |= _prefixed('ttt', config.ttt)
  retrieval = _prefixed('retrieval', config.retrieval)
  del retrieval['retrieval.save']
  chosen |= retrieval
  if config.retrieval.replay:
    chosen['retrieval.replay'] = jsonl.digest(config.retrieval.replay)
  else:
    chosen['store'] = _open_store(config).fingerprint()
  return chosen


def _carry(config, workdir, model, results) -> carry_lib.Carry:
  """The state that earlier documents left; drops the rows it has not seen."""
  carry = carry_lib.Carry(
    os.path.join(workdir, 'state'), config.eval.checkpoint_every
  )
  results.keep(carry.restore(model.program.start(model.params)))
  print('evaluate: documents go in order, each goes on from the one before')
  return carry


def _evaluate(
  config, model, find: Find, counts, documents, results, carry
) -> None:
  """Writes the rows that are missing, in the documents' order."""
  todo = [d for d in documents if d.doc_id not in results.rows]
  bar = tqdm.tqdm(todo, desc=f'evaluate {config.method}', unit=' documents')
  before = after = num_bytes = 0.0
  for document in bar:
    if carry:
      carry.begin(document.task if config.eval.tasks else '')
    row, state = _row(
      config, model, find, counts, document, carry.state if carry else None
    )
    results.append(row)
    if carry:
      carry.end(state, list(results.rows))
    before += row['log_likelihood'][0]
    after += row['log_likelihood'][-1]
    num_bytes += row['num_bytes']
    bar.set_postfix_str(
      f'bits/byte {metrics.bits_per_byte(before, num_bytes):.3f} -> '
      f'{metrics.bits_per_byte(after, num_bytes):.3f}'
    )
  if carry:
    carry.close(list(results.rows))


def _row(
  config,
  model: language_model.LanguageModel,
  find: Find,
  counts,
  document,
  carried,
) -> tuple[dict, object]:
  """One document from its text to its row, and the state it leaves behind."""
  case = model.case(document, config)
  begin = time.monotonic()
  found = find(case)
  retrieved = time.monotonic()
  chosen = select.within(
    found,
    minimum=config.retrieval.min_distance,
    maximum=config.retrieval.max_distance,
  )
  selected = time.monotonic()
  outcome, state = ttt.run(
    model.program,
    model.params,
    model.scored(case),
    model.trained([neighbor.text for neighbor in chosen]),
    counts,
    carried=carried,
    key=_dropout_key(config, document),
  )
  wanted = config.retrieval.neighbors if config.method == 'ttt' else 0
  row = {
    'doc_id': document.doc_id,
    'task': document.task,
    'method': config.method,
    'protocol': config.eval.protocol,
    'num_bytes': case.num_bytes,
    'num_words': case.num_words,
    'num_tokens': len(case.tokens),
    'at': outcome.at,
    'log_likelihood': outcome.log_likelihood,
    'train_loss': outcome.train_loss,
    'steps': outcome.steps,
    'neighbors': [{'id': n.id, 'distance': n.distance} for n in chosen],
    'missing_neighbors': wanted - len(chosen),
    'seconds': {
      'retrieve': retrieved - begin,
      'select': selected - retrieved,
      'adapt': outcome.adapt_seconds,
      'score': outcome.score_seconds,
    },
  }
  return row, state


def _dropout_key(config, document) -> jax.Array | None:
  """A key of the document's own, whatever the order of documents."""
  if not config.ttt.dropout:
    return None
  number = zlib.crc32(repr(document.doc_id).encode())
  return jax.random.fold_in(jax.random.key(config.seed), number)


@contextlib.contextmanager
def _finder(config, documents, results) -> Iterator[Find]:
  """Where neighbours come from: nowhere, a file, or a served store."""
  if config.method == 'base':
    yield lambda case: []
    return
  k = config.retrieval.neighbors
  with contextlib.ExitStack() as stack:
    if config.retrieval.replay:
      replay = replay_lib.Replay(
        config.retrieval.replay, lambda: _open_store(config).corpus
      )
      replay.require(document.doc_id for document in documents)

      def find(case):
        return replay(case.document.doc_id, k)
    else:
      find = _search(config, stack)
    if config.retrieval.save:
      saver = replay_lib.Saver(config.retrieval.save, results.rows)
      stack.callback(saver.close)
      find = _saving(find, saver)
    yield find


def _search(config, stack: contextlib.ExitStack) -> Find:
  k = config.retrieval.neighbors
  rows = _open_store(config).manifest.searchable
  if k > rows:
    raise ValueError(
      f'retrieval.neighbors={k}, but the store {config.store.path} has {rows} '
      'documents'
    )
  retriever = stack.enter_context(
    retrieve.connect(
      config.store.path,
      embed.load(**config.embedder),
      address=config.store.address,
      threads=config.serve.threads,
    )
  )

  def find(case):
    own = [case.document.text] if config.retrieval.exclude_self else None
    return retriever([case.query], k, exclude=own)[0]

  return find


def _saving(find: Find, saver: replay_lib.Saver) -> Find:
  def find_and_save(case):
    neighbors = find(case)
    saver.append(case.document.doc_id, neighbors)
    return neighbors

  return find_and_save


def _open_store(config) -> store_lib.Store:
  if not config.store.path:
    raise ValueError(
      f'method={config.method!r} needs store.path (what `build` made) or '
      'retrieval.replay'
    )
  return store_lib.open(config.store.path)


def _prefixed(name: str, section) -> dict:
  return {f'{name}.{key}': value for key, value in section.items()}


def _dry_run(config, counts: set[int], documents) -> None:
  """Counts the windows, neighbours being documents of the corpus; times one."""
  model = language_model.load(config)
  scored = collections.Counter()
  for document in documents:
    for window in model.scored(model.case(document, config)):
      scored[buckets.padded(len(window.inputs), model.context)] += len(counts)
  trained, compared = collections.Counter(), 1
  if config.method == 'ttt':
    texts = _sample(config)
    compared = len(texts)
    for neighbor in model.trained(texts):
      for window in neighbor:
        trained[len(model.program.pad(window)[0])] += 1
  scale = len(documents) * config.retrieval.neighbors / compared
  seconds, memory = 0.0, estimate.num_bytes(model.params)
  for size, count in scored.items():
    window = rolling.windows([model.start] * size, model.context, model.start)
    compiling, each = estimate.timed(
      lambda window=window: model.program.score(model.params, window)
    )
    seconds += compiling + each * count
  for size, count in trained.items():
    state = model.program.start(model.params)
    window = model.program.pad([model.start] * size)
    key = _dropout_key(config, documents[0])
    cost = estimate.measure(model.program.step, state, *window, key)
    seconds += cost.compile_seconds + cost.call_seconds * count * scale
    memory = max(memory, cost.memory + estimate.num_bytes(model.params))
  estimate.show(
    f'evaluate ({config.method})',
    documents=len(documents),
    steps=round(sum(trained.values()) * scale),
    memory=memory,
    seconds=seconds,
  )


def _sample(config) -> list[str]:
  """Texts to stand for neighbours, spread over corpus.train or the store."""
  if config.corpus.train:
    corpus = jsonl.read(jsonl.expand(config.corpus.train))
  else:
    corpus = _open_store(config).corpus
  count = min(_SAMPLE, len(corpus))
  return [corpus.text(i * len(corpus) // count) for i in range(count)]
