"""Two processes of four devices each train what one does, and end together."""

import json
import re
import signal

import numpy as np
import pytest
from safetensors import numpy as safetensors

from configs import base
from tests import distributed_test
from tests import preemption_test
from tests import tiny
from tttnn import jobs
from tttnn import settings
from tttnn.corpus import tokenizer as tokenizer_lib

pytestmark = pytest.mark.slow
FILES = 4


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  directory = tmp_path_factory.mktemp('world')
  texts = tiny.documents(100)
  for kind in ('gpt2', 'roberta'):
    tokenizer_lib.train(texts, f'{directory}/{kind}', vocab_size=288, kind=kind)
  for number in range(FILES):
    tiny.write_jsonl(
      directory / f'{number}.train.jsonl', texts[number:80:FILES]
    )
  config = base.get_config()
  config.job = 'train'
  config.corpus.train = f'{directory}/*.train.jsonl'
  config.corpus.validation = tiny.write_jsonl(directory / 'v.jsonl', texts[80:])
  config.train.update(
    layers=1,
    width=16,
    heads=2,
    context=32,
    tokenizer=f'{directory}/gpt2',
    steps=6,
    batch_size=8,
    schedule='constant',
    warmup_steps=2,
    log_every=1,
    eval_every=3,
    eval_batches=2,
    checkpoint_every=2,
    keep=100,
  )
  return config


def processes(config, workdir):
  return distributed_test.Processes(
    'fit', [str(workdir), distributed_test.overrides(config)]
  )


def ended(pair, code=0):
  """What both said, which end with that code."""
  said = []
  for number in range(2):
    found, text = pair.end(number, 150)
    assert found == code, text
    said.append(text)
  return said


def assert_same(found, wanted):
  """Parameters and losses of two work directories."""
  ours, theirs = (
    safetensors.load_file(f'{path}/export/model.safetensors')
    for path in (found, wanted)
  )
  assert ours.keys() == theirs.keys()
  for name, x in theirs.items():
    # Sums over devices round otherwise, which Adam makes larger where a
    # gradient is nearly 0; a step moves a parameter by 1e-3.
    np.testing.assert_allclose(ours[name], x, rtol=0, atol=2e-5, err_msg=name)
  lines = [preemption_test.records(path) for path in (found, wanted)]
  for name in ('loss', 'validation_loss'):
    losses = [[r[name] for r in of if name in r] for of in lines]
    assert losses[0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize('objective', ['causal', 'masked'])
def test_two_processes_train_what_one_does(world, tmp_path, objective):
  config = world.copy_and_resolve_references()
  if objective == 'masked':
    config.train.update(
      objective='masked',
      model_type='roberta',
      masking='always',
      tokenizer=config.train.tokenizer.replace('gpt2', 'roberta'),
    )
  alone, shared = tmp_path / 'alone', tmp_path / 'shared'
  jobs.run(config, str(alone))
  config.mesh.update(data=0, fsdp=True)
  with processes(config, shared) as pair:
    ended(pair)
  assert_same(shared, alone)
  # Each has tokenized its own files, and read half of the rows.
  seen = [
    json.loads((shared / f'seen.{number}.json').read_text())
    for number in range(2)
  ]
  training = [
    {path for path in of['files'] if path.endswith('.train.jsonl')}
    for of in seen
  ]
  assert [len(files) for files in training] == [FILES // 2] * 2
  assert not training[0] & training[1]
  assert [of['rows'] for of in seen] == [4, 4]
  summaries = [
    json.loads((path / 'summary.json').read_text()) for path in (alone, shared)
  ]
  assert summaries[0] == {
    name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
    for name, value in summaries[1].items()
  }


def test_stopped_killed_and_resumed_by_one_process(world, tmp_path):
  config = world.copy_and_resolve_references()
  shared = tmp_path / 'shared'
  config.mesh.update(data=0, fsdp=True)
  config.train.steps = 10**6
  with processes(config, shared) as pair:
    distributed_test.wait_for_rows(shared / 'history.jsonl', 4)
    pair[1].send_signal(signal.SIGTERM)
    said = ended(pair)
  saved = int(re.search(r'train: saved at step (\d+) of', said[0])[1])
  lines = len((shared / 'history.jsonl').read_text().splitlines())
  with processes(config, shared) as pair:
    distributed_test.wait_for_rows(shared / 'history.jsonl', lines + 4)
    pair[1].send_signal(signal.SIGKILL)
    code, text = pair.end(0, distributed_test.BOUND)
  assert code == 1
  assert f'train: resumes at step {saved}' in text
  named = rf'^error: process 1 of 2 \(.+, pid {pair[1].pid}\) died$'
  assert re.search(named, text, re.MULTILINE), text
  last = preemption_test.records(shared)[-1]['step']
  # One process goes on, over other devices, and ends where one would have.
  config.train.steps = last + 2
  config.mesh.update(data=2, model=2, fsdp=False)
  jobs.run(config, str(shared))
  alone = tmp_path / 'alone'
  config.mesh.update(data=1, model=1)
  jobs.run(config, str(alone))
  ours, theirs = (
    {r['step']: r['loss'] for r in preemption_test.records(path) if 'loss' in r}
    for path in (shared, alone)
  )
  assert ours.keys() == theirs.keys()
  for step, loss in theirs.items():
    assert ours[step] == pytest.approx(loss, rel=1e-3), step


def test_pairs_and_devices_that_are_left_out_are_refused(world, tmp_path):
  config = world.copy_and_resolve_references()
  for name, changes, message in (
    ('mesh', {}, 'leaves out some of the 8 devices of 2 processes'),
    ('pairs', {'train.objective': 'pairs'}, "='pairs' is trained by one"),
  ):
    for key, value in changes.items():
      settings.override(config, key, value)
    (tmp_path / name).mkdir()
    with processes(config, tmp_path / name) as pair:
      said = ended(pair, 1)
    assert any(message in text for text in said), said
