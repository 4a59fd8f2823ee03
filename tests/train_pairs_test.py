"""Training on pairs, from JSONL to a model of `transformers`."""

import json
import os

import numpy as np
import pytest
import torch
import transformers

from configs import base
from configs import train_pairs
from tests import tiny
from tests.pairs_test import records
from tests.pairs_test import write_lines
from tttnn import checkpoint
from tttnn import jobs
from tttnn import objectives
from tttnn.corpus import packing
from tttnn.corpus import pairs

pytestmark = pytest.mark.usefixtures('compile_fast')


def settings(directory, kind):
  """A small run from scratch of the pipeline's config."""
  config = train_pairs.get_config(kind)
  config.corpus.train = f'{directory}/train.jsonl'
  config.corpus.validation = f'{directory}/validation.jsonl'
  config.tokenize.update(max_input=20, max_output=12)
  config.train.update(
    init='',
    tokenizer=f'{directory}/{"t5" if kind == "t5" else "lm"}',
    layers=1,
    width=16,
    heads=2,
    context=32,
    steps=9,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=3,
    eval_every=2,
    eval_batches=2,
    checkpoint_every=4,
  )
  return config


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('world')
  tiny.write_models(str(directory))
  tiny.t5_tokenizer(f'{directory}/t5')
  write_lines(directory / 'train.jsonl', records(30))
  write_lines(directory / 'validation.jsonl', records(10, seed=1))
  return directory


@pytest.fixture(scope='module', params=['t5', 'gpt2'])
def finished(request, directory, tmp_path_factory):
  """(config, the work directory of a whole pipeline)."""
  config = settings(directory, request.param)
  workdir = tmp_path_factory.mktemp(request.param)
  jobs.run(config, str(workdir))
  return config, workdir


def summary_of(workdir):
  with open(workdir / 'train' / 'summary.json') as file:
    return json.load(file)


def validations_of(workdir):
  """{step: loss}, the last step's too."""
  with open(workdir / 'train' / 'history.jsonl') as file:
    rows = [json.loads(line) for line in file]
  losses = {
    row['step']: row['validation_loss']
    for row in rows
    if 'validation_loss' in row
  }
  return losses | {9: summary_of(workdir)['validation_loss']}


def torch_validation(path, workdir, seed):
  """Mean loss of the pairs that are validated, by `transformers`."""
  texts = pairs.open(str(workdir / 'tokens' / 'validation.arrow'))
  order = packing.order(seed, 0, len(texts))[np.arange(len(texts))]
  t5 = texts.kind == 'seq2seq'
  kind = (
    transformers.T5ForConditionalGeneration
    if t5
    else transformers.GPT2LMHeadModel
  )
  model = kind.from_pretrained(path).eval()
  total = count = 0
  for number in order[:8]:
    source, target = texts[number]
    if t5:
      inputs = torch.tensor([source])
      labels = torch.tensor([target])
    else:
      inputs = torch.tensor([[*source, *target]])
      labels = torch.tensor([[-100] * len(source) + target])
    with torch.no_grad():
      total += model(inputs, labels=labels).loss.item() * len(target)
    count += len(target)
  return total / count


def test_the_best_parameters_are_exported(finished):
  config, workdir = finished
  losses = validations_of(workdir)
  assert sorted(losses) == [2, 4, 6, 8, 9]
  summary = summary_of(workdir)
  best = min(losses, key=losses.get)
  assert (summary['best_step'], summary['best_loss']) == (best, losses[best])
  assert losses[best] < losses[2]
  # The pipeline exports the best, training itself the last.
  for path, loss in (
    (workdir / 'export', losses[best]),
    (workdir / 'train' / 'export', losses[9]),
  ):
    found = torch_validation(path, workdir, config.seed)
    assert found == pytest.approx(loss, rel=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / 'export')
  texts = pairs.open(str(workdir / 'tokens' / 'validation.arrow'))
  text = texts.texts(0)[0]
  assert texts[0][0] == tokenizer(text)['input_ids'][: len(texts[0][0])]


def test_a_rerun_changes_nothing(finished, capsys):
  config, workdir = finished

  def stamps():
    return {
      path: path.stat().st_mtime_ns
      for path in workdir.rglob('*')
      if path.is_file()
    }

  before = stamps()
  jobs.run(config, str(workdir))
  assert stamps() == before
  output = capsys.readouterr().out
  assert 'is trained to step 9' in output
  assert f'export: {workdir}/export is there' in output


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bytes(
  finished, tmp_path, monkeypatch
):
  config, workdir = finished
  t5 = config.train.model_type == 't5'
  task = objectives.PairTask if t5 else objectives.CausalPairTask
  batch = task.batch
  # While it trains, and just when a validation has been the best so far.
  for stop in (1, 6, 8):

    def interrupted(self, texts, number, seed, stop=stop):
      if number == stop:
        raise KeyboardInterrupt
      return batch(self, texts, number, seed)

    monkeypatch.setattr(task, 'batch', interrupted)
    with pytest.raises(KeyboardInterrupt):
      jobs.run(config, str(tmp_path))
  monkeypatch.undo()
  jobs.run(config, str(tmp_path))
  assert validations_of(tmp_path) == validations_of(workdir)
  for name in ('export', 'train/export'):
    path = f'{name}/model.safetensors'
    assert (tmp_path / path).read_bytes() == (workdir / path).read_bytes()


def train(config, workdir, tmp_path, **changes):
  """The step `train` alone, of the pairs that a pipeline has made."""
  config = config.copy_and_resolve_references()
  config.job = 'train'
  for split in ('train', 'validation'):
    config.pairs[split] = f'{workdir}/tokens/{split}.arrow'
  config.train.update(**changes)
  jobs.run(config, str(tmp_path))


def test_training_goes_on_from_an_export(finished, tmp_path):
  config, workdir = finished
  start = workdir / 'export'
  train(config, workdir, tmp_path, init=str(start), steps=1, learning_rate=0.0)
  found = (tmp_path / 'export' / 'model.safetensors').read_bytes()
  assert found == (start / 'model.safetensors').read_bytes()


def test_other_validations_do_not_go_on_from_the_best(finished):
  config, workdir = finished
  with pytest.raises(ValueError, match='eval_batches: 2 there, 1 now'):
    train(config, workdir, workdir / 'train', steps=10, eval_batches=1)


def test_what_does_not_go_together_is_refused(finished, tmp_path):
  config, workdir = finished
  cases = [
    ({'input_length': 19}, 'train.input_length=19 makes room for 19 tokens'),
    ({'accumulation': 3}, 'batch_size=4 is no multiple of .*accumulation=3'),
    ({'model_type': 'roberta'}, "'pairs' does not fit a roberta"),
  ]
  if config.train.model_type == 't5':
    message = 'made for a seq2seq model, and a gpt2 is causal'
    cases.append(({'model_type': 'gpt2'}, message))
  else:
    tokenizer = config.train.tokenizer.replace('lm', 'embedder')
    cases.append(({'tokenizer': tokenizer}, 'made with another tokenizer'))
    cases.append(({'context': 30}, 'of 20 tokens and an output of 12 exceed'))
  for changes, error in cases:
    with pytest.raises(ValueError, match=error):
      train(config, workdir, tmp_path, **changes)
  assert not (tmp_path / 'export').exists()


def test_objectives_that_a_t5_has_not_are_refused(directory, tmp_path):
  config = settings(directory, 't5')
  config.job = 'train'
  config.train.objective = 'causal'
  with pytest.raises(ValueError, match="'causal' does not fit a t5"):
    jobs.run(config, str(tmp_path))
  config.train.objective = 'pairs'
  config.pairs.train = ''
  with pytest.raises(ValueError, match='needs pairs.train'):
    jobs.run(config, str(tmp_path))
  config.train.tokenizer = f'{directory}/lm'
  with pytest.raises(ValueError, match='has no padding token'):
    jobs.run(config, str(tmp_path))


def test_a_dry_run_estimates_the_training(directory, tmp_path, capsys):
  config = settings(directory, 't5')
  config.dry_run = True
  jobs.run(config, str(tmp_path))
  output = capsys.readouterr().out
  assert 'train (pairs): what a run would take' in output
  assert 'documents       30' in output
  assert not os.listdir(tmp_path)


def test_the_job_export_reads_a_t5(finished, tmp_path):
  config, workdir = finished
  job = base.get_config()
  job.job = 'export'
  job.model.path = str(workdir / 'train' / 'checkpoints')
  jobs.run(job, str(tmp_path))
  path = 'export/model.safetensors'
  wanted = (workdir / 'train' / path).read_bytes()
  assert (tmp_path / path).read_bytes() == wanted
  job.model.path = str(workdir / 'train' / 'best')
  digests = {
    checkpoint.digest(str(workdir / 'train' / name))
    for name in ('best', 'checkpoints')
  }
  if len(digests) == 2:
    with pytest.raises(ValueError, match='exists already'):
      jobs.run(job, str(tmp_path))
