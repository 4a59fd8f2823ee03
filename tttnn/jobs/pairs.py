"""The job `evaluate` with pairs.test: outputs of pairs, given their inputs.

By a T5 or a causal LM, alone (base) or with the neighbours of its states in a
store of tokens (knn_lm, retomaton; with a T5, kNN-MT). Leaves `results.jsonl`,
in which the tokens of the outputs are scored, and with eval.generate
`outputs.jsonl`, what is written for the inputs. Rerunning goes on with the
pairs that are missing.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import math
import re
import time

import jax
import numpy as np
import tqdm

from tttnn import device
from tttnn import distributed
from tttnn import estimate
from tttnn import pair_model
from tttnn import sharding
from tttnn import summary
from tttnn.corpus import choice as choice_lib
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import pair_batches
from tttnn.corpus import pairs as pairs_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import keys as keys_lib
from tttnn.jobs import knn
from tttnn.jobs import knn_search
from tttnn.jobs import live
from tttnn.jobs import pair_texts
from tttnn.jobs import rows as rows_lib
from tttnn.reporting import tables
from tttnn.scoring import metrics
from tttnn.scoring import results as results_lib

METHODS = ('base', *knn.METHODS)
PROTOCOL = 'pairs'  # In place of one of documents.
_SAMPLE = 64  # Pairs that `dry_run` tries.


def run(config, workdir: str, identity_of: Callable[..., dict]) -> None:
  """The job; `identity_of` says what rows depend on, as `evaluate.identity`.

  Raises:
    ValueError: for a wrong setting, model, store or file of pairs; a work
      directory that holds another run.
  """
  if config.method not in METHODS:
    raise ValueError(
      f'method={config.method!r} is of documents; on pairs.test there are '
      f'{", ".join(METHODS)}'
    )
  if distributed.count() > 1:
    raise ValueError(
      f'pairs.test is for a run of one process, this one has '
      f'{distributed.count()}: share the pairs by eval.rank and .world_size'
    )
  if config.method in knn.METHODS:
    knn_search.one_setting(config)  # Refuses several: nothing is chosen here.
  config = config.copy_and_resolve_references()
  config.eval.protocol = PROTOCOL
  pairs = pairs_lib.open(config.pairs.test)
  chosen = _choose(config, pairs)
  if config.eval.generate:
    pair_texts.check(config)
  if config.dry_run:
    _dry_run(config, load(config, pairs), pairs, chosen)
    return
  identity = identity_of(config)
  results = results_lib.Results(
    workdir, identity, tokens=config.eval.save_tokens
  )
  outputs = None
  if config.eval.generate:
    written = pair_texts.identity(config, identity)
    outputs = results_lib.Results(workdir, written, 'outputs')
  live.announce(workdir, len(chosen))
  _finish(config, workdir, pairs, chosen, results, outputs)
  results.close()
  more, more_tables = {}, []
  rows = [results.rows[pairs.id(number)] for number in chosen]
  more['pairs'] = _of_tokens(rows)
  more_tables.append(_table_of_tokens(more['pairs']))
  if outputs is not None:
    outputs.close()
    texts = [outputs.rows[pairs.id(number)] for number in chosen]
    more['generation'] = pair_texts.figures(config, texts)
    more_tables.append(pair_texts.table(config, more['generation']))
  summary.write(config, workdir, rows, more=more, more_tables=more_tables)


def load(config, pairs: pairs_lib.Pairs) -> pair_model.PairModel:
  """The model of the run."""
  return pair_model.load(
    config.model.path,
    pairs.kind,
    revision=config.model.revision,
    dtype=device.compute_dtype(config.model.dtype),
    mesh=sharding.from_config(config.mesh),
  )


def _choose(config, pairs: pairs_lib.Pairs) -> list[int]:
  """The numbers of the chosen pairs."""
  choice = choice_lib.Choice.create(config.eval)
  tasks = [documents_lib.UNLABELLED] * len(pairs)
  chosen = choice_lib.choose(choice, tasks)
  if not chosen:
    raise ValueError(
      f'{pairs.path}: eval.tasks={choice.tasks!r} leaves no pair for '
      f'eval.rank={choice.rank} of eval.world_size={choice.world_size}; pairs '
      'have no domains'
    )
  seen = set()
  for number in chosen:
    id_ = pairs.id(number)
    if id_ in seen:
      raise ValueError(f'{pairs.path}: the id {id_!r} is there twice')
    seen.add(id_)
  return chosen


def _finish(config, workdir, pairs, chosen, results, outputs) -> None:
  """Makes what is missing of the rows and of the texts."""
  ids = {pairs.id(number) for number in chosen}
  todo = ids - results.rows.keys()
  unwritten = set() if outputs is None else ids - outputs.rows.keys()
  print(f'evaluate: {len(ids)} pairs, {len(ids) - len(todo)} done', end='')
  print('' if outputs is None else f', {len(ids) - len(unwritten)} written')
  if not todo and not unwritten:
    return
  device.keep_compiled_programs()
  model = load(config, pairs)
  if todo:
    rows = _rows(config, model, pairs, chosen, todo)
    _write(config, workdir, rows, ids, results)
  if unwritten:
    rows = pair_texts.rows(config, model, pairs, chosen, unwritten)
    for row in tqdm.tqdm(
      rows, total=len(unwritten), desc='generate', unit=' pairs'
    ):
      outputs.append(row)


def _write(
  config,
  workdir: str,
  rows: Iterable[dict],
  ids: Collection[str | int],
  results: results_lib.Results,
) -> None:
  """Writes rows as they come, and shows how it goes."""
  earlier = [results.rows[i] for i in ids if i in results.rows]
  with live.Live(
    config.method,
    earlier,
    len(ids),
    unit='pairs',
    board=live.board(config, workdir),
  ) as shown:
    for row in rows:
      results.append(row)
      shown.add(row)


def _rows(
  config,
  model: pair_model.PairModel,
  pairs: pairs_lib.Pairs,
  chosen: Sequence[int],
  wanted: Collection[str | int],
) -> Iterator[dict]:
  """A row of `results.jsonl` for each pair whose id is wanted."""
  if config.method == 'base':
    for read in Reader(config, model, pairs, chosen)(wanted):
      yield _base_row(config, model.tokenizer, read)
    return
  store = knn.open_store(config)
  reader = Reader(config, model, pairs, chosen, store.manifest.keys)
  if config.method == 'knn_lm':
    kept, missing = knn.cached(config, reader.cases(wanted))
    for one, found in kept:
      yield knn.row_of_found(config, model.tokenizer, one, found, 0.0)
    wanted = {case.document.doc_id for case in missing}
    if not wanted:
      return
  about = {'fingerprint': model.fingerprint(), 'dim': reader.dim}
  with knn.mixer(config, store, model.tokenizer, **about) as mix:
    yield from mix(reader(wanted))


class Reader:
  """Log-likelihoods, and keys, of the outputs' tokens, batch by batch.

  A pair is always read in the same place of the same batch, whichever pairs are
  wanted, so that a run that is resumed gives the same numbers.

  Attributes:
    dim: of a key; 0 without keys.
  """

  def __init__(
    self,
    config,
    model: pair_model.PairModel,
    pairs: pairs_lib.Pairs,
    chosen: Sequence[int],
    kind: str = '',
  ):
    """Takes the numbers of pairs, and the kind of their keys; '': no keys."""
    self._model, self._pairs, self._chosen = model, pairs, chosen
    self._tokens = [pairs[number] for number in chosen]
    longest = model.longest(pairs)
    rows = config.eval.batch_size
    self._batches = pair_batches.plan(
      [(len(source), len(output)) for source, output in self._tokens],
      longest,
      rows or max(1, keys_lib.at_once() // sum(longest)),
      model.mesh.shape['data'] if model.mesh else 1,
    )

    def read(params, *arrays):
      if not kind:
        return model.model.log_likelihood(params, *arrays), None
      return model.model.log_likelihood_and_keys(params, *arrays, kind)

    self.dim = 0
    if kind:
      ids = jax.ShapeDtypeStruct((1, 1), np.int32)
      mask = jax.ShapeDtypeStruct((1, 1), bool)
      _, keys = jax.eval_shape(read, model.params, ids, mask, ids)
      self.dim = keys.shape[-1]
    self._read = jax.jit(read)

  def __call__(self, wanted: Collection[str | int]) -> Iterator[knn.Read]:
    """What is read of the pairs whose ids are wanted, longest inputs first."""
    for batch, numbers in self._with_any(wanted):
      begin = time.monotonic()
      arrays = batch.arrays(self._tokens)
      arrays = self._model.put(arrays, batch.shape.rows)
      scores, keys = jax.device_get(self._read(self._model.params, *arrays))
      seconds = (time.monotonic() - begin) / len(batch.numbers)
      for row, number in numbers:
        used = len(self._tokens[number][1])
        keys_TxD = None if keys is None else keys[row, :used]
        case = self._case(number)
        yield knn.Read(case, scores[row, :used], keys_TxD, seconds)

  def cases(self, wanted: Collection[str | int]) -> list[documents_lib.Case]:
    """The pairs, as they would be read."""
    return [
      self._case(number)
      for _, numbers in self._with_any(wanted)
      for _, number in numbers
    ]

  def _with_any(
    self, wanted: Collection[str | int]
  ) -> Iterator[tuple[pair_batches.Batch, list[tuple[int, int]]]]:
    """Batches with wanted pairs, and (row, number) of these."""
    for batch in self._batches:
      numbers = [
        (row, number)
        for row, number in enumerate(batch.numbers)
        if self._pairs.id(self._chosen[number]) in wanted
      ]
      if numbers:
        yield batch, numbers

  def _case(self, number: int) -> documents_lib.Case:
    place = self._chosen[number]
    query, text = self._pairs.texts(place)
    tokens = self._tokens[number][1]
    if tokens[-1] != self._model.end:  # It was cut off, and is scored so.
      text = tokenizer_lib.decode(self._model.tokenizer, tokens)
    return documents_lib.Case(
      document=documents_lib.Document(
        self._pairs.id(place), documents_lib.UNLABELLED, text
      ),
      query=query,
      text=text,
      tokens=tokens,
      num_bytes=len(text.encode()),
      num_words=len(re.split(r'\s+', text)),
    )


def _base_row(config, tokenizer, read: knn.Read) -> dict:
  known = rows_lib.about(config, read.case)
  times = {'retrieve': 0.0, 'adapt': 0.0, 'score': read.seconds}
  tokens = rows_lib.tokens(config, tokenizer, read.case, [read.log_p_lm_T], [0])
  return (
    known
    | tokens
    | {
      'at': [0],
      'log_likelihood': [math.fsum(read.log_p_lm_T)],
      'train_loss': [],
      'steps': [],
      'seconds': known['seconds'] | times,
      'adapt_seconds': [],
      'score_seconds': [read.seconds],
    }
  )


def _of_tokens(rows: Sequence[dict]) -> dict:
  """Perplexity a token and bits a byte of all outputs, without and with kNN.

  End-of-texts count as tokens, and not as bytes.
  """
  tokens = sum(row['num_tokens'] for row in rows)
  num_bytes = sum(row['num_bytes'] for row in rows)
  found = {'pairs': len(rows), 'tokens': tokens, 'bytes': num_bytes}
  for name, place in _sides(rows[0]).items():
    values = [row['log_likelihood'][place] for row in rows]
    nats = math.nan if None in values else math.fsum(values)
    found[name] = {
      'perplexity': float(np.exp(min(-nats / tokens, 700.0))),
      'bits_per_byte': metrics.bits_per_byte(nats, num_bytes),
    }
  return results_lib.without_nan(found)


def _sides(row: dict) -> dict[str, int]:
  return {'base': 0} if len(row['at']) == 1 else {'base': 0, 'knn': 1}


def _table_of_tokens(found: dict) -> tuple[str, tables.Cells]:
  cells = [['', 'perplexity', 'bits per byte']]
  for name in ('base', 'knn'):
    if name in found:
      values = (found[name][key] for key in ('perplexity', 'bits_per_byte'))
      cells.append(
        [name, *(tables.number(math.nan if v is None else v) for v in values)]
      )
  return f'Of {found["tokens"]:,} tokens of outputs:', cells


def _dry_run(config, model: pair_model.PairModel, pairs, chosen) -> None:
  """Reads some pairs; and writes some texts, without a search."""
  some = chosen[:: -(-len(chosen) // _SAMPLE)]
  reader = Reader(config, model, pairs, some)
  ids = {pairs.id(number) for number in some}
  compiling, seconds = estimate.timed(lambda: len(list(reader(ids))))
  if config.eval.generate:
    base = config.copy_and_resolve_references()
    base.method = 'base'
    write = functools.partial(pair_texts.rows, base, model, pairs, some, ids)
    begin = time.monotonic()
    list(write())
    seconds += (time.monotonic() - begin) * (1 + (config.method != 'base'))
  estimate.show(
    f'evaluate ({config.method}), pairs, without searches',
    documents=len(chosen),
    steps=0,
    memory=estimate.num_bytes(model.params),
    seconds=compiling + seconds * len(chosen) / len(some),
  )
