"""How texts go on by a store of tokens, against brute force by torch."""

import json

import numpy as np
import pytest
import torch

from tests import knn_job_test
from tests import tiny
from tests import world as world_lib
from tttnn import jobs
from tttnn.datastore import client
from tttnn.methods import knn_lm

K, LAMBDA, TEMPERATURE = 40, 0.3, 5.0
changed = world_lib.changed


@pytest.fixture(scope='module')
def config(world, tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokens')
  config = changed(
    world,
    job='build',
    store__key='ffn_input',
    store__path=f'{directory}/store',
    build__block=0,
    embedder__path='',
  )
  jobs.run(config, str(directory / 'build'))
  config = changed(
    config, job='query', retrieval__neighbors=5, query__context=4
  )
  config.knn.update(
    {'neighbors': K, 'lambda': LAMBDA, 'temperature': TEMPERATURE}
  )
  return config


@pytest.fixture(scope='module')
def oracle(config):
  return knn_job_test.Oracle(config)


@pytest.fixture(scope='module')
def texts(oracle):
  """The store's first tokens, none, and more than the model reads."""
  begin = oracle.tokenizer.decode(oracle.values[:20])
  assert oracle.tokenizer(begin)['input_ids'] == oracle.values[:20].tolist()
  return [begin, '', 'some other words ' * 40]


def ask(config, tmp_path, texts, **changes):
  given, output = tmp_path / 'texts.jsonl', tmp_path / 'found.jsonl'
  given.write_text(
    ''.join(
      json.dumps({'text': text, 'doc_id': text[:9]}) + '\n' for text in texts
    )
  )
  changes = {'query__input': str(given), 'query__output': str(output)} | changes
  jobs.run(changed(config, **changes), str(tmp_path / 'w'))
  return [json.loads(line) for line in output.read_text().splitlines()]


def test_what_follows_equals_brute_force(config, oracle, texts, tmp_path):
  tokenizer = oracle.tokenizer
  found = ask(config, tmp_path, texts)
  for line, text in zip(found, texts, strict=True):
    ids = tokenizer(text)['input_ids']
    assert line['doc_id'] == text[:9]
    oracle.states.clear()
    with torch.no_grad():
      inputs = torch.tensor([[0, *ids][-knn_job_test.CONTEXT :]])
      logits = oracle.model(inputs).logits[0, -1].double()
    p_lm = torch.softmax(logits, dim=-1).numpy()
    key = oracle.states[0][-1].numpy()
    squares = ((oracle.keys - key) ** 2).sum(axis=1)
    nearest = np.argsort(squares, kind='stable')[:K]
    shares = np.exp(-squares[nearest] / TEMPERATURE)
    shares /= shares.sum()
    p_knn = np.zeros(len(p_lm))
    for entry, share in zip(nearest, shares, strict=True):
      p_knn[oracle.values[entry]] += share
    p = LAMBDA * p_knn + (1 - LAMBDA) * p_lm
    assert len(line['neighbors']) == 5
    for entry, neighbor in enumerate(line['neighbors']):
      id_ = neighbor['id']
      assert squares[id_] == pytest.approx(
        squares[nearest[entry]], rel=1e-3, abs=1e-3
      )
      assert neighbor['distance'] == pytest.approx(
        np.sqrt(squares[id_]), rel=1e-3, abs=2e-2
      )
      assert neighbor['share'] == pytest.approx(shares[entry], rel=2e-3)
      assert neighbor['token'] == tokenizer.decode([oracle.values[id_]])
    assert len(line['next']) == 10
    for token in line['next']:
      id_ = token['id']
      assert token['token'] == tokenizer.decode([id_])
      assert token['p_lm'] == pytest.approx(p_lm[id_], rel=1e-3)
      assert token['p_knn'] == pytest.approx(p_knn[id_], rel=2e-3, abs=1e-9)
      assert token['p'] == pytest.approx(p[id_], rel=2e-3)
    expected = np.sort(p)[::-1][:10]
    assert [t['p'] for t in line['next']] == pytest.approx(expected, rel=2e-3)


def test_contexts_are_what_stands_before(config, oracle, texts, tmp_path):
  (found, start, _) = ask(config, tmp_path, texts)
  nearest = found['neighbors'][0]
  assert nearest['id'] == 20
  assert nearest['distance'] < 0.1
  assert nearest['context'] == oracle.tokenizer.decode(oracle.values[16:20])
  assert all(entry['context'] == '' for entry in start['neighbors'])


def test_tables_show_it_too(config, texts, tmp_path, capsys):
  found = ask(config, tmp_path, texts)[0]
  capsys.readouterr()
  jobs.run(changed(config, query__text=texts[0]), str(tmp_path / 'table'))
  shown = capsys.readouterr().out
  assert f'doc_id 0: {K} neighbours, temperature 5, lambda 0.3\n' in shown
  lines = shown.splitlines()
  (head,) = (i for i, line in enumerate(lines) if line.startswith('rank'))
  query, *entries = lines[head + 1 : head + 7]
  assert query.endswith(' | ?')
  place = query.index(' | ')
  for entry, line in zip(found['neighbors'], entries, strict=True):
    assert line[:place].endswith(entry['context'])
    assert line[place:] == f" | '{entry['token']}'"
    rank, distance, share, id_ = line.split()[:4]
    assert int(id_) == entry['id']
    assert float(distance) == pytest.approx(entry['distance'], abs=1e-4)
    assert float(share) == pytest.approx(entry['share'], abs=1e-4)
  for token, line in zip(found['next'], lines[head + 8 :], strict=False):
    p_knn, p_lm, p = map(float, line.split()[:3])
    assert p == pytest.approx(token['p'], abs=1e-4)
    assert (p_knn, p_lm) == pytest.approx(
      (token['p_knn'], token['p_lm']), abs=1e-4
    )


def test_a_server_of_tokens_is_used_shown_and_stopped(
  config, texts, tmp_path, capsys
):
  address = str(tmp_path / 'socket')
  alone = ask(config, tmp_path, texts)
  with client.start(config.store.path, address, threads=1):
    assert ask(config, tmp_path, texts, store__address=address) == alone
    config = changed(config, store__address=address)
    jobs.run(changed(config, query__action='status'), str(tmp_path / 'w'))
    shown = capsys.readouterr().out
    assert f'server at {address}: up' in shown and 'tokens' in shown
    jobs.run(changed(config, query__action='shutdown'), str(tmp_path / 'w'))
    assert f'server at {address}: shut down' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'query__context': 0}, 'query.context=0 is not 1 or more'),
    ({'retrieval__neighbors': 41}, 'neighbors=41, .* to knn.neighbors=40'),
    ({'model__path': ''}, 'model.path is empty'),
    ({'store__search': 'cluster'}, "search='cluster' is not one of"),
    ({'knn__distances': 'all'}, "distances='all' is not one of refine"),
  ],
)
def test_bad_input_is_refused(config, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(changed(config, query__text='a', **changes), str(tmp_path))


def test_another_model_is_refused(config, tmp_path):
  lm, _ = tiny.write_models(str(tmp_path))
  path = f'{lm}/config.json'
  with open(path) as file:
    fields = json.load(file)
  with open(path, 'w') as file:
    json.dump(fields | {'layer_norm_epsilon': 1e-3}, file)
  with pytest.raises(ValueError, match='was built with model'):
    jobs.run(
      changed(config, query__text='a', model__path=lm), str(tmp_path / 'w')
    )


@pytest.mark.parametrize('metric', ['l2', 'ip'])
def test_shares_add_up_to_p_knn(metric):
  rng = np.random.default_rng(0)
  distances = np.sort(rng.normal(size=(6, 9), loc=200, scale=4))
  values = rng.integers(0, 3, (6, 9))
  values[2, 4:] = -1
  distances[3, 7:] = np.inf
  values[5] = -1
  found = knn_lm.shares(distances, values, metric=metric, temperature=3.0)
  assert found.sum(axis=1) == pytest.approx([1, 1, 1, 1, 1, 0])
  for token in range(3):
    expected = knn_lm.log_probability(
      distances, values, np.full(6, token), metric=metric, temperature=3.0
    )
    np.testing.assert_allclose(
      np.where(values == token, found, 0).sum(axis=1),
      np.nan_to_num(np.exp(expected)),
      atol=1e-12,
    )
