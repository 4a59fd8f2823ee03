"""The jobs together on tiny models: build, evaluate, query, report."""

import copy
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import tiny
from tests import torch_loop
from tests import world as world_lib
from tttnn import jobs
from tttnn.datastore import client as client_lib
from tttnn.methods import ttt

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COUNT = world_lib.COUNT
changed = world_lib.changed
rows_of = world_lib.rows_of
timeless = world_lib.timeless


def command(config, workdir, **popen):
  """The same run as a process of its own, by the command line alone."""
  flags = [
    f'--config.{section}.{key}={value}'
    for section in ('model', 'embedder', 'store', 'retrieval', 'ttt', 'eval')
    for key, value in config[section].items()
  ]
  return subprocess.Popen(
    [sys.executable, '-m', 'tttnn.main']
    + [f'--config=configs/evaluate.py:{config.method}', f'--workdir={workdir}']
    + flags,
    cwd=ROOT,
    **popen,
  )


@pytest.fixture(scope='module')
def finished(world, tmp_path_factory):
  """The rows of an uninterrupted run, which also saves its neighbours."""
  workdir = tmp_path_factory.mktemp('finished')
  config = changed(world, retrieval__save=f'{workdir}/neighbors.jsonl')
  jobs.run(config, str(workdir))
  return workdir


def test_rows_are_as_the_contract_says(world, finished):
  rows = rows_of(finished)
  assert [row['doc_id'] for row in rows] == list(range(COUNT))
  with open(world.eval.documents) as file:
    texts = [json.loads(line)['text'] for line in file]
  for row, text in zip(rows, texts, strict=True):
    assert row['method'] == 'ttt'
    assert row['protocol'] == 'split'
    assert row['task'] in ('prose', 'numbers')
    assert row['at'] == [0, 1, 2, 3]
    assert len(row['log_likelihood']) == 4
    assert len(row['train_loss']) == len(row['steps']) == 3
    assert row['num_bytes'] <= len(text.encode())
    distances = [n['distance'] for n in row['neighbors']]
    assert distances == sorted(distances)
    assert all(0 <= n['id'] < 61 for n in row['neighbors'])
    assert row['missing_neighbors'] == 0
    assert set(row['seconds']) == {'retrieve', 'select', 'adapt', 'score'}
  assert rows[COUNT - 4]['log_likelihood'] == [0.0] * 4  # The empty one.
  assert rows[COUNT - 4]['num_words'] == 1


def test_who_searches_changes_no_row(world, finished, tmp_path):
  config = changed(world, store__search='device')
  jobs.run(config, str(tmp_path))
  assert timeless(rows_of(tmp_path)) == timeless(rows_of(finished))
  # The rows of one are those of the other: a rerun has nothing to do.
  jobs.run(changed(world, store__search='faiss'), str(tmp_path))
  config = changed(world, store__search='both')
  with pytest.raises(ValueError, match="search='both' is not one of faiss"):
    jobs.run(config, str(tmp_path / 'other'))


def test_neighbors_are_those_of_brute_force(world, finished):
  # The split protocol's own queries, embedded by the definition in PyTorch.
  import torch
  import transformers

  from tttnn.corpus import documents
  from tttnn.corpus import jsonl
  from tttnn.corpus import tokenizer as tokenizer_lib

  reference = transformers.RobertaModel.from_pretrained(
    world.embedder.path, add_pooling_layer=False
  ).eval()
  tokenizer = tokenizer_lib.load(world.embedder.path)

  @torch.no_grad()
  def embed(text):
    ids = tokenizer(text or ' ', truncation=True, max_length=64)['input_ids']
    return reference(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()

  corpus = jsonl.read(jsonl.expand(world.corpus.train))
  vectors = np.stack([embed(text) for text in corpus.iter_texts()])
  lm_tokenizer = tokenizer_lib.load(world.model.path)
  rows = rows_of(finished)
  for document, row in zip(
    documents.read(world.eval.documents), rows, strict=True
  ):
    case = documents.apply_protocol(
      document, lm_tokenizer, protocol='split', prefix=64
    )
    distances = np.linalg.norm(vectors - embed(case.query), axis=1)
    expected = np.sort(distances)[:3]
    found = [n['distance'] for n in row['neighbors']]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    ids = [n['id'] for n in row['neighbors']]
    np.testing.assert_allclose(distances[ids], expected, atol=1e-4)


@pytest.mark.parametrize('protocol', ['whole', 'split'])
def test_rows_equal_the_reference_in_torch(world, tmp_path, protocol):
  import transformers

  config = changed(world, eval__protocol=protocol, eval__limit=COUNT - 1)
  jobs.run(config, str(tmp_path))
  reference = transformers.GPT2LMHeadModel.from_pretrained(
    world.model.path, attn_implementation='eager'
  ).eval()
  base = copy.deepcopy(reference.state_dict())
  encode = transformers.AutoTokenizer.from_pretrained(world.model.path)
  with open(world.eval.documents) as file:
    texts = [json.loads(line)['text'] for line in file]
  corpus = []
  for name in ('train-0.jsonl', 'train-1.jsonl'):
    with open(os.path.join(os.path.dirname(world.store.path), name)) as file:
      corpus += [json.loads(line)['text'] for line in file]
  settings = ttt.Settings(learning_rate=1e-3, max_length=64, stride=64)
  for row, text in zip(rows_of(tmp_path), texts[:-1], strict=True):
    tokens = encode(text)['input_ids']
    if protocol == 'split':
      prefix = 64 if len(tokens) >= 128 else len(tokens) // 2
      scored = encode.decode(
        tokens[prefix:], clean_up_tokenization_spaces=False
      )
      tokens = encode(scored)['input_ids']
    neighbors = [corpus[n['id']] for n in row['neighbors']]
    reference.load_state_dict(base)
    expected, losses = torch_loop.run(
      reference,
      tokens,
      [encode(neighbor)['input_ids'] for neighbor in neighbors],
      settings,
      start=0,
    )
    np.testing.assert_allclose(row['log_likelihood'], expected, rtol=1e-4)
    np.testing.assert_allclose(row['train_loss'], losses, rtol=1e-4)


@pytest.mark.parametrize('batch', ['3', '16'])
def test_documents_at_once_give_the_same_rows(world, finished, tmp_path, batch):
  config = changed(
    world,
    ttt__batch_documents=batch,
    retrieval__replay=f'{finished}/neighbors.jsonl',
  )
  jobs.run(config, str(tmp_path))
  found = {row['doc_id']: row for row in rows_of(tmp_path)}
  assert len(found) == COUNT
  for expected in rows_of(finished):
    row = found[expected['doc_id']]
    for name in ('log_likelihood', 'train_loss'):
      np.testing.assert_allclose(row[name], expected[name], rtol=1e-5)
    for name in ('at', 'steps', 'neighbors', 'num_bytes'):
      assert row[name] == expected[name]


def test_summary_is_the_micro_average_of_the_rows(world, finished):
  with open(finished / 'summary.json') as file:
    summary = json.load(file)
  rows = rows_of(finished)
  for task in ('prose', 'numbers'):
    chosen = [row for row in rows if row['task'] == task]
    nats = -sum(row['log_likelihood'][3] for row in chosen)
    size = sum(row['num_bytes'] for row in chosen)
    found = summary['tasks'][task]['by_count'][3]
    assert found['at'] == 3
    assert found['documents'] == len(chosen)
    assert found['bits_per_byte'] == pytest.approx(nats / size / math.log(2))
  assert summary['versions']['jax']
  assert summary['config']['retrieval']['neighbors'] == 3


def test_replaying_the_saved_neighbors_gives_the_same_rows(
  world, finished, tmp_path
):
  config = changed(
    world,
    retrieval__replay=f'{finished}/neighbors.jsonl',
    store__path='',
    embedder__path='',
  )
  jobs.run(config, str(tmp_path))
  assert timeless(rows_of(tmp_path)) == timeless(rows_of(finished))


def test_replay_may_hold_fewer_and_empty_neighbors(world, tmp_path):
  lines = [
    {
      'doc_id': i,
      'neighbors': [{'id': None, 'distance': 0.5, 'text': ''}][: i % 2],
    }
    for i in range(COUNT)
  ]
  path = tmp_path / 'n.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config = changed(world, retrieval__replay=str(path), store__path='')
  jobs.run(config, str(tmp_path / 'w'))
  for i, row in enumerate(rows_of(tmp_path / 'w')):
    assert row['at'] == [0, 1][: 1 + i % 2]
    assert row['steps'] == [0][: i % 2]
    assert row['missing_neighbors'] == 3 - i % 2
    assert len(set(row['log_likelihood'])) == 1  # No step, no change.
  with open(tmp_path / 'w' / 'summary.json') as file:
    assert json.load(file)['documents_with_missing_neighbors'] == COUNT


def test_base_needs_no_store_and_is_count_zero_of_ttt(
  world, finished, tmp_path
):
  config = changed(world, method='base', store__path='', embedder__path='')
  jobs.run(config, str(tmp_path))
  rows = rows_of(tmp_path)
  assert all(row['at'] == [0] for row in rows)
  assert [row['log_likelihood'] for row in rows] == [
    row['log_likelihood'][:1] for row in rows_of(finished)
  ]


def test_whole_protocol_and_exclude_self(world, tmp_path):
  config = changed(world, eval__protocol='whole', eval__at='0,3')
  jobs.run(config, str(tmp_path / 'with'))
  last = rows_of(tmp_path / 'with')[-1]
  assert last['neighbors'][0] == {
    'id': 3,
    'distance': pytest.approx(0, abs=1e-3),
    'overlap': 1.0,
  }
  assert last['at'] == [0, 3]
  config.retrieval.exclude_self = True
  jobs.run(config, str(tmp_path / 'without'))
  without = rows_of(tmp_path / 'without')[-1]
  assert [n['id'] for n in without['neighbors']][:2] == [
    n['id'] for n in last['neighbors']
  ][1:]
  assert without['missing_neighbors'] == 0


def test_distance_bounds_drop_neighbors(world, finished, tmp_path):
  found = [n['distance'] for n in rows_of(finished)[0]['neighbors']]
  config = changed(
    world,
    eval__limit=1,
    retrieval__min_distance=found[1],
    retrieval__max_distance=found[2],
  )
  jobs.run(config, str(tmp_path))
  row = rows_of(tmp_path)[0]
  assert [n['distance'] for n in row['neighbors']] == found[1:2]
  assert row['missing_neighbors'] == 2


# Four processes, some ten seconds each.
@pytest.mark.slow
@pytest.mark.parametrize(
  'carried', [{}, {'ttt__optimizer_state': 'carry', 'ttt__dropout': True}]
)
def test_kill_and_resume_gives_the_same_rows(world, tmp_path, carried):
  world = changed(world, eval__checkpoint_every=2, **carried)
  finished = tmp_path / 'finished'
  jobs.run(world, str(finished))
  tmp_path = tmp_path / 'killed'
  results = tmp_path / 'results.jsonl'
  for rows in (1, 5, 9):
    process = command(world, tmp_path, stderr=subprocess.DEVNULL)
    while process.poll() is None and whole_lines(results) < rows:
      time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert rows <= whole_lines(results) < COUNT
  assert command(world, tmp_path, stderr=subprocess.DEVNULL).wait() == 0
  assert timeless(rows_of(tmp_path)) == timeless(rows_of(finished))


def whole_lines(path) -> int:
  return path.read_bytes().count(b'\n') if path.exists() else 0


def test_carried_state_makes_rows_depend_on_the_documents_before(
  world, finished, tmp_path
):
  config = changed(world, ttt__optimizer_state='carry')
  jobs.run(config, str(tmp_path / 'all'))
  rows, fresh = rows_of(tmp_path / 'all'), rows_of(finished)
  assert rows[0]['log_likelihood'] == pytest.approx(
    fresh[0]['log_likelihood'], rel=1e-5
  )
  assert rows[1]['log_likelihood'][0] == fresh[1]['log_likelihood'][0]
  assert rows[1]['log_likelihood'][1:] != fresh[1]['log_likelihood'][1:]
  # By task, each begins afresh: the first of each is as without carrying.
  config = changed(config, eval__tasks='prose,numbers')
  jobs.run(config, str(tmp_path / 'tasks'))
  rows = {row['doc_id']: row for row in rows_of(tmp_path / 'tasks')}
  assert list(rows) == [*range(0, COUNT, 2), *range(1, COUNT, 2)]
  for first in (0, 1):
    assert rows[first]['log_likelihood'] == pytest.approx(
      fresh[first]['log_likelihood'], rel=1e-5
    )


def test_processes_share_documents_and_carry_on_for_themselves(world, tmp_path):
  fields = {'eval__world_size': 2, 'eval__rank': 1}
  config = changed(world, ttt__optimizer_state='carry', **fields)
  jobs.run(config, str(tmp_path))
  rows = rows_of(tmp_path)
  assert [row['doc_id'] for row in rows] == list(range(1, COUNT, 2))
  config.eval.rank = 0
  with pytest.raises(ValueError, match='eval.rank: 1 there, 0 now'):
    jobs.run(config, str(tmp_path))
  # Without carried state both may write their rows to one file.
  for rank in (0, 1):
    config = changed(world, method='base', eval__world_size=2, eval__rank=rank)
    jobs.run(config, str(tmp_path / 'base'))
    with open(tmp_path / 'base' / 'summary.json') as file:
      assert json.load(file)['documents'] == COUNT / 2
  assert len(rows_of(tmp_path / 'base')) == COUNT


def test_tasks_of_the_pile_go_in_the_originals_order(world, tmp_path):
  texts = tiny.documents(8, seed=4)
  path = tiny.write_jsonl(tmp_path / 'pile.jsonl', texts, ('Github', 'arXiv'))
  config = changed(
    world,
    method='base',
    eval__documents=path,
    eval__tasks='pile_github,pile_arxiv',
    eval__portion=0.5,
  )
  jobs.run(config, str(tmp_path / 'w'))
  order = list(range(4))
  random.Random(1216).shuffle(order)
  rows = rows_of(tmp_path / 'w')
  assert [(row['task'], row['doc_id']) for row in rows] == [
    *(('ArXiv', 2 * i) for i in order[:2]),
    *(('Github', 2 * i + 1) for i in order[:2]),
  ]


def test_rerunning_a_finished_run_changes_nothing(world, finished):
  def state():
    return {
      path.name: (path.read_bytes(), path.stat().st_mtime_ns)
      for path in finished.iterdir()
      if path.is_file()
    }

  before = state()
  config = changed(world, retrieval__save=f'{finished}/neighbors.jsonl')
  jobs.run(config, str(finished))
  assert state() == before


def test_another_setting_in_the_same_workdir_is_refused(world, finished):
  config = changed(world, ttt__learning_rate=0.5)
  with pytest.raises(ValueError, match=r'ttt.learning_rate: 0.001 .* 0.5 now'):
    jobs.run(config, str(finished))


def test_a_user_server_is_used_and_left_running(world, finished, tmp_path):
  address = client_lib.default_address(world.store.path)
  with client_lib.start(world.store.path, address, threads=1) as client:
    jobs.run(changed(world, eval__limit=2), str(tmp_path))
    assert client.status()['queries'] == 2
    assert client_lib.answers(address)
  assert timeless(rows_of(tmp_path)) == timeless(rows_of(finished))[:2]


def test_a_server_that_dies_mid_run_is_an_error_and_the_rows_stay(
  world, finished, tmp_path, monkeypatch
):
  from tttnn.scoring import results

  append = results.Results.append

  def append_and_kill(self, row):
    append(self, row)
    os.kill(client.info['pid'], signal.SIGKILL)

  address = client_lib.default_address(world.store.path)
  with client_lib.start(world.store.path, address, threads=1) as client:
    monkeypatch.setattr(results.Results, 'append', append_and_kill)
    with pytest.raises(ValueError, match='search server'):
      jobs.run(world, str(tmp_path))
  monkeypatch.undo()
  # The one before, and those whose neighbours were there already.
  assert 1 <= len(rows_of(tmp_path)) <= 4
  jobs.run(world, str(tmp_path))
  assert timeless(rows_of(tmp_path)) == timeless(rows_of(finished))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model__path': ''}, 'model.path is empty'),
    ({'model__path': '/no/model'}, '/no/model'),
    ({'embedder__path': ''}, 'embedder.path is empty'),
    ({'store__path': '/no/store'}, '/no/store'),
    ({'store__path': ''}, 'needs store.path'),
    ({'store__address': '/tmp/no-server'}, 'no search server'),
    ({'retrieval__neighbors': 62}, 'neighbors=62.* 61 documents'),
    ({'eval__documents': '/no/file.jsonl'}, '/no/file.jsonl'),
    ({'eval__at': '0,5'}, 'asks for 5 neighbours.*neighbors is 3'),
    ({'eval__at': 'some'}, "'some'"),
    ({'eval__protocol': 'half'}, "'half'"),
    ({'method': 'tt'}, "method='tt'"),
    ({'ttt__max_length': 65}, 'max_length=65 exceeds the 64 positions'),
    ({'model__dtype': 'int8'}, "'int8'"),
  ],
)
def test_bad_input_is_refused(world, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(changed(world, **changes), str(tmp_path))
  results = tmp_path / 'results.jsonl'
  assert not results.exists() or not results.read_bytes()


def test_a_store_of_another_embedder_is_refused(world, tmp_path):
  config = changed(world, embedder__max_length=20)
  with pytest.raises(ValueError, match='built with embedder'):
    jobs.run(config, str(tmp_path))


def test_query_writes_what_replay_reads(world, finished, tmp_path, capsys):
  config = changed(world, job='query', query__text='quick brown fox')
  jobs.run(config, '')
  table = capsys.readouterr().out.splitlines()
  assert len(table) == 2 + 3
  out = tmp_path / 'out.jsonl'
  config = changed(
    world,
    job='query',
    query__input=world.eval.documents,
    query__output=str(out),
  )
  jobs.run(config, '')
  whole = changed(
    world,
    eval__protocol='whole',
    retrieval__replay=str(out),
    store__path='',
  )
  jobs.run(whole, str(tmp_path / 'w'))
  assert len(rows_of(tmp_path / 'w')) == COUNT


def test_query_shows_and_stops_the_server(world, capsys):
  address = client_lib.default_address(world.store.path)
  config = changed(world, job='query', query__action='status')
  with pytest.raises(ValueError, match='no search server'):
    jobs.run(config, '')
  with client_lib.start(world.store.path, address, threads=1):
    jobs.run(config, '')
    assert 'up' in capsys.readouterr().out
    config.query.action = 'shutdown'
    jobs.run(config, '')
    deadline = time.monotonic() + 10
    while client_lib.answers(address) and time.monotonic() < deadline:
      time.sleep(0.05)
    assert not client_lib.answers(address)


def test_dry_run_prints_and_leaves_nothing(world, tmp_path, capsys):
  for job in ('build', 'evaluate'):
    workdir = tmp_path / job
    config = changed(world, job=job, dry_run=True, store__path=f'{workdir}/s')
    jobs.run(config, str(workdir))
    printed = capsys.readouterr().out
    for word in ('documents', 'steps', 'memory', 'estimated time'):
      assert word in printed
    assert not workdir.exists()
