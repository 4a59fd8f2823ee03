"""kNN-LM and RetoMaton as whole runs, against brute force on torch's states."""

import glob
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from configs import base
from tests import world as world_lib
from tttnn import jobs
from tttnn import settings
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.jobs import knn
from tttnn.jobs import knn_search
from tttnn.methods import knn_tuning
from tttnn.methods import pool as pool_lib
from tttnn.scoring import rolling

CONTEXT, EOT = 64, 0
K, LAMBDA, TEMPERATURE = 8, 0.3, 5.0
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
changed, rows_of = world_lib.changed, world_lib.rows_of
timeless = world_lib.timeless


@pytest.fixture(scope='module')
def config(world, tmp_path_factory):
  """Of a run of knn_lm over a store of tokens."""
  config = world_lib.with_tokens(world, tmp_path_factory.mktemp('tokens'))
  config.knn.update(
    {'neighbors': K, 'lambda': LAMBDA, 'temperature': TEMPERATURE}
  )
  return config


@pytest.fixture(scope='module')
def oracle(config):
  return Oracle(config)


class Oracle:
  """A kNN-LM without an index: all keys and all distances, in float64."""

  def __init__(self, config):
    path = config.model.path
    self.model = transformers.GPT2LMHeadModel.from_pretrained(
      path, attn_implementation='eager'
    ).eval()
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    self.states = []
    self.model.transformer.h[-1].mlp.register_forward_pre_hook(
      lambda module, inputs: self.states.append(inputs[0][0])
    )
    corpus = jsonl.read(jsonl.expand(config.corpus.train))
    keys, values = [], []
    for text in corpus.iter_texts():
      of_text, _, tokens = self.read(self.tokenizer(text)['input_ids'])
      keys.append(np.float16(of_text))
      values += tokens
    self.keys = np.concatenate(keys).astype(np.float64)
    self.values = np.array(values)

  @torch.no_grad()
  def read(self, tokens):
    """(keys, log-likelihoods, tokens)."""
    keys, scores = [np.zeros((0, 32))], [np.zeros(0)]
    for window in rolling.windows(tokens, CONTEXT, EOT):
      self.states.clear()
      logits = self.model(torch.tensor([window.inputs])).logits[0].double()
      log_p = torch.log_softmax(logits, dim=-1)
      place = slice(len(window.inputs) - len(window.targets), None)
      keys.append(self.states[0][place].numpy())
      scores.append(
        log_p[place].gather(1, torch.tensor(window.targets)[:, None])[:, 0]
      )
    return np.concatenate(keys), np.concatenate(scores), list(tokens)

  def score(self, tokens, drop=None):
    """(model's, kNN-LM's) log-likelihood; `drop`: the first own entry."""
    keys, scores, tokens = self.read(tokens)
    total = 0.0
    for t, (key, score, token) in enumerate(
      zip(keys, scores, tokens, strict=True)
    ):
      squares = ((self.keys - key) ** 2).sum(axis=1)
      if drop is not None:
        squares[drop + t] = np.inf
      nearest = np.argsort(squares, kind='stable')[:K]
      shares = np.exp(-(squares[nearest] - squares[nearest[0]]) / TEMPERATURE)
      hit = self.values[nearest] == token
      p = LAMBDA * shares[hit].sum() / shares.sum()
      total += math.log(p + (1 - LAMBDA) * math.exp(score))
    return float(scores.sum()), total


def run(config, workdir, **changes):
  jobs.run(changed(config, **changes), str(workdir))
  return rows_of(workdir)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  return run(config, tmp_path_factory.mktemp('finished'))


def test_rows_equal_brute_force(config, oracle, finished):
  documents = documents_lib.read(config.eval.documents)
  for row, document in zip(finished, documents, strict=True):
    case = documents_lib.apply_protocol(
      document, oracle.tokenizer, protocol='split', prefix=CONTEXT
    )
    assert row['at'] == [0, K]
    assert row['log_likelihood'] == pytest.approx(
      oracle.score(case.tokens), rel=1e-4, abs=1e-4
    )
  assert any(
    row['log_likelihood'][1] > row['log_likelihood'][0] for row in finished
  )


def test_own_entries_are_dropped_by_id(config, oracle, tmp_path):
  # Documents that are in the store, each found at distance 0 but for that.
  path = tmp_path / 'lines.jsonl'
  lines = []
  for name in ('train-0.jsonl', 'train-1.jsonl'):
    directory = config.corpus.train.rpartition('/')[0]
    with open(f'{directory}/{name}') as file:
      lines += file.readlines()
  path.write_text(''.join(lines[:4]))
  changes = {'eval__documents': str(path), 'eval__protocol': 'whole'}
  kept = run(config, tmp_path / 'kept', **changes)
  dropped = run(config, tmp_path / 'dropped', knn__drop_self=True, **changes)
  begin = 0
  for row, with_self, line in zip(dropped, kept, lines[:4], strict=True):
    tokens = oracle.tokenizer(json.loads(line)['text'])['input_ids']
    expected = oracle.score(tokens, drop=begin)
    assert row['log_likelihood'] == pytest.approx(expected, rel=1e-4)
    assert with_self['log_likelihood'][1] > row['log_likelihood'][1]
    begin += len(tokens)
  with pytest.raises(ValueError, match='document 0 is not line 0'):
    run(config, tmp_path / 'other', knn__drop_self=True)


def test_lambda_0_is_the_model(config, finished, tmp_path):
  config = changed(config)
  config.knn['lambda'] = 0.0
  base = run(config, tmp_path / 'base', method='base')
  for row, alone in zip(run(config, tmp_path / 'knn'), base, strict=True):
    assert row['log_likelihood'][0] == row['log_likelihood'][1]
    assert row['log_likelihood'][0] == pytest.approx(
      alone['log_likelihood'][0], rel=1e-6
    )


def test_padding_changes_no_number(config, finished, tmp_path, monkeypatch):
  monkeypatch.setattr(pool_lib, '_LARGE', 0)  # No model is too small for it.
  padded = []

  def pad(window, size, pad=knn.rolling.pad):
    padded.append(size)
    return pad(window, size)

  monkeypatch.setattr(knn.rolling, 'pad', pad)
  for row, expected in zip(run(config, tmp_path), finished, strict=True):
    assert row['log_likelihood'] == pytest.approx(
      expected['log_likelihood'], rel=1e-5
    )
  assert min(padded) < CONTEXT == max(padded)


def test_what_was_found_serves_other_settings(config, tmp_path):
  cache = str(tmp_path / 'found')
  run(config, tmp_path / 'first', knn__cache=cache)
  other = changed(config)
  other.knn.update({'lambda': 0.6, 'temperature': 2.0, 'neighbors': 4})
  expected = run(other, tmp_path / 'searched')
  found = run(other, tmp_path / 'cached', knn__cache=cache, store__address='/x')
  for one, row in zip(found, expected, strict=True):
    assert one['log_likelihood'] == pytest.approx(
      row['log_likelihood'], rel=1e-9
    )
  total = sum(
    knn_tuning.sweep(knn_tuning.Cache.load(path), [0.6], [2.0], [4]).item()
    for path in glob.glob(f'{cache}/*.npz')
  )
  assert total == pytest.approx(
    sum(row['log_likelihood'][1] for row in expected), rel=1e-9
  )
  with pytest.raises(ValueError, match='neighbors=9, but knn.cache'):
    run(config, tmp_path / 'more', knn__cache=cache, knn__neighbors=9)
  with pytest.raises(ValueError, match='of another run .*protocol'):
    run(config, tmp_path / 'x', knn__cache=cache, eval__protocol='whole')


# The fifth document is finished when it is killed.
_KILLED = """
import json, os, signal, sys
from configs import base
from tttnn import jobs
from tttnn import settings
from tttnn.scoring import results

config = base.get_config()
for key, value in json.loads(sys.argv[1]).items():
  settings.override(config, key, value)
append = results.Results.append

def append_and_die(self, row):
  append(self, row)
  if len(self.rows) == 5:
    os.kill(os.getpid(), signal.SIGKILL)

results.Results.append = append_and_die
jobs.run(config, sys.argv[2])
"""


def test_a_killed_run_leaves_what_it_found(
  config, finished, tmp_path, monkeypatch
):
  cached = changed(config, knn__cache=str(tmp_path / 'found'))
  usual = settings.flatten(base.get_config())
  changes = {
    key: value
    for key, value in settings.flatten(cached).items()
    if value != usual[key]
  }
  workdir = tmp_path / 'killed'
  command = [sys.executable, '-c', _KILLED, json.dumps(changes), str(workdir)]
  done = subprocess.run(
    command, stderr=subprocess.DEVNULL, cwd=ROOT, check=False
  )
  assert done.returncode == -signal.SIGKILL
  assert len(rows_of(workdir)) == 5
  searched = []
  search = knn_search.Neighbors.__call__

  def search_and_count(self, keys_QxD, own_Q=None):
    searched.append(len(keys_QxD))
    return search(self, keys_QxD, own_Q)

  monkeypatch.setattr(knn_search.Neighbors, '__call__', search_and_count)
  assert timeless(run(cached, workdir)) == timeless(finished)
  assert searched == [row['num_tokens'] for row in finished[5:]]
  # Then all are there, and nothing is searched.
  again = run(cached, tmp_path / 'again')
  assert timeless(again) == timeless(finished)
  assert len(searched) == len(finished) - 5


def test_an_automaton_that_always_searches_is_knn_lm(
  config, finished, tmp_path
):
  found = run(
    config,
    tmp_path,
    method='retomaton',
    retomaton__min_knns=math.inf,
    retomaton__max_knns=0,
  )
  for row, expected in zip(found, finished, strict=True):
    assert row['searches'] == row['num_tokens']
    assert row['log_likelihood'] == pytest.approx(
      expected['log_likelihood'], rel=1e-6
    )


@pytest.mark.parametrize('clusters', [0, 30])
def test_an_automaton_saves_searches(config, finished, tmp_path, clusters):
  found = run(
    config,
    tmp_path,
    method='retomaton',
    retomaton__max_knns=64,
    retomaton__clusters=clusters,
  )
  searches = sum(row['searches'] for row in found)
  assert 0 < searches < 0.9 * sum(row['num_tokens'] for row in found)
  base, adapted = (
    sum(row['log_likelihood'][place] for row in found) for place in (0, 1)
  )
  assert adapted > base
  again = run(
    config,
    tmp_path / 'again',  # By the automaton that is kept beside the store.
    method='retomaton',
    retomaton__max_knns=64,
    retomaton__clusters=clusters,
  )
  assert timeless(again) == timeless(found)


def test_a_wider_search_makes_up_for_a_poor_index(config, finished, tmp_path):
  spec = 'IVF16,PQ8x4;nprobe=16'
  jobs.run(
    changed(config, job='build', store__index=spec, store__min_recall=0.3),
    str(tmp_path / 'build'),
  )
  exact = np.array([row['log_likelihood'][1] for row in finished])
  errors = []
  for refine in (1, 32):
    rows = run(
      config, tmp_path / str(refine), store__index=spec, knn__refine=refine
    )
    found = np.array([row['log_likelihood'][1] for row in rows])
    errors.append(np.abs(found - exact).sum())
  assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'store__path': ''}, 'needs knn.store or store.path'),
    ({'knn__refine': 0}, 'refine=0 is not 1 or more'),
    ({'knn__neighbors': 10**6}, 'neighbors=1000000 asks for 1000000 entries'),
    (
      {'store__search': 'cluster'},
      "search='cluster' is not one of faiss, device",
    ),
    (
      {'method': 'retomaton', 'knn__drop_self': True},
      'drop_self goes with method=knn_lm',
    ),
  ],
)
def test_bad_input_is_refused(config, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(config, tmp_path, **changes)


def test_a_store_of_documents_is_refused(world, config, tmp_path):
  with pytest.raises(ValueError, match='is a store of documents'):
    run(config, tmp_path, knn__store=world.store.path)
