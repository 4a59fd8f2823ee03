"""configs/knn_mt.py from pairs to BLEU, and what a store of a domain adds."""

import json

import pytest

from configs import knn_lm
from configs import knn_mt
from tests import toy_translation
from tests import world as world_lib
from tttnn import jobs

pytestmark = pytest.mark.usefixtures('compile_fast')


def figures(workdir):
  with open(workdir / 'summary.json', encoding='utf-8') as file:
    return json.load(file)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('toy')
  toy_translation.write_tokenizer(directory / 'tokenizer')
  for name, count, domain, seed in (
    ('train', 600, 'a', 0),
    ('validation', 32, 'a', 1),
    ('test', 40, 'a', 2),
    ('other', 300, 'b', 3),
    ('other-test', 40, 'b', 4),
  ):
    pairs = toy_translation.sentences(count, domain, seed)
    toy_translation.write(directory / f'{name}.jsonl', pairs)
  return directory


def settings(config, directory):
  for split in ('train', 'validation', 'test'):
    config.corpus[split] = f'{directory}/{split}.jsonl'
  config.tokenize.update(max_input=8, max_output=8)
  config.train.update(
    init='',
    tokenizer=f'{directory}/tokenizer',
    layers=1,
    width=64,
    heads=4,
    steps=150,
    batch_size=32,
    learning_rate=5e-3,
    warmup_steps=20,
    dropout=False,
    eval_every=75,
    eval_batches=1,
    checkpoint_every=150,
  )
  config.knn.update(neighbors=8, temperature=10.0)
  config.generate.update(beams=2, max_tokens=8)
  return config


@pytest.fixture(scope='module')
def trained(directory, tmp_path_factory):
  """(config, work directory) of the whole pipeline on one domain."""
  workdir = tmp_path_factory.mktemp('knn_mt')
  config = settings(knn_mt.get_config(), directory)
  jobs.run(config, str(workdir))
  return config, workdir


@pytest.mark.slow
def test_a_store_of_another_domain_translates_it(directory, trained, tmp_path):
  config, workdir = trained
  own = figures(workdir)['generation']
  assert own['base']['exact_match'] > 0.8
  assert own['knn']['exact_match'] > 0.8
  other = world_lib.changed(
    config,
    model__path=f'{workdir}/train/best',
    corpus__train=f'{directory}/other.jsonl',
    corpus__validation='',
    corpus__test=f'{directory}/other-test.jsonl',
    store__path=f'{tmp_path}/store',
  )
  other.pairs.train = f'{tmp_path}/tokens/train.arrow'
  other.pairs.test = f'{tmp_path}/tokens/test.arrow'
  other.knn['lambda'] = 0.8
  for job, folder in (
    ('tokenize', 'tokens'),
    ('build', 'build'),
    ('evaluate', 'evaluate'),
  ):
    jobs.run(world_lib.changed(other, job=job), f'{tmp_path}/{folder}')
  found = figures(tmp_path / 'evaluate')
  assert found['generation']['base']['exact_match'] == 0
  written = found['generation']
  assert written['knn']['exact_match'] > 0.1
  assert written['knn']['bleu'] > 10 + written['base']['bleu']
  assert (
    found['pairs']['knn']['perplexity'] < found['pairs']['base']['perplexity']
  )


@pytest.mark.slow
def test_rerunning_the_pipeline_does_nothing(trained, capsys):
  config, workdir = trained
  before = figures(workdir)
  jobs.run(config, str(workdir))
  assert figures(workdir) == before
  assert 'evaluate: 40 pairs, 40 done, 40 written' in capsys.readouterr().out


def test_variants(directory, tmp_path, capsys):
  with pytest.raises(ValueError, match='knn_mt.py:ttt: .* knn, retomaton'):
    knn_mt.get_config('ttt')
  config = settings(knn_mt.get_config('retomaton'), directory)
  config.dry_run = True
  jobs.run(config, str(tmp_path))
  assert 'evaluate (retomaton), pairs' in capsys.readouterr().out
  with pytest.raises(ValueError, match='knn_lm.py:t6: the variants are gpt2'):
    knn_lm.get_config('t6')
