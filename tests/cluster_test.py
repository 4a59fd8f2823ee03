"""A store on a real Ray cluster: three nodes on this machine, and faults."""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

if not importlib.util.find_spec('ray'):
  pytest.skip('no Ray here', allow_module_level=True)

from configs import base
from tests import tiny
from tests import world as world_lib
from tttnn import jobs
from tttnn.datastore import actors
from tttnn.datastore import cluster as cluster_lib
from tttnn.datastore import cluster_server
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib
from tttnn.datastore.actors import ray
from tttnn.jobs import works

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('compile_fast'),
  # Ray starts the nodes; elsewhere that is done before there is JAX.
  pytest.mark.filterwarnings('ignore:os.fork'),
]
ROOT = pathlib.Path(__file__).parents[1]
NODE = {'num_cpus': 3, 'object_store_memory': 80 << 20}
TIMEOUT = 20.0


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A configuration: models, a store of three shards, test documents."""
  directory = tmp_path_factory.mktemp('world')
  lm, embedder = tiny.write_models(str(directory))
  texts = tiny.documents(60, seed=1)
  for i, (begin, end) in enumerate(((0, 4), (4, 40), (40, 60))):
    tiny.write_jsonl(directory / f'train-{i}.jsonl', texts[begin:end])
  tiny.write_jsonl(directory / 'test.jsonl', tiny.documents(8, seed=2))
  config = base.get_config()
  config.job = 'build'
  config.corpus.train = f'{directory}/train-*.jsonl'
  config.embedder.path = embedder
  config.store.path = f'{directory}/store'
  config.build.block = 16
  jobs.run(config, str(directory / 'build'))
  config.job = 'evaluate'
  config.model.path = lm
  config.eval.documents = f'{directory}/test.jsonl'
  config.eval.at = '0,3'
  config.retrieval.neighbors = 3
  config.ttt.learning_rate = 1e-3
  return config


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
  """Three nodes; the token is theirs, and nothing of it is left."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('HOME', str(tmp_path_factory.mktemp('home')))
    patch.setenv('RAY_AUTH_TOKEN', os.urandom(32).hex())
    patch.setenv('PYTHONPATH', str(ROOT))
    from ray.cluster_utils import Cluster

    nodes = Cluster(
      initialize_head=True, head_node_args=NODE | {'include_dashboard': False}
    )
    for _ in range(2):
      nodes.add_node(**NODE)
    yield nodes
    nodes.shutdown()


def clustered(world, nodes, **settings):
  config = world.copy_and_resolve_references()
  config.store.search = 'cluster'
  config.cluster.address = nodes.address
  config.cluster.replicas = 2
  config.cluster.timeout = TIMEOUT
  config.cluster.update(settings)
  return config


@contextlib.contextmanager
def serving(config):
  """The job `serve` as a process of its own, once it can be asked."""
  flags = [
    f'--config.{section}.{key}={value}'
    for section in ('store', 'cluster')
    for key, value in config[section].items()
  ]
  command = ['-m', 'tttnn.main', '--config=configs/serve.py:cluster', *flags]
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    process.said = ''
    while 'ends it' not in process.said:
      line = process.stdout.readline()
      assert line, process.stderr.read()
      process.said += line
    yield process
  finally:
    if process.poll() is None:
      process.send_signal(signal.SIGCONT)
      process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope='module')
def server(world, nodes):
  with serving(clustered(world, nodes)) as process:
    yield process


@pytest.fixture
def connected(nodes, server):
  with actors.joined(nodes.address):
    yield


def states(config):
  store = store_lib.open(config.store.path)
  return actors.states(store, config.cluster.replicas)


def wait_until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.1)


def healthy(config):
  return [row['state'] for row in states(config)] == ['alive'] * 6


def rows_of(workdir):
  return world_lib.timeless(world_lib.rows_of(workdir))


@pytest.fixture(scope='module')
def expected(world, tmp_path_factory):
  """Rows of a run with one local store."""
  workdir = str(tmp_path_factory.mktemp('faiss'))
  jobs.run(world, workdir)
  return rows_of(workdir)


def test_neighbors_are_those_of_one_local_store(world, connected):
  store = store_lib.open(world.store.path)
  engine = engine_lib.Engine(store, threads=1)
  client = cluster_lib.Client(world.store.path)
  rng = np.random.default_rng(0)
  dim = store.manifest.dim
  client.check(store.manifest.embedder, dim)
  for count, k in ((1, 1), (64, 5), (3, 60), (1000, 20), (0, 2)):
    queries = rng.normal(size=(count, dim)).astype(np.float32)
    found = client.search(queries, k)
    for mine, theirs in zip(found, engine.search(queries, k), strict=True):
      assert mine.dtype == theirs.dtype
      np.testing.assert_array_equal(mine, theirs)
  ids = [59, 0, 4, 0, 39, 3]
  assert client.texts(ids) == store.corpus.texts(ids)
  assert client.info['manifest'] == store.fingerprint()
  assert (client.info['shards'], client.info['searchable']) == (3, 60)
  assert client.info['exact'] and client.info['in_memory'] == []
  for wrong, k, message in (
    (queries[:, 1:], 1, f'dim {dim}'),
    (np.full((1, dim), np.nan), 1, 'query 0 of 1 is not finite'),
    (np.zeros((1, dim)), 61, '61 neighbours .* 60 searchable'),
    (np.zeros((1, dim)), 0, '0 neighbours'),
  ):
    with pytest.raises(ValueError, match=message):
      client.search(wrong, k)
  with pytest.raises(ValueError, match=f'you of dim {dim}'):
    client.check('you', dim)


def test_replicas_are_spread_and_take_turns(world, nodes, connected):
  config = clustered(world, nodes)
  before = states(config)
  for shard in range(3):
    homes = {row['node'] for row in before if row['shard'] == shard}
    assert len(homes) == 2
  assert len({row['node'] for row in before}) == 3
  assert len({row['pid'] for row in before}) == 6
  assert {row['threads'] for row in before} == {1}
  assert [row['rows'] for row in before] == [4, 4, 36, 36, 20, 20]
  client = cluster_lib.Client(world.store.path)
  for _ in range(4):
    client.search(np.zeros((1, client.info['dim'])), 1)
  gained = [
    now['searches'] - then['searches']
    for now, then in zip(states(config), before, strict=True)
  ]
  assert gained == [2] * 6


def test_faults_in_mid_evaluation_change_no_row(
  world, nodes, server, expected, tmp_path, monkeypatch
):
  config = clustered(world, nodes)
  monkeypatch.setattr(works, '_BATCH', 2)
  search, texts = cluster_lib.Client.search, cluster_lib.Client.texts
  head = nodes.head_node.node_id
  events, timers = [], []

  def kill_during_the_call(rows):
    for row in rows:  # Stopped first, so that the call cannot end before.
      os.kill(row['pid'], signal.SIGSTOP)
      timers.append(threading.Timer(0.3, os.kill, (row['pid'], signal.SIGKILL)))
      timers[-1].start()

  def search_with_faults(self, *args):
    events.append('search')
    if events.count('search') == 2:
      kill_during_the_call([r for r in states(config) if r['shard'] == 1])
    if events.count('search') == 3:
      wait_until(lambda: healthy(config))
      homes = [r['node'] for r in states(config)]
      lost = next(n for n in nodes.worker_nodes if n.node_id in homes)
      nodes.remove_node(lost)
      events.append(lost.node_id)
    return search(self, *args)

  def texts_with_faults(self, *args):
    events.append('texts')
    if events.count('texts') == 4:
      kill_during_the_call([r for r in states(config) if r['shard'] == 2])
    return texts(self, *args)

  monkeypatch.setattr(cluster_lib.Client, 'search', search_with_faults)
  monkeypatch.setattr(cluster_lib.Client, 'texts', texts_with_faults)
  jobs.run(config, str(tmp_path))
  assert rows_of(tmp_path) == expected
  assert len(timers) == 4 and events.count('search') > 3
  with actors.joined(nodes.address):
    wait_until(lambda: healthy(config))
    alive = {node.node_id for node in nodes.worker_nodes} | {head}
    assert {row['node'] for row in states(config)} <= alive
  nodes.add_node(**NODE)


def test_a_lost_shard_is_named_or_marked(world, nodes, server, tmp_path):
  config = clustered(world, nodes, timeout=1.0)
  store = store_lib.open(world.store.path)
  server.send_signal(signal.SIGSTOP)  # Or it would start them again.
  with actors.joined(nodes.address):
    client = cluster_lib.Client(world.store.path, timeout=1.0)
    for replica in range(2):
      ray.kill(actors.look_up(store, actors.name(1, replica)))
    with pytest.raises(ValueError, match='shard 1 of the 3 of .*/store cannot'):
      client.search(np.zeros((1, client.info['dim'])), 1)
    with pytest.raises(ValueError, match='shard 1 of the 3'):
      client.texts([5])
    assert client.texts([0]) == store.corpus.texts([0])
  with pytest.raises(ValueError, match='shard 1 of the 3'):
    jobs.run(config, str(tmp_path / 'whole'))
  assert rows_of(tmp_path / 'whole') == []

  config.cluster.allow_partial = True
  with pytest.raises(ValueError, match='allow_partial: None there, True now'):
    jobs.run(config, str(tmp_path / 'whole'))
  jobs.run(config, str(tmp_path / 'partial'))
  rows = rows_of(tmp_path / 'partial')
  assert [row['missing_shards'] for row in rows] == [[1]] * 8
  elsewhere = set(range(4)) | set(range(40, 60))
  assert all(n['id'] in elsewhere for row in rows for n in row['neighbors'])
  summary = json.loads((tmp_path / 'partial/summary.json').read_text())
  assert summary['documents_with_missing_shards'] == 8
  with actors.joined(nodes.address):  # There are not that many elsewhere.
    client = cluster_lib.Client(
      world.store.path, timeout=1.0, allow_partial=True
    )
    assert client.search(np.zeros((2, client.info['dim'])), 30)[1].shape == (
      2,
      24,
    )
    assert client.missing == (1,)
    server.send_signal(signal.SIGCONT)
    wait_until(lambda: healthy(config))
    client.search(np.zeros((2, client.info['dim'])), 30)
    assert client.missing == ()


def test_saved_neighbors_say_what_they_lack(tmp_path):
  from tttnn.datastore import replay
  from tttnn.datastore import retrieve

  path = str(tmp_path / 'neighbors.jsonl')
  saver = replay.Saver(path, [])
  whole = retrieve.Neighbors([retrieve.Neighbor(1, 0.5, 'a')])
  saver.append('a', whole)
  saver.append('b', retrieve.Neighbors(whole, (2, 3)))
  saver.close()
  replayed = replay.Replay(path, None)
  assert replayed('a', 1) == replayed('b', 1) == whole
  assert replayed('a', 1).missing_shards == ()
  assert replayed('b', 1).missing_shards == (2, 3)


def test_a_store_is_served_once_and_in_a_cluster_that_fits(
  world, nodes, server, tmp_path
):
  # On another host, where the file that says so is not.
  address = nodes.address
  with actors.joined(address):
    for changes, message in (
      ({}, 'served in this cluster already'),
      ({'replicas': 0}, 'cluster.replicas=0'),
      ({'cpus': 0.0}, 'cluster.cpus=0'),
    ):
      with pytest.raises(ValueError, match=message):
        cluster_server.serve(
          world.store.path, address=address, owner_fd=0, **changes
        )
    assert healthy(clustered(world, nodes))
  with (
    pytest.raises(ValueError, match=f'from this host already.*{address}'),
    cluster_server._sign(actors.sign_path(world.store.path, ''), ''),
  ):
    pass
  for wrong, message in (
    ('127.0.0.1:1', 'no cluster at'),
    ('head', 'not HOST:PORT'),
  ):
    with (
      pytest.raises(ValueError, match=message),
      actors.joined(wrong),
    ):
      pass


def test_query_shows_the_actors_and_shuts_them_down(
  world, nodes, server, capsys
):
  config = clustered(world, nodes, address='')  # The server's sign is enough.
  config.job = 'query'
  config.query.action = 'status'
  jobs.run(config, '')
  out = capsys.readouterr().out
  assert f'cluster {nodes.address}: index Flat' in out
  assert out.count(' alive ') == server.said.count(' alive ') == 6
  config.query.action = 'shutdown'
  jobs.run(config, '')
  assert server.wait(timeout=30) == 0
  with actors.joined(nodes.address):
    assert ray.util.list_named_actors(all_namespaces=True) == []
    with pytest.raises(ValueError, match='nobody serves .*/store'):
      cluster_lib.Client(world.store.path)
    for cpus, message in (
      (2.0, 'there is room for 3: the 3 hosts of the cluster have 9 CPUs'),
      (9.0, 'room for 0'),
    ):
      with pytest.raises(ValueError, match=message):
        cluster_server.serve(
          world.store.path,
          address=nodes.address,
          replicas=2,
          cpus=cpus,
          owner_fd=0,
        )
    assert ray.util.list_named_actors(all_namespaces=True) == []
  config.query.action = 'status'
  with pytest.raises(ValueError, match='no cluster serves'):
    jobs.run(config, '')


def test_a_run_without_a_cluster_has_its_own(world, tmp_path):
  """As a process: the token is made in a home that has none."""
  config = world.copy_and_resolve_references()
  config.job = 'query'
  config.query.input = config.eval.documents
  config.query.output = str(tmp_path / 'faiss.jsonl')
  jobs.run(config, '')
  command = ['-m', 'tttnn.main', '--config=configs/query.py']
  command += [f'--config.store.path={config.store.path}']
  command += ['--config.store.search=cluster']
  command += ['--config.retrieval.neighbors=3']
  command += [f'--config.embedder.path={config.embedder.path}']
  command += [f'--config.query.input={config.query.input}']
  command += [f'--config.query.output={tmp_path}/cluster.jsonl']
  environment = os.environ | {'HOME': str(tmp_path)}
  environment.pop('RAY_AUTH_TOKEN', None)
  done = subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('query: ') and 'fork' not in done.stderr
  alone, clustered_ = (
    list(map(json.loads, (tmp_path / name).read_text().splitlines()))
    for name in ('faiss.jsonl', 'cluster.jsonl')
  )
  for one, other in zip(alone, clustered_, strict=True):
    for mine, theirs in zip(one['neighbors'], other['neighbors'], strict=True):
      assert mine['id'] == theirs['id'] and mine['text'] == theirs['text']
      # The programs of this process round otherwise.
      assert abs(mine['distance'] - theirs['distance']) < 1e-5
  token = tmp_path / '.ray/auth_token'
  assert token.stat().st_mode & 0o777 == 0o600
  assert not os.path.exists(actors.sign_path(config.store.path, ''))


def test_places():
  everywhere = {'a': {0, 1, 2}, 'b': {0, 1, 2}, 'c': {0, 1, 2}}
  cpus = {'a': 2, 'b': 2, 'c': 2}
  wanted = [(shard, replica) for shard in range(3) for replica in range(2)]
  placed = cluster_server.place(wanted, everywhere, cpus, 1, {})
  assert sorted(placed.values()) == list('aabbcc')
  for shard in range(3):
    assert placed[shard, 0] != placed[shard, 1]
  # The files decide; a node that has them all leaves room for what is only
  # there.
  held = {'a': {0}, 'b': {0, 1, 2}}
  placed = cluster_server.place(
    [(0, 0), (1, 0), (2, 0)], held, {'a': 1, 'b': 2}, 1, {}
  )
  assert placed == {(0, 0): 'a', (1, 0): 'b', (2, 0): 'b'}
  # What is there counts, and what does not fit has no place.
  placed = cluster_server.place(
    [(0, 1), (1, 1)], held, {'a': 1, 'b': 2}, 1, {(1, 0): 'b', (2, 0): 'b'}
  )
  assert placed == {(0, 1): 'a'}


def test_only_shards_that_are_here_are_held(world, tmp_path):
  import shutil

  directory = tmp_path / 'copy'
  shutil.copytree(pathlib.Path(world.store.path).parent, directory)
  (directory / 'store/index/Flat/01.faiss').unlink()
  (directory / 'train-2.jsonl').unlink()
  held = cluster_server.shards_here(str(directory / 'store'), '', [0, 1, 2])
  assert held == [0]
  held = cluster_server.shards_here(str(tmp_path), '', [0, 1, 2])
  assert held == []


@pytest.mark.parametrize('module', ['actors', 'cluster', 'cluster_server'])
def test_needs_ray_and_no_jax(module):
  script = (
    'import sys\n'
    f'from tttnn.datastore import {module}\n'
    "assert not {'jax', 'flax', 'torch'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, '-c', script], cwd=ROOT, check=True)
  done = subprocess.run(
    [sys.executable, '-c', 'import sys; sys.modules["ray"] = None\n' + script],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert 'ValueError' in done.stderr and '[cpu,cluster]' in done.stderr
