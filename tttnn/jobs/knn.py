"""kNN-LM and RetoMaton over documents: read, search, mix, write rows.

The store is one of tokens, by the same language model (`store.key`). What a
search found for each token can be kept (`knn.cache`), and is then read by runs
with another lambda, temperature or fewer neighbours.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import os
import time

import jax
import numpy as np

from tttnn import files
from tttnn import language_model
from tttnn import prefetch
from tttnn.corpus import buckets
from tttnn.corpus import documents as documents_lib
from tttnn.datastore import embed
from tttnn.datastore import retrieve
from tttnn.datastore import store as store_lib
from tttnn.datastore import tokens as tokens_lib
from tttnn.jobs import knn_cache
from tttnn.jobs import knn_search
from tttnn.jobs import neighbors as neighbors_lib
from tttnn.jobs import rows as rows_lib
from tttnn.methods import automaton as automaton_lib
from tttnn.methods import knn_lm
from tttnn.methods import knn_tuning
from tttnn.methods import pool as pool_lib
from tttnn.methods import retomaton
from tttnn.scoring import rolling

METHODS = ('knn_lm', 'retomaton')
# Keys of the section `knn` that no row depends on: where things are, and what
# was to choose from.
_NOT_OF_ROWS = ('store', 'cache', 'lambdas', 'temperatures', 'ks', 'bins')
_BATCH = 32  # Documents that RetoMaton takes through the automaton at once.
_SAMPLE = 1 << 17  # Keys that centroids of states are found with.


def store_path(config) -> str:
  return config.knn.store or config.store.path


def identity(config) -> dict:
  """What rows depend on beside model and documents, flat."""
  names = ('knn', 'retomaton') if config.method == 'retomaton' else ('knn',)
  chosen = {
    f'{name}.{key}': value
    for name in names
    for key, value in config[name].items()
    if key not in _NOT_OF_ROWS
  }
  # Where one is empty, the other counts.
  if not chosen['knn.lambda_by_distance']:
    del chosen['knn.lambda_by_distance']
  else:
    del chosen['knn.lambda']
  path = store_path(config)
  if not path:
    raise ValueError(
      f'method={config.method} needs knn.store or store.path, a store that '
      '`build` made with store.key'
    )
  store = store_lib.open(path, config.store.index, kind=tokens_lib.KIND)
  return chosen | {'store': store.fingerprint(), 'seed': config.seed}


@dataclasses.dataclass(frozen=True)
class Read:
  """The tokens of a document, as the model sees them.

  Attributes:
    case: the document.
    log_p_lm_T: of each token by the model, nats.
    keys_TxD: of its context.
    seconds: that reading took.
  """

  case: documents_lib.Case
  log_p_lm_T: np.ndarray
  keys_TxD: np.ndarray
  seconds: float


class Reader:
  """Log-likelihoods and keys, in one pass of the model."""

  def __init__(self, model: language_model.LanguageModel, kind: str):
    self._model = model
    self._fine = pool_lib.pads_finely(model.params)
    shape = jax.ShapeDtypeStruct((1, 1), np.int32)
    self._scored = jax.jit(
      lambda params, tokens, targets: model.model.scored_keys(
        params, tokens, targets, kind
      )
    )
    keys = jax.eval_shape(self._scored, model.params, shape, shape)[1]
    self.dim = keys.shape[-1]

  def __call__(self, case: documents_lib.Case) -> Read:
    begin = time.monotonic()
    windows = self._model.scored(case)
    sent = []
    for window in windows:
      size = buckets.padded(
        len(window.inputs), self._model.context, fine=self._fine
      )
      tokens, targets = rolling.pad(window, size)
      sent.append(self._scored(self._model.params, tokens[None], targets[None]))
    scores, keys = [np.zeros(0, np.float32)], [np.zeros((0, self.dim))]
    for window, (score_1xT, key_1xTxD) in zip(windows, sent, strict=True):
      end = len(window.inputs)
      place = slice(end - len(window.targets), end)
      scores.append(np.asarray(score_1xT[0])[place])
      keys.append(np.asarray(key_1xTxD[0], np.float32)[place])
    return Read(
      case,
      np.concatenate(scores),
      np.concatenate(keys).astype(np.float32),
      time.monotonic() - begin,
    )


def rows(
  config,
  model: language_model.LanguageModel,
  documents: Sequence[documents_lib.Document],
) -> Iterator[dict]:
  """A row of `results.jsonl` a document.

  Raises:
    ValueError: for a wrong setting, or a store that is not there or of another
      model.
  """
  if config.method == 'knn_lm':
    for one, found, searching in looked_up(config, model, documents):
      yield row_of_found(config, model.tokenizer, one, found, searching)
    return
  with scorer(config, model) as score:
    yield from score(documents)


@contextlib.contextmanager
def scorer(
  config, model: language_model.LanguageModel, reader: Reader | None = None
) -> Iterator[Callable[[Sequence[documents_lib.Document]], Iterator[dict]]]:
  """(documents) -> rows by a search, as of `rows`, for the length of a context.

  What is opened, started and compiled serves all calls; what `knn.cache` has is
  not read. A `reader` may be one that has compiled before. Errors as of `rows`.
  """
  store = open_store(config)
  reader = reader or Reader(model, store.manifest.keys)
  about = {'fingerprint': _fingerprint(model), 'dim': reader.dim}
  with mixer(config, store, model.tokenizer, **about) as mix:
    yield lambda documents: mix(map(reader, _cases(config, model, documents)))


def open_store(config) -> store_lib.Store:
  """That of the run; ValueError where it is not there, or not of tokens."""
  return store_lib.open(
    store_path(config), config.store.index, kind=tokens_lib.KIND
  )


@contextlib.contextmanager
def mixer(
  config, store: store_lib.Store, tokenizer, fingerprint: str, dim: int
) -> Iterator[Callable[[Iterable[Read]], Iterator[dict]]]:
  """(what was read) -> a row of each by a search, for the length of a context.

  It is read ahead, and rows come in order. What kNN-LM finds goes to
  `knn.cache`.

  Args:
    config: of the run.
    store: of the run.
    tokenizer: of what is read.
    fingerprint: of the model that reads.
    dim: of its keys.

  Raises:
    ValueError: for a wrong setting, or a store of another model.
  """
  with _searching(config, store, fingerprint, dim) as neighbors:
    if config.method == 'knn_lm':
      cache = knn_cache.Cache(config, identity(config))

      def mix(read):
        for found in _find(config, store, neighbors, cache, read):
          yield row_of_found(config, tokenizer, *found)

    else:
      walk = _walk(config, store, neighbors)

      def mix(read):
        read = prefetch.prefetch(read, 2)
        for batch in prefetch.batches(read, _BATCH):
          for found in _of_the_automaton(config, store, neighbors, walk, batch):
            yield _row(config, tokenizer, *found)
        print(f'evaluate: {walk.saved:.3f} of the searches are saved')

    yield mix


def looked_up(
  config,
  model: language_model.LanguageModel,
  documents: Sequence[documents_lib.Document],
  reader: Reader | None = None,
) -> Iterator[tuple[Read, knn_tuning.Cache, float]]:
  """(what was read, what a search found, its seconds) of each document.

  Those that `knn.cache` has come first, and cost neither model nor search. A
  `reader` may be one that has compiled before.

  Raises:
    ValueError: as `rows`.
  """
  kept, missing = cached(config, _cases(config, model, documents))
  for one, found in kept:
    yield one, found, 0.0
  if not missing:
    return
  store = open_store(config)
  reader = reader or Reader(model, store.manifest.keys)
  about = {'fingerprint': _fingerprint(model), 'dim': reader.dim}
  with _searching(config, store, **about) as neighbors:
    cache = knn_cache.Cache(config, identity(config))
    yield from _find(config, store, neighbors, cache, map(reader, missing))


def cached(
  config, cases: Iterable[documents_lib.Case]
) -> tuple[list[tuple[Read, knn_tuning.Cache]], list[documents_lib.Case]]:
  """(what was read and found of cases that `knn.cache` has, the other cases).

  Raises:
    ValueError: if it is of another run.
  """
  cache = knn_cache.Cache(config, identity(config))
  kept, missing = [], []
  for case in cases:
    if found := cache.find(case):
      kept.append((Read(case, found.log_p_lm_T, None, 0.0), found))
    else:
      missing.append(case)
  return kept, missing


def _find(
  config,
  store: store_lib.Store,
  neighbors: knn_search.Neighbors,
  cache: knn_cache.Cache,
  read: Iterable[Read],
) -> Iterator[tuple[Read, knn_tuning.Cache, float]]:
  """What a search finds for each token of each document, and its seconds."""
  for one in prefetch.prefetch(read, 2):
    begin = time.monotonic()
    own_T = _own(config, store, one.case)
    distances_Txk, ids_Txk = neighbors(one.keys_TxD, own_T)
    found = knn_tuning.Cache(
      metric=store.manifest.metric,
      ids_Txk=ids_Txk,
      distances_Txk=distances_Txk,
      values_Txk=store.tokens.values(ids_Txk),
      log_p_lm_T=one.log_p_lm_T,
      targets_T=np.array(one.case.tokens, int),
      offsets=np.array([0, len(one.case.tokens)]),
    )
    searching = time.monotonic() - begin
    cache.add(one.case, found)
    yield one, found, searching


def log_probability(
  found: knn_tuning.Cache, settings: knn_lm.Settings
) -> np.ndarray:
  """log p_kNN [T] by the nearest of what was found."""
  return knn_lm.log_probability(
    found.distances_Txk[:, : settings.neighbors],
    found.values_Txk[:, : settings.neighbors],
    found.targets_T,
    metric=found.metric,
    temperature=settings.temperature,
  )


def row_of_found(
  config, tokenizer, one: Read, found: knn_tuning.Cache, searching: float
) -> dict:
  """The row of what a search of so many seconds found.

  The tokenizer is that of the document's tokens.
  """
  log_p_T = log_probability(found, knn_lm.Settings.create(config.knn))
  nearest_T = knn_tuning.nearest(found.distances_Txk, found.values_Txk)
  return _row(config, tokenizer, one, log_p_T, nearest_T, {}, searching)


def _cases(config, model, documents) -> Iterator[documents_lib.Case]:
  return (
    model.case(document, config.eval.protocol, config.eval.split_prefix)
    for document in documents
  )


def _fingerprint(model: language_model.LanguageModel) -> str:
  return embed.fingerprint(model.model, model.params, model.tokenizer)


@contextlib.contextmanager
def _searching(config, store: store_lib.Store, fingerprint: str, dim: int):
  """What finds entries, for the length of a context."""
  how = neighbors_lib.how_to_search(config, retrieve.SEARCHES)
  with retrieve.searcher(store, **how) as searcher:
    searcher.check(fingerprint, dim, store.manifest.keys)
    yield knn_search.Neighbors(config, store, searcher)


def _own(config, store: store_lib.Store, case: documents_lib.Case):
  """The entries that a document's tokens are; None where that is not asked.

  The document's id is then its line in the store's corpus.
  """
  if not config.knn.drop_self:
    return None
  line = case.document.doc_id
  if not isinstance(line, int):
    raise ValueError(
      f'knn.drop_self: the doc_id {line!r} is not the number of a line'
    )
  begin, end = store.tokens.line(line)
  own_T = np.arange(begin, end)
  if store.tokens.values(own_T).tolist() != list(case.tokens):
    raise ValueError(
      f'knn.drop_self: document {line!r} is not line {line!r} of the store'
    )
  return own_T


def _of_the_automaton(
  config,
  store: store_lib.Store,
  neighbors: knn_search.Neighbors,
  walk: retomaton.Walk,
  batch: Sequence[Read],
):
  """The arguments of `_row`, all documents of a batch token by token."""
  settings = knn_lm.Settings.create(config.knn)
  lengths_B = np.zeros(_BATCH, int)
  lengths_B[: len(batch)] = [len(one.case.tokens) for one in batch]
  most, dim = int(lengths_B.max()), store.manifest.dim
  tokens_BxT = np.zeros((_BATCH, most), int)
  keys_BxTxD = np.zeros((_BATCH, most, dim), np.float32)
  for row, one in enumerate(batch):
    tokens_BxT[row, : lengths_B[row]] = one.case.tokens
    keys_BxTxD[row, : lengths_B[row]] = one.keys_TxD
  log_p_BxT = np.full((_BATCH, most), np.nan)
  nearest_BxT = np.full((_BATCH, most), np.inf)
  begin = time.monotonic()
  walk.reset(np.ones(_BATCH, bool))
  for t in range(most):
    active_B = t < lengths_B
    need_B = walk.ask(active_B)
    answer = neighbors(keys_BxTxD[need_B, t]) if need_B.any() else (None, None)
    distances_BxM, ids_BxM = walk.candidates(keys_BxTxD[:, t], *answer)
    distances_RxM = distances_BxM[active_B]
    values_RxM = store.tokens.values(ids_BxM[active_B])
    nearest_BxT[active_B, t] = knn_tuning.nearest(distances_RxM, values_RxM)
    log_p_BxT[active_B, t] = knn_lm.log_probability(
      distances_RxM,
      values_RxM,
      tokens_BxT[active_B, t],
      metric=store.manifest.metric,
      temperature=settings.temperature,
    )
    walk.advance(tokens_BxT[:, t])
  searching = (time.monotonic() - begin) / len(batch)
  for row, one in enumerate(batch):
    more = {'searches': int(walk.searches_B[row])}
    tokens = row, slice(0, lengths_B[row])
    yield one, log_p_BxT[tokens], nearest_BxT[tokens], more, searching


def _walk(config, store: store_lib.Store, neighbors: knn_search.Neighbors):
  if config.knn.drop_self:
    raise ValueError('knn.drop_self goes with method=knn_lm alone')
  settings = retomaton.Settings.create(config.retomaton)
  return retomaton.Walk(
    automaton(config, store, settings),
    settings,
    neighbors.measure,
    rows=_BATCH,
    neighbors=config.knn.neighbors,
  )


def automaton(
  config, store: store_lib.Store, settings: retomaton.Settings
) -> automaton_lib.Automaton:
  """That of the store, kept there for each number of states and seed."""
  name = f'{settings.clusters}-{config.seed}'
  path = os.path.join(store.directory, 'automaton', name)
  if os.path.exists(os.path.join(path, 'done')):
    return automaton_lib.Automaton.load(path)
  shards = store.tokens.shards
  values_N = np.concatenate([shard.values for shard in shards])
  begins = np.cumsum([0] + [len(shard) for shard in shards])
  starts = np.concatenate(
    [
      shard.sequences[:-1] + begin
      for shard, begin in zip(shards, begins, strict=False)
    ]
  )
  cluster_N = None
  if settings.clusters:
    print(f'{config.job}: finding {settings.clusters} states of the automaton')
    count = store.manifest.rows
    rng = np.random.default_rng(config.seed)
    sample = rng.choice(count, min(_SAMPLE, count), replace=False)
    blocks = (
      np.asarray(block, np.float32)
      for shard in range(len(shards))
      for _, block in store.mapped_vectors(shard).blocks()
    )
    cluster_N = automaton_lib.clusters(
      store.gather(np.sort(sample)), blocks, settings.clusters, seed=config.seed
    )
  automaton = automaton_lib.build(values_N, starts, cluster_N)
  automaton.save(path)
  files.write_if_changed(os.path.join(path, 'done'), b'')
  return automaton


def _row(
  config,
  tokenizer,
  one: Read,
  log_p_knn_T: np.ndarray,
  nearest_T: np.ndarray,
  more: dict,
  searching: float,
) -> dict:
  """`nearest_T`: distances of nearest neighbours; `more`: of the row."""
  begin = time.monotonic()
  lambda_ = config.knn['lambda']
  if config.knn.lambda_by_distance:
    bins = knn_tuning.Bins.parse(config.knn.lambda_by_distance)
    lambda_ = bins.lambda_of(nearest_T)
  mixed_T = knn_lm.interpolate(one.log_p_lm_T, log_p_knn_T, lambda_)
  scores = [math.fsum(one.log_p_lm_T), math.fsum(mixed_T)]
  mixed = one.seconds + time.monotonic() - begin
  known = rows_lib.about(config, one.case)
  at = [0, config.knn.neighbors]
  tokens = rows_lib.tokens(
    config, tokenizer, one.case, [one.log_p_lm_T, mixed_T], at
  )
  return {
    **known,
    **more,
    **tokens,
    'at': at,
    'log_likelihood': scores,
    'train_loss': [],
    'steps': [],
    'seconds': known['seconds']
    | {'retrieve': searching, 'adapt': 0.0, 'score': mixed},
    'adapt_seconds': [],
    'score_seconds': [one.seconds, mixed],
  }
