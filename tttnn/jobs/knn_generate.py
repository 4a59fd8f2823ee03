"""Neighbours at each step of a text, from a store of tokens."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools

import jax

from tttnn import language_model
from tttnn.datastore import embed
from tttnn.datastore import retrieve
from tttnn.datastore import store as store_lib
from tttnn.datastore import tokens as tokens_lib
from tttnn.jobs import knn
from tttnn.jobs import knn_search
from tttnn.jobs import neighbors as neighbors_lib
from tttnn.methods import generate
from tttnn.methods import knn_decode
from tttnn.methods import retomaton


@contextlib.contextmanager
def hook(
  config, store: store_lib.Store, *, fingerprint: str, dim: int
) -> Iterator[knn_decode.Knn | knn_decode.Retomaton]:
  """What config.method makes of a step's distribution, while searching lasts.

  Args:
    config: its method, knn, retomaton, store, serve and mesh sections.
    store: of tokens.
    fingerprint: of the model that writes.
    dim: of its keys.

  Raises:
    ValueError: for a wrong setting, or a store of another model.
  """
  if config.knn.drop_self:
    raise ValueError(
      'knn.drop_self leaves out what a text is itself: one that is still to be '
      'written is in no store'
    )
  how = neighbors_lib.how_to_search(config, retrieve.SEARCHES)
  with retrieve.searcher(store, **how) as searcher:
    searcher.check(fingerprint, dim, store.manifest.keys)
    neighbors = knn_search.Neighbors(config, store, searcher)
    settings = knn_search.one_setting(config)
    how = neighbors, store.tokens.values, settings
    metric = store.manifest.metric
    if config.method == 'knn_lm':
      yield knn_decode.Knn(*how, metric=metric)
      return
    pointers = retomaton.Settings.create(config.retomaton)
    new_walk = functools.partial(
      retomaton.Walk,
      knn.automaton(config, store, pointers),
      pointers,
      neighbors.measure,
      neighbors=settings.neighbors,
    )
    yield knn_decode.Retomaton(
      lambda rows: new_walk(rows=rows), *how, metric=metric
    )


@contextlib.contextmanager
def writer(
  config,
  model: language_model.LanguageModel,
  sampling: generate.Sampling,
) -> Iterator[Callable[[str, jax.Array], dict]]:
  """(text, key) -> how it goes on, while searching lasts.

  As a row has it: `after`, and of RetoMaton the steps and searches it took.

  Raises:
    ValueError: as `hook`, or for a store that is not there.
  """
  store = store_lib.open(
    knn.store_path(config), config.store.index, kind=tokens_lib.KIND
  )
  write = model.stepwise_writer(sampling, store.manifest.keys)
  about = {
    'fingerprint': embed.fingerprint(
      model.model, model.params, model.tokenizer
    ),
    'dim': model.model.width,
  }
  with hook(config, store, **about) as adjust:

    def write_one(text: str, key: jax.Array) -> dict:
      if config.method == 'knn_lm':
        return {'after': write(model.params, text, key, adjust)}
      steps, searches = adjust.steps, adjust.searches
      return {
        'after': write(model.params, text, key, adjust),
        'steps': adjust.steps - steps,
        'searches': adjust.searches - searches,
      }

    yield write_one
