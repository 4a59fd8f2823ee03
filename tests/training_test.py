"""Training: objectives, schedule, resuming, and what it leaves behind."""

import json
import math
import os

import jax
import numpy as np
import pytest

from configs import base
from configs import train_embedder
from tests import tiny
from tttnn import checkpoint
from tttnn import jobs
from tttnn import objectives
from tttnn.corpus import packing
from tttnn.corpus import tokenizer as tokenizer_lib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  directory = tmp_path_factory.mktemp('world')
  texts = tiny.documents(120)
  for kind in ('gpt2', 'roberta'):
    tokenizer_lib.train(texts, f'{directory}/{kind}', vocab_size=300, kind=kind)
  config = base.get_config()
  config.job = 'train'
  config.corpus.train = tiny.write_jsonl(directory / 'a.jsonl', texts[:100])
  config.corpus.validation = tiny.write_jsonl(
    directory / 'b.jsonl', texts[100:]
  )
  config.train.update(
    layers=1,
    width=16,
    heads=2,
    context=32,
    steps=12,
    batch_size=4,
    warmup_steps=3,
    log_every=4,
    eval_every=5,
    eval_batches=2,
    checkpoint_every=3,
  )
  config.train.tokenizer = f'{directory}/gpt2'
  return config


def changed(world, **changes):
  config = world.copy_and_resolve_references()
  config.train.update(**changes)
  return config


def masked(world):
  return changed(
    world,
    objective='masked',
    model_type='roberta',
    tokenizer=world.train.tokenizer.replace('gpt2', 'roberta'),
  )


def history_of(workdir):
  with open(workdir / 'history.jsonl') as file:
    records = [json.loads(line) for line in file]
  return [
    {'step': r['step'], 'loss': r['loss']} for r in records if 'loss' in r
  ]


def summary_of(workdir):
  with open(workdir / 'summary.json') as file:
    return json.load(file)


def validations_of(workdir):
  """(loss, step of the best parameters, their loss)."""
  summary = summary_of(workdir)
  return [summary[key] for key in ('validation_loss', 'best_step', 'best_loss')]


def weights_of(workdir):
  with open(workdir / 'export' / 'model.safetensors', 'rb') as file:
    return file.read()


@pytest.fixture(scope='module')
def finished(world, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  jobs.run(world, str(workdir))
  return workdir


def test_loss_falls_and_the_export_has_the_validation_loss(world, tmp_path):
  config = changed(world, steps=60, learning_rate=1e-2, checkpoint_every=60)
  jobs.run(config, str(tmp_path))
  history = history_of(tmp_path)
  assert history[-1]['step'] == 60
  assert history[-1]['loss'] < history[0]['loss'] - 0.5
  summary = summary_of(tmp_path)
  # By the definition, from the exported directory.
  model, params = checkpoint.load_model(str(tmp_path / 'export'))
  tokenizer = tokenizer_lib.load(str(tmp_path / 'export'))
  stream = packing.pack(
    tokenizer, 0, config.corpus.validation, str(tmp_path / 'again')
  )
  losses = []
  for number in range(2):
    rows = packing.batch(
      stream, number, rows=4, length=32, overlap=1, seed=config.seed
    )
    scores = model.log_likelihood(params, rows[:, :-1], rows[:, 1:])
    losses.append(-np.mean(scores))
  assert summary['validation_loss'] == pytest.approx(np.mean(losses), rel=1e-4)
  assert summary['validation_perplexity'] == pytest.approx(
    math.exp(summary['validation_loss'])
  )


def test_interrupted_and_resumed_run_ends_with_the_same_bytes(
  world, finished, tmp_path, monkeypatch
):
  batch = objectives.StreamTask.batch

  def interrupt_at(step):
    def interrupted(self, stream, number, seed):
      if number == step:
        raise KeyboardInterrupt
      return batch(self, stream, number, seed)

    return interrupted

  for step in (1, 5, 10):
    monkeypatch.setattr(objectives.StreamTask, 'batch', interrupt_at(step))
    with pytest.raises(KeyboardInterrupt):
      jobs.run(world, str(tmp_path))
  monkeypatch.undo()
  jobs.run(world, str(tmp_path))
  assert weights_of(tmp_path) == weights_of(finished)
  assert validations_of(tmp_path) == validations_of(finished)
  assert summary_of(tmp_path)['best_step'] in (5, 10, 12)
  steps = [record['step'] for record in history_of(tmp_path)]
  assert steps == [4, 8, 12]


def test_rerunning_a_finished_run_changes_nothing(world, finished, capsys):
  before = {
    path: path.stat().st_mtime_ns
    for path in finished.rglob('*')
    if path.is_file()
  }
  jobs.run(world, str(finished))
  assert 'is trained to step 12' in capsys.readouterr().out
  after = {
    path: path.stat().st_mtime_ns
    for path in finished.rglob('*')
    if path.is_file()
  }
  assert after == before


def test_more_steps_go_on_from_the_checkpoint(world, tmp_path, capsys):
  config = changed(world, schedule='constant', steps=6)
  jobs.run(config, str(tmp_path / 'parts'))
  config = changed(world, schedule='constant', steps=12)
  jobs.run(config, str(tmp_path / 'parts'))
  assert 'resumes at step 6 of 12' in capsys.readouterr().out
  jobs.run(config, str(tmp_path / 'once'))
  assert weights_of(tmp_path / 'parts') == weights_of(tmp_path / 'once')


def test_other_settings_or_tokens_are_refused(world, tmp_path):
  jobs.run(changed(world, steps=3), str(tmp_path))
  with pytest.raises(ValueError, match='learning_rate: 0.001 there, 0.5 now'):
    jobs.run(changed(world, learning_rate=0.5), str(tmp_path))
  config = changed(world)
  config.corpus.train = config.corpus.validation
  with pytest.raises(ValueError, match='other tokens'):
    jobs.run(config, str(tmp_path))


def test_orbax_checkpoints_and_the_export_are_the_same_model(finished):
  found, params = checkpoint.load_model(str(finished / 'checkpoints'))
  expected, wanted = checkpoint.load_model(str(finished / 'export'))
  assert found == expected
  jax.tree.map(np.testing.assert_array_equal, params, wanted)
  config = base.get_config()
  config.job = 'export'
  config.model.path = str(finished / 'checkpoints')
  jobs.run(config, str(finished / 'again'))
  exported = finished / 'again' / 'export'
  assert (exported / 'model.safetensors').read_bytes() == weights_of(finished)
  assert tokenizer_lib.fingerprint(
    tokenizer_lib.load(str(exported))
  ) == tokenizer_lib.fingerprint(tokenizer_lib.load(str(finished / 'export')))


def test_training_starts_from_a_checkpoint(world, finished, tmp_path):
  config = changed(world, init=str(finished / 'export'), steps=1)
  config.train.learning_rate = 0.0
  jobs.run(config, str(tmp_path))
  assert weights_of(tmp_path) == weights_of(finished)


def test_masked_training_makes_an_embedder(world, tmp_path):
  jobs.run(masked(world), str(tmp_path))
  model, params = checkpoint.load_model(
    str(tmp_path / 'checkpoints'), role='embedder'
  )
  assert model.model_type == 'roberta'
  assert model.context == 32
  assert 'lm_head' not in params


def test_the_recipe_of_the_original_embedder_trains(world, tmp_path):
  _, embedder = tiny.write_models(str(tmp_path))
  config = train_embedder.get_config('hardt_sun')
  config.corpus.update(world.corpus)
  config.train.update(init=embedder, sequence_length=0, steps=4, batch_size=16)
  config.train.update(decay_every=2, log_every=1, eval_batches=1, window=1)
  jobs.run(config, str(tmp_path / 'run'))
  with open(tmp_path / 'run' / 'history.jsonl') as file:
    rates = [json.loads(line)['learning_rate'] for line in file]
  np.testing.assert_allclose(rates, [2e-5, 2e-5, 2e-6, 2e-6], rtol=1e-5)
  with pytest.raises(ValueError, match='train_embedder.py:large'):
    train_embedder.get_config('large')


def test_dropout_changes_the_training_and_is_reproducible(world, tmp_path):
  config = changed(world, dropout=True, steps=3)
  for name in ('one', 'two'):
    jobs.run(config, str(tmp_path / name))
  jobs.run(changed(world, steps=3), str(tmp_path / 'without'))
  one, two, without = (
    weights_of(tmp_path / name) for name in ('one', 'two', 'without')
  )
  assert one == two != without


def test_a_loss_that_is_not_finite_stops_with_the_step(world, tmp_path):
  config = changed(world, learning_rate=1e30, clip_norm=0.0, warmup_steps=0)
  with pytest.raises(ValueError, match=r'loss (nan|inf) at step [12]\b'):
    jobs.run(config, str(tmp_path))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'objective': 'seq2seq'}, "'seq2seq'"),
    ({'objective': 'masked'}, 'does not fit a gpt2'),
    ({'model_type': 'roberta'}, 'does not fit a roberta'),
    ({'model_type': 'bert'}, "'bert'"),
    ({'sequence_length': 33}, '33 exceeds the 32'),
    ({'tokenizer': ''}, 'train.init'),
    ({'tokenizer': '/no/tokenizer'}, '/no/tokenizer'),
    ({'schedule': 'linear'}, "'linear'"),
    ({'heads': 3}, '16 is not a multiple of 3'),
  ],
)
def test_bad_settings_are_refused(world, tmp_path, changes, message):
  config = changed(world, **changes)
  if changes.get('model_type') == 'roberta':
    config.train.tokenizer = masked(world).train.tokenizer
  with pytest.raises(ValueError, match=message):
    jobs.run(config, str(tmp_path))
  assert not (tmp_path / 'export').exists()
