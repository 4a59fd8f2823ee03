"""Each kind of bad input: one clear line, nothing half-written."""

import json
import os
import subprocess
import sys

import pytest

from configs import base
from tests import tiny
from tttnn import jobs
from tttnn.corpus import tokenizer as tokenizer_lib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  return tiny.write_models(str(tmp_path_factory.mktemp('models')))


BAD_FILES = {
  'malformed': (b'{"text": "a"}\n{"text": \n', r':2: malformed JSON'),
  'no text': (b'{"text": "a"}\n{"txt": "b"}\n', r':2: no "text"'),
  'not a string': (b'{"text": 5}\n', r':1: "text" must be a string'),
  'not an object': (b'["text"]\n', r':1: a JSON object'),
  'utf-8': (b'{"text": "a"}\n{"text": "\xff"}\n', r':2: invalid UTF-8'),
  'blank line': (b'{"text": "a"}\n\n', r':2: empty line'),
  'empty': (b'', r'is empty: .*bad.jsonl'),
}


@pytest.mark.parametrize('kind', BAD_FILES)
@pytest.mark.parametrize('job', ['train', 'build', 'evaluate'])
def test_bad_corpora_are_named_by_file_and_line(models, tmp_path, job, kind):
  data, message = BAD_FILES[kind]
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(data)
  config = base.get_config()
  config.job = job
  config.method = 'base'
  config.model.path, config.embedder.path = models
  config.corpus.train = config.eval.documents = str(path)
  config.train.tokenizer = models[0]
  config.store.path = str(tmp_path / 'store')
  workdir = tmp_path / 'w'
  if job == 'evaluate' and kind == 'empty':
    message = r'bad.jsonl'
  with pytest.raises(ValueError, match=message):
    jobs.run(config, str(workdir))
  assert not (tmp_path / 'store' / 'manifest.json').exists()
  left = [p for p in workdir.rglob('*') if p.is_file() and p.stat().st_size]
  if (job, kind) == ('train', 'empty'):  # Its tokens are whole: there are none.
    left = [p for p in left if p.suffix != '.tokens']
  assert {p.name for p in left} <= {'config.json'}


@pytest.mark.parametrize('job', ['train', 'build', 'evaluate'])
def test_missing_files_are_named(models, tmp_path, job):
  config = base.get_config()
  config.job = job
  config.model.path, config.embedder.path = models
  config.corpus.train = config.eval.documents = str(tmp_path / 'none.jsonl')
  config.train.tokenizer = models[0]
  with pytest.raises(ValueError, match='none.jsonl'):
    jobs.run(config, str(tmp_path / 'w'))


def test_a_broken_checkpoint_names_its_tensors(models, tmp_path):
  config = base.get_config()
  config.job = 'evaluate'
  config.method = 'base'
  config.eval.documents = tiny.write_jsonl(tmp_path / 'a.jsonl', ['text'])
  broken = tmp_path / 'broken'
  tokenizer_lib.save(tokenizer_lib.load(models[0]), str(broken))
  with open(os.path.join(models[0], 'config.json')) as file:
    about = json.load(file)
  about['n_layer'] = 3
  (broken / 'config.json').write_text(json.dumps(about))
  weights = os.path.join(models[0], 'model.safetensors')
  os.symlink(weights, broken / 'model.safetensors')
  config.model.path = str(broken)
  with pytest.raises(ValueError, match=r'missing.*h\.2\.'):
    jobs.run(config, str(tmp_path / 'w'))


def test_a_full_disk_is_one_line_and_a_failed_exit(models, tmp_path):
  workdir = tmp_path / 'w'
  workdir.mkdir()
  (workdir / 'results.jsonl').symlink_to('/dev/full')
  documents = tiny.write_jsonl(tmp_path / 'a.jsonl', ['some text'])
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'tttnn.main',
      '--config=configs/evaluate.py:base',
      f'--workdir={workdir}',
      f'--config.model.path={models[0]}',
      f'--config.eval.documents={documents}',
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 1
  assert 'No space left on device' in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
  assert not (workdir / 'summary.json').exists()
