"""What tests of `tttnn.harness` ask, and of which model."""

import shutil

from lm_eval.api import instance
import torch
import transformers

from tests import tiny
from tests import world as world_lib
from tttnn import jobs

NEIGHBORS = 2
LONG = ' '.join(tiny.documents(6, seed=5))

# Choices of one context, which come apart; contexts that are empty, too long,
# and end in a blank; a continuation that is the end-of-text token.
PAIRS = [
  ('The quick brown fox', ' jumps over the lazy dog'),
  ('', 'Pack my box'),
  ('The quick brown fox', ' 17 23'),
  ('five dozen ', 'liquor jugs'),
  (LONG, ' vexingly quick'),
  ('The quick brown fox', ' judge'),
  ('', '<|endoftext|> my vow'),
  ('12 991', ' ' + ' '.join(map(str, range(20)))),
]
TEXTS = ['The five boxing wizards jump', LONG, '', 'a', 'The five boxing']


def make_arguments(world, directory):
  """Of a model whose tokens are far from equally likely, made there."""
  path = str(directory / 'lm')
  shutil.copytree(world.model.path, path)
  config = transformers.GPT2Config.from_pretrained(path, initializer_range=0.3)
  torch.manual_seed(1)
  transformers.GPT2LMHeadModel(config).save_pretrained(path)
  return {
    'model.path': path,
    'embedder.path': world.embedder.path,
    'store.path': world.store.path,
    'store.search': 'device',  # Without starting a process in each test.
    'retrieval.neighbors': NEIGHBORS,
    'ttt.learning_rate': 1e-3,
  }


def requests(kind, arguments):
  return [
    instance.Instance(kind, {}, args, number)
    for number, args in enumerate(arguments)
  ]


def likelihoods(lm, pairs=PAIRS):
  return lm.loglikelihood(requests('loglikelihood', pairs), disable_tqdm=True)


def rolling(lm, texts=TEXTS):
  made = requests('loglikelihood_rolling', [(text,) for text in texts])
  return lm.loglikelihood_rolling(made, disable_tqdm=True)


def texts_of(lm, prompts, **kwargs):
  made = requests('generate_until', [(prompt, kwargs) for prompt in prompts])
  return lm.generate_until(made, disable_tqdm=True)


def evaluated(world, arguments, tmp_path, method):
  """The rows of `evaluate` for TEXTS."""
  path = tiny.write_jsonl(tmp_path / 'texts.jsonl', TEXTS)
  config = world_lib.changed(
    world,
    method=method,
    eval__documents=path,
    eval__protocol='whole',
    eval__near_duplicate=0.0,
    model__path=arguments['model.path'],
    retrieval__neighbors=NEIGHBORS,
    ttt__learning_rate=arguments['ttt.learning_rate'],
  )
  jobs.run(config, str(tmp_path / 'evaluate'))
  return world_lib.rows_of(tmp_path / 'evaluate')
