import contextlib
import json
import multiprocessing.pool
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tttnn.datastore import build
from tttnn.datastore import client as client_lib
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import protocol

DIM = 16
ROWS = 400
ROOT = pathlib.Path(build.__file__).parents[2]


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  directory = tmp_path_factory.mktemp('store')
  lines = [json.dumps({'text': str(row)}) for row in range(ROWS)]
  (directory / 'a.jsonl').write_text('\n'.join(lines))
  vectors = np.random.default_rng(0).normal(size=(ROWS, DIM))

  def embed(blocks):
    for texts in blocks:
      yield vectors[[int(text) for text in texts]].astype(np.float32)

  paths = [str(directory / 'a.jsonl')]
  options = build.Options(threads=1)
  return build.build(
    directory / 's', paths, embed, dim=DIM, fingerprint='me', options=options
  )


@pytest.fixture
def address(tmp_path):
  return str(tmp_path / 'socket')


def make_queries(count, seed=1):
  values = np.random.default_rng(seed).normal(size=(count, DIM))
  return values.astype(np.float32)


def serve(store, address, *flags):
  """A server of its own, not a child of a client; ready."""
  command = [sys.executable, '-m', 'tttnn.datastore.server', '--threads=1']
  command += [f'--store={store.directory}', f'--address={address}', *flags]
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.ready = process.stdout.readline()
  return process


@contextlib.contextmanager
def serving(store, address, *flags):
  process = serve(store, address, *flags)
  try:
    yield process
  finally:
    process.kill()
    process.communicate()


def run_python(script, *args, **kwargs):
  command = [sys.executable, '-c', script, *map(str, args)]
  return subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **kwargs
  )


def wait_until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def is_running(pid):
  try:
    with open(f'/proc/{pid}/stat') as f:
      return f.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_answers_are_those_of_the_engine(store, address):
  engine = engine_lib.Engine(store, threads=1)
  queries = make_queries(2 * protocol.MAX_QUERIES + 3)
  with client_lib.start(store.directory, address, threads=1) as client:
    for count, k in ((1, 1), (3, 7), (len(queries), 5), (200, ROWS), (0, 2)):
      distances, ids = client.search(queries[:count], k)
      expected = engine.search(queries[:count], k)
      np.testing.assert_array_equal(distances, expected[0])
      np.testing.assert_array_equal(ids, expected[1])
      assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    info = client.info
  assert info['store'] == str(store.directory)
  assert info['manifest'] == store.fingerprint()
  assert (info['dim'], info['rows'], info['searchable']) == (DIM, ROWS, ROWS)
  assert (info['index'], info['in_memory'], info['exact']) == ('Flat', [], True)
  assert not os.path.exists(address)
  assert not is_running(info['pid'])


def test_the_embedder_is_checked(store, address):
  with client_lib.start(store.directory, address, threads=1) as client:
    client.check('me', DIM)
    for fingerprint, dim in (('you', DIM), ('me', DIM + 1)):
      message = f'embedder me of dim {DIM}.* {fingerprint} of dim {dim}'
      with pytest.raises(ValueError, match=message):
        client.check(fingerprint, dim)


def test_wrong_searches_are_refused_and_the_server_lives(store, address):
  queries = make_queries(2)
  with client_lib.start(store.directory, address, threads=1) as client:
    for wrong, k, message in (
      (queries[:, 1:], 1, rf'shape \[2, {DIM - 1}\] .* dim {DIM}'),
      (queries[0], 1, rf'shape \[{DIM}\] .* dim {DIM}'),
      (queries, 0, '0 neighbours'),
      (queries, -1, '-1 neighbours'),
      (queries, ROWS + 1, f'{ROWS + 1} neighbours .* {ROWS} searchable'),
      (queries, 1 << 17, f'at most {protocol.MAX_RESULTS}'),
      (queries * np.nan, 1, 'query 0 of 2 is not finite'),
    ):
      with pytest.raises(ValueError, match=message):
        client.search(wrong, k)
    assert client.search(queries, 3)[1].shape == (2, 3)


def test_broken_messages_are_refused_and_the_server_lives(store, address):
  def ask(connection, line):
    connection.sendall(line + b'\n')
    return json.loads(connection.recv(1 << 16))

  with (
    client_lib.start(store.directory, address, threads=1) as client,
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw,
  ):
    raw.connect(address)
    assert json.loads(raw.recv(1 << 16))['dim'] == DIM
    for line in (
      b'',
      b'\xff',
      b'[]',
      b'{}',
      b'{"op": "drop"}',
      b'{"op": "search"}',
      b'{"op": "search", "count": 0, "k": 1}',
      b'{"op": "search", "count": 257, "k": 1}',
      b'{"op": "search", "count": 1.0, "k": 1}',
      b'{"op": "search", "count": 1, "k": true}',
      b'{"op": "search", "count": 256, "k": 257}',
    ):
      assert 'error' in ask(raw, line), line
    assert ask(raw, b'{"op": "search", "count": 1, "k": 1}') == {}
    with contextlib.suppress(
      OSError
    ):  # An endless line is not read to its end.
      raw.sendall(b'x' * (1 << 20))
      assert raw.recv(1) == b''
    assert client.search(make_queries(1), 1)[1].shape == (1, 1)
    assert client.status()['connections'] == 1


CLIENT = """
import sys
import numpy as np
from tttnn.datastore import client

address, seed = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(seed)
with client.Client(address) as search:
  for k in range(1, 40):
    queries = rng.normal(size=(1 + k * seed % 7, 16)).astype(np.float32)
    distances, ids = search.search(queries, k % 5 + 1)
    print(distances.tobytes().hex(), ids.tobytes().hex())
"""


def test_several_processes_at_once(store, address):
  engine = engine_lib.Engine(store, threads=1)
  with client_lib.start(store.directory, address, threads=1) as client:
    others = [run_python(CLIENT, address, seed) for seed in (1, 2, 3)]
    for seed, other in enumerate(others, 1):
      lines = other.communicate(timeout=30)[0].splitlines()
      assert other.returncode == 0
      rng = np.random.default_rng(seed)
      for k, line in zip(range(1, 40), lines, strict=True):
        queries = rng.normal(size=(1 + k * seed % 7, DIM)).astype(np.float32)
        found = engine.search(queries, k % 5 + 1)
        assert line.split() == [part.tobytes().hex() for part in found]
    assert client.status()['requests'] == 3 * 39
    wait_until(lambda: client.status()['connections'] == 1)


def test_requests_that_wait_are_one_search(store, address):
  engine = engine_lib.Engine(store, threads=1)
  with serving(store, address) as server, contextlib.ExitStack() as stack:
    clients = [
      stack.enter_context(client_lib.Client(address)) for _ in range(6)
    ]
    results = {}

    def ask(i):
      k = 3 if i < 5 else 4
      results[i] = clients[i].search(make_queries(2, seed=i), k)

    os.kill(server.pid, signal.SIGSTOP)
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
      thread.start()
    time.sleep(0.2)
    os.kill(server.pid, signal.SIGCONT)
    for thread in threads:
      thread.join()
    for i in range(6):
      expected = engine.search(make_queries(2, seed=i), 3 if i < 5 else 4)
      np.testing.assert_array_equal(results[i], expected)
    status = clients[0].status()
    assert (status['requests'], status['queries']) == (6, 12)
    assert status['searches'] == 2


def test_a_search_waits_for_more_queries_as_long_as_it_may(store, address):
  flags = '--max_wait_ms=5000', '--max_batch=4'
  with serving(store, address, *flags), contextlib.ExitStack() as stack:
    clients = [
      stack.enter_context(client_lib.Client(address)) for _ in range(4)
    ]
    begin = time.monotonic()
    threads = [
      threading.Thread(target=client.search, args=(make_queries(1), 2))
      for client in clients
    ]
    for thread in threads:
      thread.start()
      time.sleep(0.1)
    for thread in threads:
      thread.join()
    # The batch was full before its time was up.
    assert time.monotonic() - begin < 4
    assert clients[0].status()['searches'] == 1


def test_a_search_waits_no_longer(store, address):
  with (
    serving(store, address, '--max_wait_ms=200'),
    client_lib.Client(address) as client,
  ):
    begin = time.monotonic()
    client.search(make_queries(1), 2)
    assert 0.2 <= time.monotonic() - begin < 4


def test_a_request_is_not_divided(store, address):
  engine = engine_lib.Engine(store, threads=1)
  with (
    serving(store, address, '--max_batch=2'),
    client_lib.Client(address) as client,
  ):
    found = client.search(make_queries(5), 3)
    np.testing.assert_array_equal(found, engine.search(make_queries(5), 3))
    assert client.status()['searches'] == 1


def test_one_bad_request_does_not_spoil_the_batch(tmp_path, address):
  # One list holds a single row, the other all others: of the requests that are
  # searched together, one finds too little.
  (tmp_path / 'a.jsonl').write_text(
    '\n'.join(json.dumps({'text': str(row)}) for row in range(100))
  )

  def embed(blocks):
    for texts in blocks:
      vectors = [[float(t), 1e4 * (t == '0')] for t in texts]
      yield np.array(vectors, np.float32)

  store = build.build(
    tmp_path / 's',
    [str(tmp_path / 'a.jsonl')],
    embed,
    dim=2,
    fingerprint='',
    options=build.Options(index='IVF2,Flat;nprobe=2', threads=1),
  )
  with (
    serving(store, address, '--index=IVF2,Flat;nprobe=1') as server,
    contextlib.ExitStack() as stack,
  ):
    clients = [
      stack.enter_context(client_lib.Client(address)) for _ in range(2)
    ]
    results = {}

    def ask(i):
      try:
        results[i] = clients[i].search(np.array([[50, 1e4 * i]]), 5)[1][0, 0]
      except ValueError as e:
        results[i] = str(e)

    os.kill(server.pid, signal.SIGSTOP)
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
      thread.start()
    time.sleep(0.2)
    os.kill(server.pid, signal.SIGCONT)
    for thread in threads:
      thread.join()
    assert results[0] == 50
    assert 'found 1 of 5 neighbours' in results[1]


DYING = """
import os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(sys.argv[1])
connection.recv(1 << 16)
connection.sendall(sys.argv[2].encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_clients_that_are_killed_are_forgotten(store, address):
  with client_lib.start(store.directory, address, threads=1) as client:
    request = '{"op": "search", "count": 256, "k": 200}\n'
    for sent in ('', request[:9], request, 5 * request):
      process = run_python(DYING, address, sent)
      process.communicate(timeout=20)
      assert process.returncode == -signal.SIGKILL
    assert client.search(make_queries(2), 3)[1].shape == (2, 3)
    wait_until(lambda: client.status()['connections'] == 1)
    maps = pathlib.Path(f'/proc/{client.info["pid"]}/maps').read_text()
    assert maps.count('memfd:tttnn') == 1  # This client's.


def test_a_killed_server_is_a_clear_error(store, address):
  with serving(store, address) as server:
    client = client_lib.Client(address)
    maps = pathlib.Path(f'/proc/{os.getpid()}/maps').read_text()
    assert 'memfd:tttnn (deleted)' in maps and '/dev/shm/tttnn' not in maps
    os.kill(server.pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (server.pid, signal.SIGKILL))
    killer.start()
    message = rf'{address} \(process {server.pid}\) died .*restart'
    with pytest.raises(ValueError, match=message):
      client.search(make_queries(1), 1)
    killer.join()
    with pytest.raises(ValueError, match=rf'{address} .* is closed'):
      client.search(make_queries(1), 1)
    server.wait()
    with pytest.raises(ValueError, match=f'no search server at {address}'):
      client_lib.Client(address)
    assert os.path.exists(address)
    assert not client_lib.answers(address)
  with client_lib.start(store.directory, address, threads=1) as client:
    assert client_lib.answers(address)
    assert client.search(make_queries(1), 1)[1].shape == (1, 1)
  assert not os.path.exists(address)


def test_a_silent_server_times_out(store, address):
  with serving(store, address) as server:
    client = client_lib.Client(address, timeout=0.2)
    os.kill(server.pid, signal.SIGSTOP)
    message = rf'\(process {server.pid}\) has not answered for 0.2 s'
    with pytest.raises(ValueError, match=message):
      client.search(make_queries(1), 1)
    with pytest.raises(ValueError, match=message):
      client_lib.Client(address, timeout=0.2)


def test_a_live_server_keeps_its_address(store, address):
  with client_lib.start(store.directory, address, threads=1) as client:
    message = f'{address} is served by process {client.info["pid"]}'
    with (
      pytest.raises(ValueError, match=message),
      client_lib.start(store.directory, address, threads=1),
    ):
      pass
    assert client.search(make_queries(1), 1)[1].shape == (1, 1)


def test_of_servers_that_start_together_one_wins(store, address):
  with serving(store, address) as dead:
    dead.kill()
  assert os.path.exists(address)
  with multiprocessing.pool.ThreadPool(3) as pool:
    servers = pool.map(lambda _: serve(store, address), range(3))
  winners = [server for server in servers if server.ready]
  assert len(winners) == 1
  with client_lib.Client(address) as client:
    assert client.info['pid'] == winners[0].pid
    client.shutdown()
  assert sorted(server.wait(10) for server in servers) == [0, 1, 1]
  for server in servers:
    server.communicate()
  assert not os.path.exists(address)


def test_something_else_at_the_address_is_left_alone(store, address):
  pathlib.Path(address).write_text('precious')
  with serving(store, address) as server:
    assert 'is not a socket' in server.communicate()[1]
    assert server.returncode == 1
  assert pathlib.Path(address).read_text() == 'precious'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_server_cleanly(store, address, number):
  with serving(store, address) as server:
    assert stat.S_IMODE(os.stat(address).st_mode) == 0o600
    os.kill(server.pid, number)
    assert server.wait(10) == 0
    assert server.communicate() == ('', '')
  assert not os.path.exists(address)


OWNER = """
import sys, time
from tttnn.datastore import client

with client.start(sys.argv[1], sys.argv[2], threads=1) as search:
  print(search.info['pid'], flush=True)
  time.sleep(60)
"""


def test_the_server_of_a_killed_owner_ends(store, address):
  with run_python(OWNER, store.directory, address) as owner:
    pid = int(owner.stdout.readline())
    assert is_running(pid)
    owner.kill()
    owner.wait()
    wait_until(lambda: not is_running(pid))
  assert not os.path.exists(address)


def test_the_server_of_a_failed_block_ends(store, address):
  with (
    pytest.raises(KeyError),
    client_lib.start(store.directory, address, threads=1) as client,
  ):
    pid = client.info['pid']
    raise KeyError
  assert not is_running(pid) and not os.path.exists(address)


def test_start_says_why_there_is_no_server(store, tmp_path):
  for directory, address, message in (
    (tmp_path, str(tmp_path / 'a'), f'no finished store in {tmp_path}'),
    (store.directory, str(tmp_path / 'x/a'), 'x/a: .*No such file'),
    (store.directory, str(tmp_path / ('a' * 120)), 'AF_UNIX path too long'),
  ):
    with (
      pytest.raises(ValueError, match=message),
      client_lib.start(directory, address, threads=1),
    ):
      pass


def test_default_addresses(store, tmp_path):
  address = client_lib.default_address(store.directory)
  assert address != client_lib.default_address(tmp_path)
  assert len(os.path.basename(address)) < 40
  (tmp_path / 'link').symlink_to(store.directory)
  assert client_lib.default_address(tmp_path / 'link') == address
  with client_lib.start(store.directory, threads=1) as client:
    assert client.address == address


def test_the_server_is_light(store, address):
  script = 'import sys, tttnn.datastore.server; print(*sys.modules)'
  loaded = run_python(script).communicate()[0].split()
  assert {'faiss', 'numpy'} < set(loaded)
  heavy = {'jax', 'flax', 'transformers', 'torch', 'tensorstore', 'absl'}
  assert not heavy & set(loaded)
  with client_lib.start(store.directory, address, threads=1) as client:
    stat_ = pathlib.Path(f'/proc/{client.info["pid"]}/stat').read_text()
    ticks = stat_.rpartition(')')[2].split()[11:13]
    seconds = sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')
  assert seconds < 1  # Of processor time, until it answered.
