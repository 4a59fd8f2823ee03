"""Models, a corpus, its store and test documents, for tests of whole jobs."""

import json
import os

from configs import base
from tests import tiny
from tttnn import jobs

COUNT = 12  # Test documents.


def make(directory):
  """The config of an evaluation, everything it names being made there.

  Models, a corpus in two shards, a store and test documents.
  """
  lm, embedder = tiny.write_models(str(directory))
  texts = tiny.documents(60, seed=1)
  tiny.write_jsonl(directory / 'train-0.jsonl', texts[:40])
  tiny.write_jsonl(directory / 'train-1.jsonl', texts[40:] + [''])
  # Short, empty, one token, long, and one whose text is in the store.
  tests = tiny.documents(COUNT - 4, seed=2)
  tests += ['', 'a', ' '.join(tiny.documents(5, seed=3)), texts[3]]
  tiny.write_jsonl(directory / 'test.jsonl', tests)
  config = base.get_config()
  config.job = 'build'
  config.corpus.train = f'{directory}/train-*.jsonl'
  config.embedder.path = embedder
  config.store.path = f'{directory}/store'
  config.build.block = 16
  config.build.batch_size = 4
  jobs.run(config, str(directory / 'build'))
  config.job = 'evaluate'
  config.model.path = lm
  config.eval.documents = f'{directory}/test.jsonl'
  config.retrieval.neighbors = 3
  config.ttt.learning_rate = 1e-3
  return config


def with_tokens(world, directory):
  """The config of an evaluation of knn_lm, with a store of tokens there."""
  config = changed(
    world,
    job='build',
    store__key='ffn_input',
    store__path=f'{directory}/store',
    embedder__path='',
  )
  jobs.run(config, str(directory / 'build'))
  return changed(config, job='evaluate', method='knn_lm')


def changed(world, **changes):
  config = world.copy_and_resolve_references()
  for key, value in changes.items():
    section, _, leaf = key.partition('__')
    if leaf:
      config[section][leaf] = value
    else:
      config[section] = value
  return config


def rows_of(workdir, name='results.jsonl'):
  with open(os.path.join(workdir, name)) as file:
    return [json.loads(line) for line in file]


def timeless(rows):
  return [
    {k: v for k, v in row.items() if not k.endswith('seconds')} for row in rows
  ]
