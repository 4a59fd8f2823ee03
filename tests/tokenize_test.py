"""The job that tokenizes pairs: what it writes, says, and does again."""

import os
import re

import pytest

from configs import base
from tests import tiny
from tests.pairs_test import records
from tests.pairs_test import write_lines
from tttnn import jobs
from tttnn.corpus import pairs


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  directory = tmp_path_factory.mktemp('world')
  lm, _ = tiny.write_models(str(directory))
  tiny.t5_tokenizer(f'{directory}/t5')
  config = base.get_config()
  config.job = 'tokenize'
  config.model.path = lm
  config.corpus.train = f'{directory}/train-*.jsonl'
  config.corpus.test = write_lines(directory / 'test.jsonl', records(3))
  for number in range(2):
    write_lines(directory / f'train-{number}.jsonl', records(6, seed=number))
  config.tokenize.max_input = 12
  config.tokenize.max_output = 9
  return config


def stamps(workdir):
  return {
    name: os.stat(workdir / name).st_mtime_ns for name in os.listdir(workdir)
  }


def test_it_leaves_a_file_of_each_corpus_and_says_what_is_in_it(
  world, tmp_path, capsys
):
  jobs.run(world, str(tmp_path))
  output = capsys.readouterr().out
  assert sorted(os.listdir(tmp_path)) == [
    'config.json',
    'test.arrow',
    'train.arrow',
  ]
  train = pairs.open(str(tmp_path / 'train.arrow'))
  made = records(6) + records(6, seed=1)
  assert [train.texts(i) for i in range(12)] == [
    (record['input'], record['output']) for record in made
  ]
  assert train.kind == 'causal'
  assert train.limits == {'max_input': 12, 'max_output': 9}
  assert len(pairs.open(str(tmp_path / 'test.arrow'))) == 3
  assert 'tokenize: train: 12 pairs (causal)' in output
  for side, limit in (('input', 12), ('output', 9)):
    cut = train.counts[side]['truncated']
    assert re.search(
      rf'{side}s +[\d.]+ tokens on average, 50 % up to \d+, .*, the longest '
      rf'{train.counts[side]["max"]}; {cut} \({cut / 12:.1%}\) cut to {limit}',
      output,
    )


def test_rerunning_makes_again_only_what_has_changed(world, tmp_path, capsys):
  config = world.copy_and_resolve_references()
  jobs.run(config, str(tmp_path))
  before = stamps(tmp_path)
  capsys.readouterr()
  jobs.run(config, str(tmp_path))
  output = capsys.readouterr().out
  assert stamps(tmp_path) == before
  assert output.count('.arrow is there') == 2
  assert 'tokenize: train: 12 pairs' in output
  config.corpus.train = config.corpus.test
  jobs.run(config, str(tmp_path))
  output = capsys.readouterr().out
  assert re.search(
    r'train\.arrow is made again \(sources: .*test\.jsonl', output
  )
  assert stamps(tmp_path)['test.arrow'] == before['test.arrow']
  assert len(pairs.open(str(tmp_path / 'train.arrow'))) == 3
  config.tokenize.max_output = 5
  jobs.run(config, str(tmp_path))
  found = pairs.open(str(tmp_path / 'train.arrow'))
  assert found.limits['max_output'] == 5
  assert max(len(output) for _, output in found) == 5


def test_the_model_or_what_training_makes_decides_what_follows_texts(
  world, tmp_path
):
  config = world.copy_and_resolve_references()
  tokenizer = config.model.path.replace('lm', 't5')
  config.model.path = ''
  config.train.tokenizer = tokenizer
  config.train.model_type = 't5'
  jobs.run(config, str(tmp_path))
  found = pairs.open(str(tmp_path / 'test.arrow'))
  assert found.kind == 'seq2seq'
  assert all(source[-1] == 1 for source, _ in found)
  # A directory of a model says so itself.
  config.train.init = world.model.path
  jobs.run(config, str(tmp_path))
  assert pairs.open(str(tmp_path / 'test.arrow')).kind == 'causal'


def test_what_is_missing_is_named(world, tmp_path):
  config = world.copy_and_resolve_references()
  config.model.path = ''
  with pytest.raises(ValueError, match='tokenize needs model.path'):
    jobs.run(config, str(tmp_path))
  config = world.copy_and_resolve_references()
  config.corpus.update(train='', test='')
  with pytest.raises(ValueError, match='tokenize needs corpus.train'):
    jobs.run(config, str(tmp_path))
  config.corpus.train = write_lines(
    tmp_path / 'bad.jsonl', [{'input': 'a', 'output': 'b'}, {'text': 'c'}]
  )
  with pytest.raises(ValueError, match=r'bad\.jsonl:2: no "input"'):
    jobs.run(config, str(tmp_path))
  config.corpus.on_error = 'skip'
  jobs.run(config, str(tmp_path))
  found = pairs.open(str(tmp_path / 'train.arrow'))
  assert (len(found), found.counts['malformed']) == (1, 1)
