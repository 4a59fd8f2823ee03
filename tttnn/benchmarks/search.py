"""The `search` benchmark: the search host, beside the original's design.

A store of random vectors is made up, and measured, in turns with medians:

    round trip   a query through the server, and in this process
    batches      queries of one search, beside faiss and on this device
    load         many clients with queries outstanding, beside one request a
                 connection and one query a search
    start        until a host of a large store answers
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import faiss
import numpy as np

from tttnn import files
from tttnn.benchmarks import asker
from tttnn.benchmarks import bench
from tttnn.datastore import build
from tttnn.datastore import client as client_lib
from tttnn.datastore import device_store
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import index as index_lib
from tttnn.datastore import store as store_lib

K = 10
_FEW = 2000  # Rows of the store whose search takes next to nothing.
_BATCHES = (1, 4, 16, 64)
_RIVAL = 'one query at a time'


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of what is measured.

  Attributes:
    rows: vectors of the store.
    large: vectors of the store that a host is started on.
    dim: of a vector.
    clients: processes that ask.
    outstanding: queries of each at a time.
    seconds: of a round of asking.
    trips: queries whose round trip is timed.
  """

  rows: int
  large: int
  dim: int
  clients: int
  outstanding: int
  seconds: float
  trips: int


SHAPES = {
  'full': Shape(200_000, 1_000_000, 256, 16, 4, 5.0, 200),
  'mini': Shape(5_000, 20_000, 32, 2, 2, 0.5, 20),
}


def measure(config, workdir: str) -> dict:
  """Everything, as plain numbers.

  Raises:
    ValueError: for an unknown shape, or sides that find different neighbours.
  """
  if not workdir:
    raise ValueError('benchmark needs --workdir, where the made-up stores go')
  shape = bench.parse_one('search', config.benchmark.shapes, SHAPES)
  directory = pathlib.Path(workdir) / 'search'
  repeats = config.benchmark.repeats
  rng = np.random.default_rng(config.seed)
  queries_QxD = rng.standard_normal((256, shape.dim), np.float32)
  queries_path = directory / 'queries.npy'
  directory.mkdir(parents=True, exist_ok=True)
  with files.atomic(os.fspath(queries_path)) as file:
    np.save(file, queries_QxD, allow_pickle=False)
  stores = {
    rows: make_store(directory, rows, shape.dim, config.seed)
    for rows in (_FEW, shape.rows, shape.large)
  }
  store = stores[shape.rows]
  found = {'shape': dataclasses.asdict(shape), 'k': K}
  found['cores'] = len(os.sched_getaffinity(0))
  say('start-up')
  found['start_seconds'] = [
    start_seconds(stores[shape.large]) for _ in range(repeats)
  ]
  say('round trips')
  found['round_trips'] = {
    str(rows): round_trips(stores[rows], queries_QxD, shape.trips)
    for rows in (_FEW, shape.rows)
  }
  say('batches')
  found['batches'] = batches(store, queries_QxD, repeats)
  say('load')
  found['load'] = load(
    store, queries_path, shape, repeats, config.benchmark.rival
  )
  return found


def say(text: str) -> None:
  print(f'benchmark: search: {text}', flush=True)


def cost(config) -> dict:
  """What `estimate.show` prints."""
  shape = bench.parse_one('search', config.benchmark.shapes, SHAPES)
  rows = _FEW + shape.rows + shape.large
  repeats = config.benchmark.repeats
  asking = 3 * (repeats + 1) * (shape.seconds + 3)
  return {
    'documents': rows,
    'steps': shape.trips,
    'memory': 8 * shape.dim * shape.large,
    'seconds': 60 + rows * 5e-5 + asking,
  }


def make_store(
  directory: pathlib.Path, rows: int, dim: int, seed: int
) -> store_lib.Store:
  """A store of random vectors, whose texts are their row numbers."""
  path = directory / f'{rows}x{dim}'
  if (path / store_lib.MANIFEST).exists():
    return store_lib.open(path)
  say(f'making up {rows:,} vectors of {dim}')
  rng = np.random.default_rng(seed + rows)
  vectors_NxD = rng.standard_normal((rows, dim), np.float32)
  corpus, index_path = f'{path}.jsonl', f'{path}.faiss'
  with open(corpus, 'w', encoding='utf-8') as file:
    file.writelines(f'{{"text": "{row}"}}\n' for row in range(rows))
  index = faiss.IndexFlatL2(dim)
  index.add(vectors_NxD)
  faiss.write_index(index, index_path)
  return build.build(
    path,
    [corpus],
    lambda blocks: (vectors_NxD[[*map(int, texts)]] for texts in blocks),
    dim=dim,
    fingerprint='made up',
    imported=[index_path],
  )


def start_seconds(store: store_lib.Store) -> float:
  """From starting a host until it has told a client about itself."""
  begin = time.perf_counter()
  with client_lib.start(store.directory, address()):
    return time.perf_counter() - begin


def address() -> str:
  return os.path.join(tempfile.gettempdir(), f'tttnn-benchmark-{os.getpid()}')


def round_trips(
  store: store_lib.Store, queries_QxD: np.ndarray, trips: int
) -> dict:
  """Median seconds of a query, in turns here and through a server."""
  engine = engine_lib.Engine(store, threads=0)
  with client_lib.start(store.directory, address()) as client:
    for searcher in (engine, client):  # To warm up.
      found = searcher.search(queries_QxD[:8], K)
    if not np.array_equal(found[1], engine.search(queries_QxD[:8], K)[1]):
      raise ValueError('the server and this process find different neighbours')
    i = iter(range(10**9))

    def query():
      place = next(i) % len(queries_QxD)
      return queries_QxD[place : place + 1]

    here, there = timed(
      [
        lambda: engine.search(query(), K),
        lambda: client.search(query(), K),
      ],
      trips,
    )
  apart = np.array(there) - np.array(here)
  return {
    'here_seconds': float(np.median(here)),
    'server_seconds': float(np.median(there)),
    'more_seconds': float(np.median(apart)),
  }


def batches(
  store: store_lib.Store, queries_QxD: np.ndarray, repeats: int
) -> dict:
  """Median seconds of a search of so many queries, by each way there is."""
  engine = engine_lib.Engine(store, threads=0)
  index = index_lib.load(store.index_path(0), store.index.spec)
  flat = faiss.IndexFlatL2(index.d)
  flat.add(index_lib.flat_vectors(index))
  device = device_store.StoreIndex(store)
  found = {}
  for count in _BATCHES:
    part_QxD = np.ascontiguousarray(queries_QxD[:count])
    ways = {
      'faiss': lambda part_QxD=part_QxD: flat.search(part_QxD, K),
      'host': lambda part_QxD=part_QxD: engine.search(part_QxD, K),
      'device': lambda part_QxD=part_QxD: device.search(part_QxD, K),
    }
    answers = {name: way()[1] for name, way in ways.items()}
    for name, ids in answers.items():
      if not np.array_equal(np.sort(ids), np.sort(answers['faiss'])):
        raise ValueError(f'{name} finds other neighbours than faiss')
    seconds = timed(list(ways.values()), 5 * repeats)
    found[str(count)] = {
      name: float(np.median(taken))
      for name, taken in zip(ways, seconds, strict=True)
    }
  return found


def timed(calls: Sequence[Callable[[], object]], times: int) -> list[list]:
  """Seconds of each call, in turns."""
  seconds = [[] for _ in calls]
  for _ in range(times):
    for call, taken in zip(calls, seconds, strict=True):
      begin = time.perf_counter()
      call()
      taken.append(time.perf_counter() - begin)
  return seconds


def load(
  store: store_lib.Store,
  queries_path: pathlib.Path,
  shape: Shape,
  repeats: int,
  rival: str,
) -> dict:
  """Answers a second of each side, under the same clients."""
  here = [sys.executable, '-m', asker.__name__, address()]
  other = f'{address()}-rival'
  common = [str(queries_path), str(K), str(shape.outstanding)]
  rates, first = {bench.ENGINE: []}, {}
  threads = sorted({1, len(os.sched_getaffinity(0))})
  for _ in range(repeats):
    with client_lib.start(store.directory, address()):
      rate, first[bench.ENGINE] = asked([*here, *common], shape)
      rates[bench.ENGINE].append(rate)
    for count in threads if rival else ():
      name = f'{_RIVAL}, {count} threads'
      command = [sys.executable, rival, 'serve', str(store.index_path(0))]
      with serving([*command, other, str(count)], other):
        ask = [sys.executable, rival, 'ask', other]
        rate, first[name] = asked([*ask, *common], shape)
        rates.setdefault(name, []).append(rate)
  for name, ids in first.items():
    same = {q: set(row) for q, row in first[bench.ENGINE].items() if q in ids}
    if not same or any(set(ids[q]) != row for q, row in same.items()):
      raise ValueError(f'{name} finds other neighbours than {bench.ENGINE}')
  return rates


@contextlib.contextmanager
def serving(command: Sequence[str], address: str):
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      if process.stdout.readline() != 'ready\n':
        raise ValueError(f'{command[1]} does not serve')
      yield
    finally:
      process.kill()
      pathlib.Path(address).unlink(missing_ok=True)


def asked(command: Sequence[str], shape: Shape) -> tuple[float, dict]:
  """Answers a second that clients get, and the ids of the first ones."""
  processes = [
    subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for _ in range(shape.clients)
  ]
  with contextlib.ExitStack() as stack:
    for process in processes:
      stack.enter_context(process)
      stack.callback(process.kill)
    for process in processes:
      if process.stdout.readline() != 'ready\n':
        raise ValueError(f'a client ended before it asked: {" ".join(command)}')
    for process in processes:
      process.stdin.write(f'{shape.seconds}\n')
      process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for process in processes]
  first = {}
  for answer in answers:
    first |= answer['first']
  return sum(a['answered'] for a in answers) / shape.seconds, first
