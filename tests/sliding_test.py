"""Sliding windows in whole runs, against a loop as Hugging Face's guide has it.

Whatever a run mixes or trains, what it says of the model alone is that.
"""

import json

import numpy as np
import pytest
import torch
import transformers

from tests import tiny
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import documents as documents_lib
from tttnn.datastore import store as store_lib
from tttnn.jobs import report

pytestmark = pytest.mark.usefixtures('compile_fast')
EOT, CONTEXT = 0, 64
changed, rows_of = world_lib.changed, world_lib.rows_of


@torch.no_grad()
def guide(reference, ids, window, stride):
  """Log-likelihood of all ids but the first, each by labels of one window."""
  ids, total, done = torch.tensor([ids]), 0.0, 1
  for begin in range(0, ids.shape[1], stride):
    end = min(begin + window, ids.shape[1])
    if end <= done:
      break
    labels = ids[:, begin:end].clone()
    labels[:, : done - begin] = -100
    loss = reference(ids[:, begin:end], labels=labels).loss
    total -= float(loss) * (end - done)
    done = end
  return total


def run(config, workdir, **changes):
  jobs.run(changed(config, **changes), str(workdir))
  return rows_of(workdir)


@pytest.fixture(scope='module')
def config(world):
  return changed(world, eval__limit=4, eval__protocol='whole')


@pytest.fixture(scope='module')
def oracle(config):
  """(window, stride) -> the log-likelihood of each document."""
  path = config.model.path
  reference = transformers.GPT2LMHeadModel.from_pretrained(path).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  documents = documents_lib.read(config.eval.documents)[:4]
  encoded = [tokenizer(document.text)['input_ids'] for document in documents]
  assert max(map(len, encoded)) > 3 * CONTEXT
  return lambda window, stride: [
    guide(reference, [EOT, *ids], window, stride) for ids in encoded
  ]


@pytest.mark.parametrize(('window', 'stride'), [(0, 16), (48, 47), (33, 5)])
def test_scores_are_those_of_the_guide(
  config, oracle, tmp_path, window, stride
):
  windows = {'eval__window': window, 'eval__stride': stride}
  rows = run(config, tmp_path, method='base', **windows)
  found = [row['log_likelihood'][0] for row in rows]
  np.testing.assert_allclose(
    found, oracle(window or CONTEXT, stride), rtol=0, atol=1e-4
  )
  assert rows[0].get('window', 0) == window
  assert rows[0]['stride'] == stride


def test_rolling_windows_may_be_shorter(config, oracle, tmp_path):
  rows = run(config, tmp_path, method='base', eval__window=16)
  reference = transformers.GPT2LMHeadModel.from_pretrained(config.model.path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.path)
  documents = documents_lib.read(config.eval.documents)
  for row, document in zip(rows, documents, strict=False):
    ids = tokenizer(document.text)['input_ids']
    expected = tiny.rolling_log_likelihood(reference.eval(), ids, 16, EOT)
    assert row['log_likelihood'][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_every_method_scores_so(config, oracle, tmp_path):
  expected = oracle(40, 10)
  config = changed(config, eval__window=40, eval__stride=10)
  config.knn.update({'neighbors': 4, 'lambda': 0.3, 'temperature': 5.0})
  tokens = changed(
    config,
    job='build',
    store__key='ffn_input',
    store__path=f'{tmp_path}/tokens',
    build__block=0,
    store__window=40,
    store__stride=10,
    embedder__path='',
  )
  jobs.run(tokens, str(tmp_path / 'build'))
  manifest = store_lib.open(f'{tmp_path}/tokens').manifest
  assert (manifest.window, manifest.stride) == (40, 10)
  for method in ('knn_lm', 'retomaton', 'ttt', 'interpolation'):
    changes = {'method': method, 'knn__store': f'{tmp_path}/tokens'}
    if method == 'ttt':
      changes |= {'eval__at': '0,3'}
    if method == 'interpolation':
      changes |= {'interpolation__alpha': '0.1'}
    rows = run(config, tmp_path / method, **changes)
    found = np.array([row['log_likelihood'] for row in rows])
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-4)
    assert (found[:, 1] != found[:, 0]).all()
  with pytest.raises(ValueError, match='stride=10, but in_context fills'):
    run(config, tmp_path / 'in_context', method='in_context')


def test_a_run_is_of_one_kind_of_windows(config, tmp_path):
  paths = {}
  for name, changes in {
    'rolling': {},
    'sliding': {'eval__stride': 16},
    'shorter': {'eval__window': 32, 'eval__stride': 16},
  }.items():
    paths[name] = tmp_path / name
    run(config, paths[name], method='base', **changes)
  with pytest.raises(ValueError, match='eval.stride: None there, 16 now'):
    run(config, paths['rolling'], method='base', eval__stride=16)
  for one, other, what in (
    ('rolling', 'sliding', "stride=0, 'S' has eval.stride=16"),
    ('shorter', 'sliding', "window=32, 'S' has eval.window=0"),
  ):
    config.report.inputs = f'{paths[one]},{paths[other]}'
    with pytest.raises(ValueError, match=what.replace('S', str(paths[other]))):
      report.run(config, tmp_path / 'both')
  assert report.load(paths['shorter']).protocol == (
    'whole, windows of 32, stride 16'
  )
  mixed = paths['sliding'] / 'results.jsonl'
  row = json.loads(mixed.read_text().splitlines()[0]) | {'stride': 8}
  with open(mixed, 'a') as file:
    file.write(json.dumps(row) + '\n')
  with pytest.raises(ValueError, match=r"5: .*'whole', 0, 8\) in a file of"):
    report.read_rows(paths['sliding'])
