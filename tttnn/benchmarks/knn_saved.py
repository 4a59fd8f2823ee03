"""The `knn_lm` benchmark: perplexity over the searches that RetoMaton saves.

Of the documents every second one chooses temperature and lambda, by its exact
neighbours; the others are evaluated.
"""

import dataclasses
import math

import numpy as np

from tttnn import language_model
from tttnn.benchmarks import knn_world
from tttnn.jobs import knn
from tttnn.methods import knn_tuning

_LAMBDAS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97)
_TEMPERATURES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def measure(world: knn_world.World) -> dict:
  """A point for each number of states and `min_knns`."""
  shape, documents = world.shape, world.documents
  model = language_model.load(world.config)
  reader = knn.Reader(model, world.config.store.key)
  exact = world.exact(model, reader)
  tuning, rest = subset(exact, 0), subset(exact, 1)
  totals = knn_tuning.sweep(tuning, _LAMBDAS, _TEMPERATURES, [shape.neighbors])[
    ..., 0
  ]
  places = np.unravel_index(totals.argmax(), totals.shape)
  lambda_, temperature = _LAMBDAS[places[0]], _TEMPERATURES[places[1]]
  tokens = len(rest.targets_T)
  plain = knn_tuning.sweep(rest, [lambda_], [temperature], [shape.neighbors])
  points, search = [], shape.searches[-1]
  with world.served(
    search, method='retomaton', knn__temperature=temperature
  ) as config:
    config.knn['lambda'] = lambda_
    config.retomaton.max_knns = shape.max_knns
    for clusters in (0, shape.clusters):
      for min_knns in shape.min_knns:
        config.retomaton.clusters = clusters
        config.retomaton.min_knns = min_knns
        knn_world.say(f'RetoMaton: {clusters} clusters, min_knns {min_knns:g}')
        points.append(_point(config, model, reader, documents[1::2]))
  return {
    'tokens': tokens,
    'search': search.name,
    'lambda': lambda_,
    'temperature': temperature,
    'model_perplexity': _perplexity(rest.log_p_lm_T.sum(), tokens),
    'exact_perplexity': _perplexity(plain.item(), tokens),
    'points': points,
  }


def _point(config, model, reader, documents) -> dict:
  with knn.scorer(config, model, reader) as score:
    rows = list(score(documents))
  tokens = sum(row['num_tokens'] for row in rows)
  total = sum(row['log_likelihood'][-1] for row in rows)
  return {
    'clusters': config.retomaton.clusters,
    'min_knns': f'{config.retomaton.min_knns:g}',
    'saved': 1 - sum(row['searches'] for row in rows) / tokens,
    'perplexity': _perplexity(total, tokens),
    'seconds_a_token': sum(row['seconds']['retrieve'] for row in rows) / tokens,
  }


def subset(cache: knn_tuning.Cache, first: int) -> knn_tuning.Cache:
  """Every second document, from number `first` on."""
  lengths = np.diff(cache.offsets)
  chosen_T = np.repeat(np.arange(len(lengths)) % 2 == first, lengths)
  parts = {
    field.name: getattr(cache, field.name)[chosen_T]
    for field in dataclasses.fields(cache)
    if field.name.endswith('_T') or field.name.endswith('_Txk')
    if getattr(cache, field.name) is not None
  }
  offsets = np.cumsum([0, *lengths[first::2]])
  return knn_tuning.Cache(metric=cache.metric, offsets=offsets, **parts)


def _perplexity(log_likelihood: float, tokens: int) -> float:
  return math.exp(-log_likelihood / tokens)
