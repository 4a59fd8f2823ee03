"""What each method does to a document, and what its row says of it."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from tttnn import language_model
from tttnn import prefetch
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.jobs import knn
from tttnn.jobs import neighbors
from tttnn.jobs import rows
from tttnn.jobs import selection
from tttnn.methods import in_context
from tttnn.methods import interpolation
from tttnn.methods import schedule
from tttnn.methods import ttt

METHODS = (
  'base',
  'ttt',
  'dynamic_eval',
  'in_context',
  'interpolation',
  *knn.METHODS,
)
_BATCH = 64  # Documents of one search.

Works = Iterator[schedule.Work]


@dataclasses.dataclass(frozen=True)
class Key:
  """What a work is known by.

  Attributes:
    row: what it says before anything is computed.
    case: the document.
    neighbors: texts of those that it has.
    probabilities_T: of `interpolation`, those of the neighbours' tokens.
  """

  row: dict
  case: documents_lib.Case
  neighbors: list[str]
  probabilities_T: np.ndarray | None = None


def counts(config) -> set[int]:
  """The counts to score at, of neighbours or of passes.

  Raises:
    ValueError: for an unknown method, or counts that are not numbers between 0
      and the most that there can be.
  """
  method = config.method
  if method not in METHODS:
    raise ValueError(f'method={method!r} is not one of {METHODS}')
  if method == 'in_context' and rows.windows(config):
    raise ValueError(
      f'eval.window={config.eval.window} and eval.stride={config.eval.stride}, '
      "but in_context fills the model's context with neighbours"
    )
  if method == 'base':
    return {0}
  most, key = config.retrieval.neighbors, 'retrieval.neighbors'
  if method == 'dynamic_eval':
    most, key = config.dynamic_eval.steps, 'dynamic_eval.steps'
    if config.eval.protocol != 'split':
      raise ValueError(
        f'eval.protocol={config.eval.protocol!r}, but dynamic_eval trains on '
        'the part of a document that split does not score'
      )
  if method in knn.METHODS:
    most, key = config.knn.neighbors, 'knn.neighbors'
  if method not in ttt.METHODS:  # Without neighbours and with all of them.
    if most < 1:
      raise ValueError(f'method={method} needs {key}, which is {most}')
    return {0, most}
  if config.eval.at == 'all':
    return set(range(most + 1))
  parts = [part.strip() for part in config.eval.at.split(',')]
  if not all(part.isdigit() for part in parts):
    raise ValueError(
      f"eval.at={config.eval.at!r} is neither 'all' nor numbers as '0,1,5'"
    )
  found = {int(part) for part in parts}
  if max(found) > most:
    raise ValueError(
      f'eval.at={config.eval.at!r} asks for {max(found)} neighbours or passes, '
      f'{key} is {most}'
    )
  return found


def make(
  config,
  model: language_model.LanguageModel,
  find: neighbors.Find,
  at: Collection[int],
  documents: Sequence[documents_lib.Document],
  task: str = '',
) -> Works:
  """Retrieves, selects and cuts.

  Args:
    config: of the run.
    model: the language model.
    find: the candidates.
    at: the counts to score at.
    documents: in order.
    task: that of the document before the first; where eval.tasks names tasks,
      each begins afresh.

  Yields:
    A work a document, whose key is a `Key`.
  """
  for batch in prefetch.batches(documents, _BATCH):
    cases = [
      model.case(document, config.eval.protocol, config.eval.split_prefix)
      for document in batch
    ]
    if config.method in neighbors.WITHOUT:
      chosen = [None] * len(cases)
    else:
      chosen = selection.choose(config, find, cases)
    for case, of_case in zip(cases, chosen, strict=True):
      afresh = bool(config.eval.tasks) and case.document.task != task
      task = case.document.task
      work = _work(config, model, case, of_case, at)
      yield dataclasses.replace(
        work, number=neighbors.number(case.document), afresh=afresh
      )


def row(
  config,
  tokenizer,
  work: schedule.Work,
  outcome: ttt.Outcome,
  alpha: float | None = None,
) -> dict:
  """A row of `results.jsonl`, with its token scores where they are asked for.

  `alpha` is what `interpolation` mixes with; None where it is not known yet.
  """
  known = work.key.row
  trains = config.method in ttt.METHODS
  found = {
    **known,
    'at': outcome.at,
    'log_likelihood': outcome.log_likelihood,
    'train_loss': outcome.train_loss if trains else [],
    'steps': outcome.steps if trains else [],
    'seconds': known['seconds']
    | {
      'adapt': sum(outcome.adapt_seconds),
      'score': sum(outcome.score_seconds),
    },
    'adapt_seconds': outcome.adapt_seconds if trains else [],
    'score_seconds': outcome.score_seconds,
  }
  if config.method != 'interpolation':
    scores = outcome.token_log_likelihood
    return found | _tokens(config, tokenizer, work.key, scores, outcome.at)
  alphas = interpolation.grid(config.interpolation.alpha)
  mixed = interpolation.log_likelihoods(
    outcome.token_log_likelihood[0], work.key.probabilities_T, alphas
  )
  found |= {
    'at': [0, config.retrieval.neighbors],
    'log_likelihood': [*outcome.log_likelihood, math.nan],
    # One pass of the model gives both.
    'score_seconds': outcome.score_seconds * 2,
    'by_alpha': {'alpha': list(alphas), 'log_likelihood': mixed},
  }
  scores = outcome.token_log_likelihood
  if work.key.probabilities_T is not None:
    with np.errstate(divide='ignore'):  # A token that no neighbour has.
      scores = [*scores, np.log(work.key.probabilities_T)]
  found |= _tokens(
    config, tokenizer, work.key, scores, found['at'], mixture=True
  )
  return found if alpha is None else interpolation.at_alpha(found, alpha)


def _tokens(config, tokenizer, key: Key, scores, at, **more) -> dict:
  return rows.tokens(
    config, tokenizer, key.case, scores, at, key.neighbors, **more
  )


def _work(
  config,
  model: language_model.LanguageModel,
  case: documents_lib.Case,
  chosen: selection.Chosen | None,
  at: Collection[int],
) -> schedule.Work:
  windows = model.scored(case)
  about = _about(config, case, chosen)
  key = Key(about, case, chosen.texts if chosen else [])
  if config.method == 'base':
    return schedule.Work(key, {0: windows})
  if config.method == 'dynamic_eval':
    passes = model.trained([case.query]) * config.dynamic_eval.steps
    return schedule.Work(key, dict.fromkeys(at, windows), passes)
  if config.method == 'ttt':
    trained = model.trained(chosen.texts)
    return schedule.Work(key, dict.fromkeys(at, windows), trained)
  tokens = tokenizer_lib.encode(model.tokenizer, chosen.texts)
  if config.method == 'interpolation':
    distances = [neighbor.distance for neighbor in chosen.neighbors]
    probabilities_T = interpolation.target_probabilities(
      tokens, distances, case.tokens
    )
    # The mixture needs no pass of its own.
    key = dataclasses.replace(key, probabilities_T=probabilities_T)
    return schedule.Work(key, {0: windows})
  settings = in_context.Settings(**config.in_context)
  behind = in_context.windows(
    case.tokens, tokens, model.context, model.start, settings
  )
  front = [len(window.inputs) - len(window.targets) for window in behind[:1]]
  about['context_tokens'] = sum(front)
  # Neighbours that are counted, and not trained on.
  untrained = [[]] * max(at)
  return schedule.Work(key, {0: windows, max(at): behind}, untrained)


def _about(
  config, case: documents_lib.Case, chosen: selection.Chosen | None
) -> dict:
  """What a row has before anything is computed."""
  about = rows.about(config, case)
  if chosen is None:
    return about
  about |= {
    'neighbors': chosen.to_json(),
    'missing_neighbors': chosen.missing,
    'seconds': chosen.seconds,
  }
  if chosen.remaining:
    about['remaining'] = chosen.remaining
  if chosen.removed:
    about['removed'] = chosen.removed
  if chosen.missing_shards:
    about['missing_shards'] = chosen.missing_shards
  return about
