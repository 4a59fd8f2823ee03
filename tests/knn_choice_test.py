"""What kNN-LM is tuned by, against loops over every setting."""

import glob
import itertools
import json
import math

import numpy as np
import pytest

from configs import compare
from tests import knn_job_test
from tests import tiny
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import documents as documents_lib
from tttnn.jobs import knn_search
from tttnn.methods import knn_tuning

LAMBDAS, TEMPERATURES, KS = (0.05, 0.3, 0.6), (0.5, 5.0, 50.0), (2, 8)
changed, rows_of = world_lib.changed, world_lib.rows_of
timeless = world_lib.timeless


@pytest.fixture(scope='module')
def config(world, tmp_path_factory):
  """Of a run of knn_lm that has settings to choose from."""
  directory = tmp_path_factory.mktemp('tokens')
  config = world_lib.with_tokens(world, directory)
  texts = tiny.documents(3, seed=7) + ['']
  config.eval.validation = tiny.write_jsonl(
    directory / 'validation.jsonl', texts
  )
  config.eval.limit = 4  # Of the scored documents alone.
  config.knn.update({'neighbors': max(KS), 'lambda': 0.2, 'temperature': 2.0})
  return config


@pytest.fixture(scope='module')
def open_config(config):
  lambdas, temperatures, ks = (
    ','.join(map(str, values)) for values in (LAMBDAS, TEMPERATURES, KS)
  )
  return changed(
    config, knn__lambdas=lambdas, knn__temperatures=temperatures, knn__ks=ks
  )


def run(config, workdir, **changes):
  jobs.run(changed(config, **changes), str(workdir))
  return rows_of(workdir)


def settled(config, **values):
  """The plain run of these settings."""
  config = changed(config)
  config.knn.update(values)
  return config


def loop(oracle, texts):
  """(nats of each setting, bytes) of the second parts of texts, by torch."""
  nats, num_bytes = {}, 0
  for number, text in enumerate(texts):
    case = documents_lib.apply_protocol(
      documents_lib.Document(number, '', text),
      oracle.tokenizer,
      protocol='split',
      prefix=knn_job_test.CONTEXT,
    )
    num_bytes += case.num_bytes
    keys, scores, tokens = oracle.read(case.tokens)
    for key, score, token in zip(keys, scores, tokens, strict=True):
      squares = ((oracle.keys - key) ** 2).sum(axis=1)
      order = np.argsort(squares, kind='stable')
      for setting in itertools.product(LAMBDAS, TEMPERATURES, KS):
        lambda_, temperature, k = setting
        nearest = order[:k]
        shares = np.exp(-(squares[nearest] - squares[order[0]]) / temperature)
        p = shares[oracle.values[nearest] == token].sum() / shares.sum()
        mixed = lambda_ * p + (1 - lambda_) * math.exp(score)
        nats[setting] = nats.get(setting, 0) + math.log(mixed)
  return nats, num_bytes


def test_what_is_chosen_is_best_on_validation_by_brute_force(
  config, open_config, tmp_path
):
  workdir = tmp_path / 'open'
  rows = run(open_config, workdir)
  oracle = knn_job_test.Oracle(config)
  with open(config.eval.validation) as file:
    texts = [json.loads(line)['text'] for line in file]
  nats, num_bytes = loop(oracle, texts)
  best = max(nats, key=nats.get)
  found = json.loads((workdir / 'summary.json').read_text())['knn_chosen']
  values = {key: found[key] for key in ('lambda', 'temperature', 'neighbors')}
  assert tuple(values.values()) == best
  assert found['validation']['documents'] == 4
  curve = found['validation']['curve']
  assert (curve['lambdas'], curve['ks']) == ([*LAMBDAS], [*KS])
  bits = np.array(curve['bits_per_byte']).ravel()
  expected = [-nats[s] / num_bytes / math.log(2) for s in sorted(nats)]
  np.testing.assert_allclose(bits, expected, rtol=1e-4)
  # The same in a table, a line a setting, and a picture.
  head, *lines = (workdir / 'knn_sweep.csv').read_text().splitlines()
  assert head == 'lambda,temperature,k,bits_per_byte'
  table = {
    tuple(map(float, line.split(',')[:3])): float(line.split(',')[3])
    for line in lines
  }
  assert [*table] == sorted(nats)
  np.testing.assert_array_equal([*table.values()], bits)
  assert (workdir / 'knn_sweep.png').read_bytes().startswith(b'\x89PNG')
  markdown = (workdir / 'summary.md').read_text()
  assert f'| {best[0]:g} | ' in markdown
  assert 'Of 4 validation documents. Chosen: lambda ' in markdown
  # The scored documents are those of a plain run.
  assert timeless(rows) == timeless(
    run(settled(config, **values), tmp_path / 'plain')
  )
  assert rows[0]['at'] == [0, values['neighbors']]
  # Again, with one lambda to choose from; by an automaton that searches.
  one = changed(
    settled(config, **values),
    knn__lambdas=str(values['lambda']),
    knn__cache=str(tmp_path / 'cache'),
  )
  assert timeless(run(one, tmp_path / 'one')) == timeless(rows)
  walked = run(
    open_config,
    tmp_path / 'walked',
    method='retomaton',
    retomaton__min_knns=math.inf,
    retomaton__max_knns=0,
  )
  for row, expected in zip(walked, rows, strict=True):
    assert row['log_likelihood'] == pytest.approx(
      expected['log_likelihood'], rel=1e-6
    )


def parts(directory):
  """What is kept of each document, by its tokens."""
  found = map(knn_tuning.Cache.load, glob.glob(f'{directory}/*.npz'))
  return {tuple(part.targets_T.tolist()): part for part in found}


def token_loop(part, temperature, k):
  """(distance of the nearest, p of the model, p_kNN) of each token."""
  for t, token in enumerate(part.targets_T):
    distances = [float(d) for d in part.distances_Txk[t, :k]]
    shares = [
      math.exp((distances[0] ** 2 - d**2) / temperature) for d in distances
    ]
    hits = [v == token for v in part.values_Txk[t, :k]]
    p = sum(s for s, hit in zip(shares, hits, strict=True) if hit)
    yield distances[0], math.exp(part.log_p_lm_T[t]), p / sum(shares)


def test_each_bin_has_its_lambda_by_a_plain_loop(config, tmp_path):
  workdir, cache = tmp_path / 'open', str(tmp_path / 'cache')
  lambdas = [n / 20 for n in range(1, 20)]
  rows = run(
    config,
    workdir,
    knn__cache=cache,
    knn__lambdas=','.join(map(str, lambdas)),
    knn__bins=4,
  )
  (directory,) = glob.glob(f'{cache}/validation/knn-*')
  tokens = [
    token
    for part in parts(directory).values()
    for token in token_loop(part, 2.0, 8)
  ]
  ordered = sorted(distance for distance, _, _ in tokens)
  edges = [
    ordered[math.ceil(share * (len(ordered) - 1))]
    for share in (0.25, 0.5, 0.75)
  ]
  assert len(set(edges)) == 3

  def bin_of(distance):
    return sum(distance >= edge for edge in edges)

  best = []
  for number in range(4):
    inside = [t for t in tokens if bin_of(t[0]) == number]
    totals = {
      lambda_: sum(
        math.log((1 - lambda_) * lm + lambda_ * p) for _, lm, p in inside
      )
      for lambda_ in lambdas
    }
    best.append(max(totals, key=totals.get))
  assert len(set(best)) > 1
  summary = json.loads((workdir / 'summary.json').read_text())
  text = summary['knn_chosen']['lambda_by_distance']
  found = [tuple(map(float, pair.split(':'))) for pair in text.split(',')]
  assert found == list(zip([-math.inf, *edges], best, strict=True))
  validation = summary['knn_chosen']['validation']
  assert validation['bins_bits_per_byte'] < validation['bits_per_byte']
  assert f'| {best[-1]:g} |' in (workdir / 'summary.md').read_text()

  kept = sorted(
    sum(
      math.log((1 - best[bin_of(d)]) * lm + best[bin_of(d)] * p)
      for d, lm, p in token_loop(part, 2.0, 8)
    )
    for part in parts(cache).values()
  )
  assert sorted(row['log_likelihood'][1] for row in rows) == pytest.approx(kept)
  # Such bins are settings, for RetoMaton too.
  given = {'knn__lambda_by_distance': text}
  assert timeless(run(config, tmp_path / 'given', **given)) == timeless(rows)
  walked = run(
    config,
    tmp_path / 'walked',
    method='retomaton',
    retomaton__min_knns=math.inf,
    retomaton__max_knns=0,
    **given,
  )
  for row, expected in zip(walked, rows, strict=True):
    assert row['log_likelihood'] == pytest.approx(
      expected['log_likelihood'], rel=1e-6
    )


def test_a_choice_that_broke_off_goes_on(open_config, tmp_path, monkeypatch):
  searched = []
  search = knn_search.Neighbors.__call__

  def search_twice(self, keys_QxD, own_Q=None):
    if len(searched) == 2:
      raise RuntimeError('broken off')
    searched.append(len(keys_QxD))
    return search(self, keys_QxD, own_Q)

  with monkeypatch.context() as patch:
    patch.setattr(knn_search.Neighbors, '__call__', search_twice)
    with pytest.raises(RuntimeError, match='broken off'):
      run(open_config, tmp_path)
  assert len(glob.glob(f'{tmp_path}/validation/knn-*/*.npz')) == 2

  def search_and_count(self, keys_QxD, own_Q=None):
    searched.append(len(keys_QxD))
    return search(self, keys_QxD, own_Q)

  monkeypatch.setattr(knn_search.Neighbors, '__call__', search_and_count)
  run(open_config, tmp_path)
  assert len(searched) == 4 + 4  # Validation documents, and those scored.
  summary = (tmp_path / 'summary.json').read_bytes()
  # Again, all is there.
  run(open_config, tmp_path)
  assert len(searched) == 8
  assert (tmp_path / 'summary.json').read_bytes() == summary


def test_a_comparison_with_tokens(world, config, tmp_path):
  together = compare.get_config('knn_lm')
  for section in ('model', 'embedder', 'store'):
    together[section] = world[section]
  together.knn.store = config.store.path
  together.eval.documents = config.eval.documents
  together.eval.validation = config.eval.validation
  together.eval.limit = 4
  together.compare.validation_limit = 2
  together.compare.names = 'base,knn_lm,retomaton'
  together.knn.neighbors = 8
  together.knn.temperatures = '0.5,5'
  workdir = tmp_path / 'compared'
  jobs.run(together, str(workdir))
  result = json.loads((workdir / 'compare.json').read_text())
  chosen = result['chosen']
  assert set(chosen) == {'knn_lm', 'retomaton'}
  # One search of the validation documents serves both.
  assert chosen['knn_lm'] == chosen['retomaton']
  assert chosen['knn_lm']['validation']['documents'] == 2
  (directory,) = glob.glob(f'{workdir}/validation/knn-*')
  assert len(glob.glob(f'{directory}/*.npz')) == 2
  assert not (workdir / 'neighbors').exists()
  values = {
    key: chosen['knn_lm'][key] for key in ('lambda', 'temperature', 'neighbors')
  }
  for method in ('knn_lm', 'retomaton'):
    alone = settled(config, **values)
    alone.method = method
    expected = run(alone, tmp_path / method)
    assert timeless(rows_of(workdir / 'runs' / method)) == timeless(expected)
  points = {point['label']: point for point in result['points']}
  assert points['knn_lm']['count'] == points['retomaton']['count'] == 8
  for name in ('knn_lm', 'retomaton'):
    rows = rows_of(workdir / 'runs' / name)
    assert points[name]['seconds']['retrieve'] == pytest.approx(
      sum(row['seconds']['retrieve'] for row in rows) / len(rows)
    )
    assert points[name]['seconds']['retrieve'] > 0
  markdown = (workdir / 'compare.md').read_text().replace('\\_', '_')
  assert f'| knn_lm | lambda {values["lambda"]:g}, ' in markdown
  assert 'entries for knn_lm, retomaton' in markdown
  assert (workdir / 'frontier.png').read_bytes().startswith(b'\x89PNG')


def test_a_comparison_without_tokens_is_as_before():
  assert (
    not {'knn_lm', 'retomaton'} & dict(compare.get_config().compare.runs).keys()
  )
  with pytest.raises(ValueError, match=r'compare.py:x: the only variant'):
    compare.get_config('x')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'eval__validation': ''}, 'need eval.validation'),
    ({'knn__lambdas': '', 'knn__bins': 2}, 'bins=2 choose among'),
    ({'knn__lambdas': '0.1,1.5'}, r'knn.lambda=1.5 is not from 0 to 1'),
    ({'knn__temperatures': '1,x'}, "temperatures='1,x' is no list of numbers"),
    ({'knn__ks': '2.5'}, "ks='2.5' is no list of numbers"),
    ({'knn__ks': '2,9'}, 'but knn.neighbors=8 are searched'),
    ({'knn__distances': 'exact'}, 'but with knn.distances=exact'),
    ({'knn__lambda_by_distance': '-inf:0.1'}, 'is chosen already'),
  ],
)
def test_bad_input_is_refused(open_config, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(open_config, tmp_path, **changes)
