"""Plans against faiss's own files, numbers worked out by hand, and the job."""

import dataclasses
import json
import os
import subprocess
import sys

import faiss
import numpy as np
import pytest

from configs import base
from tests import tiny
from tttnn import jobs
from tttnn.datastore import index_types
from tttnn.datastore import plan
from tttnn.datastore import rates as rates_lib
from tttnn.reporting import planned

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DIM, LISTS, PQ = 64, 8, 8
PILE = plan.Corpus(210_000_000, 1024, 30, 6200.0)
HOSTS = plan.Hosts(ram=256e9, disk_rate=3e9)
RATES = plan.Rates(
  memory=20e9,
  product=100e9,
  codes={'SQfp16': 15e9, 'SQ8': 5e9, 'PQ': 2e9, 'RaBitQ': 8e9},
)
SPECS = [i.spec for i in index_types.indexes(DIM, lists=LISTS, pq=PQ)]


@pytest.fixture(autouse=True)
def one_thread():
  faiss.omp_set_num_threads(1)


def find(spec, dim=1024, lists=32768, pq=64):
  found = index_types.indexes(dim, lists=lists, pq=pq)
  return next(i for i in found if i.spec == spec)


def make_plan(**changes):
  fields = {
    'corpus': PILE,
    'hosts': HOSTS,
    'rates': RATES,
    'accelerators': plan.Accelerators(8, 400e12),
    'embedding': plan.Embedding(303_000_000, 512.0),
    'queries': 256,
    'nprobe': 32,
    'neighbors': 50,
  }
  return plan.Plan(**fields | changes)


def _train_little(index):
  """Sizes do not depend on how well it is trained."""
  ivf = faiss.downcast_index(faiss.try_extract_index_ivf(index))
  if hasattr(ivf, 'pq'):
    ivf.do_polysemous_training = False
  if hasattr(index, 'chain'):
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    transform.niter = transform.niter_pq = transform.niter_pq_0 = 1


@pytest.mark.parametrize('spec', SPECS)
def test_bytes_are_those_of_faiss(spec):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(1500, DIM)).astype(np.float32)
  index = faiss.index_factory(DIM, spec)
  _train_little(index)
  index.train(vectors[:500])
  empty = len(faiss.serialize_index(index))
  index.add(vectors[:500])
  few = len(faiss.serialize_index(index))
  index.add(vectors[500:])
  many = len(faiss.serialize_index(index))
  ours = find(spec, DIM, LISTS, PQ)
  growth = (many - few) / 1000
  if ours.codes == 'HNSW':  # Its levels are drawn.
    assert growth == pytest.approx(ours.bytes_per_vector, rel=0.01)
  else:
    assert growth == ours.bytes_per_vector
  # What is left are some hundred bytes of numbers that say what follows.
  assert 0 < empty - ours.file_bytes < 600
  ivf = faiss.try_extract_index_ivf(index)
  if ivf:
    assert (ivf.code_size, ivf.nlist) == (ours.code_bytes, ours.lists)
    table = getattr(faiss.downcast_index(ivf), 'precomputed_table', None)
    assert (table.size() * 4 if table else 0) == ours.table_bytes
  elif ours.codes != 'HNSW':
    assert index.sa_code_size() == ours.code_bytes


def test_the_table_is_made_as_long_as_faiss_makes_it():
  assert faiss.cvar.precomputed_table_max_bytes == index_types._MOST_TABLE_BYTES
  assert find('IVF32768,PQ64').table_bytes == 1 << 31
  assert not find('IVF65536,PQ64', lists=65536).table_bytes


@pytest.mark.parametrize(
  ('spec', 'per_vector', 'gigabytes'),
  [
    ('Flat', 4096, 860),
    ('SQfp16', 2048, 430),
    ('SQ8', 1024, 215),
    ('IVF32768,PQ64', 72, 15.1),
    ('OPQ64,IVF32768,PQ64', 72, 15.1),
    ('IVF32768,RaBitQ', 144, 30.2),
    ('IVF32768,SQ8', 1032, 216.7),
    ('IVF32768,PQ64,Refine(SQ8)', 1096, 15.1 + 215),
    ('IVF32768,PQ64,Refine(SQfp16)', 2120, 15.1 + 430),
    ('IVF32768,PQ64,RFlat', 4168, 15.1 + 860),
  ],
)
def test_the_pile(spec, per_vector, gigabytes):
  index = find(spec)
  assert index.bytes_per_vector == per_vector
  bytes_of_rows = PILE.documents * per_vector / 1e9
  assert bytes_of_rows == pytest.approx(gigabytes, rel=0.005)
  layout = plan.lay_out(index, PILE, HOSTS)
  assert layout.disk_bytes == pytest.approx(
    1e9 * bytes_of_rows + 30 * index.file_bytes
  )


def test_files_are_spread_whole_over_hosts():
  flat = find('Flat')  # 28.7 GB a file, eight to a host.
  layout = plan.lay_out(flat, PILE, HOSTS)
  assert (layout.hosts, layout.shards, layout.fits) == (4, 8, True)
  assert layout.ram == pytest.approx(8 * 28.67e9, rel=1e-3)
  two = dataclasses.replace(HOSTS, count=2)
  layout = plan.lay_out(flat, PILE, two)
  assert (layout.hosts, layout.shards, layout.fits) == (2, 15, False)
  small = dataclasses.replace(HOSTS, ram=16e9)
  layout = plan.lay_out(flat, PILE, small)
  assert (layout.hosts, layout.shards, layout.fits) == (30, 1, False)
  with pytest.raises(ValueError, match='hosts=31 for 30 files'):
    plan.lay_out(flat, PILE, dataclasses.replace(HOSTS, count=31))


def seconds(spec, queries, nprobe=32, corpus=PILE, hosts=HOSTS):
  index = find(spec)
  layout = plan.lay_out(index, corpus, hosts)
  return plan.search_seconds(
    index, layout, corpus, RATES, hosts, queries=queries, nprobe=nprobe
  )


def test_exact_search_is_read_or_multiplied():
  one = dataclasses.replace(HOSTS, count=1, ram=1e12)
  # 4.3e11 operations a query, and 860 GB to read.
  assert seconds('Flat', 100, hosts=one) == pytest.approx(430, rel=1e-3)
  assert seconds('Flat', 1, hosts=one) == pytest.approx(43, rel=1e-3)
  # The same from disk, and on 30 hosts side by side.
  disk = dataclasses.replace(one, ram=1e9)
  assert seconds('Flat', 1, hosts=disk) == pytest.approx(860 / 3, rel=1e-3)
  many = dataclasses.replace(one, count=30)
  assert seconds('Flat', 100, hosts=many) == pytest.approx(430 / 30, rel=1e-3)


def test_lists_are_read_in_part():
  # 2 x 32768 x 1024 operations a file, and one vector in 1024, 64 bytes each.
  expected = 30 * 2 * 32768 * 1024 / 100e9 + 210e6 / 1024 * 64 / 2e9
  assert seconds('IVF32768,PQ64', 1) == pytest.approx(expected, rel=1e-6)
  everything = seconds('IVF32768,PQ64', 1, nprobe=32768)
  assert everything == pytest.approx(0.020133 + 210e6 * 64 / 2e9, rel=1e-4)
  # From disk one query reads one vector in 1024, many read nearly all.
  disk = dataclasses.replace(HOSTS, ram=1e9, count=1)
  one = 210e6 * 64 / 1024 / 3e9
  assert seconds('IVF32768,PQ64', 1, hosts=disk) >= one
  with pytest.raises(ValueError, match='nprobe=32769 of 32768'):
    seconds('IVF32768,PQ64', 1, nprobe=32769)
  assert seconds('HNSW32', 1) is None


def test_building():
  # 65,536 lists: 2.8e16 operations, 78 h at 100 GFLOP/s, 70 s at 400 TFLOP/s.
  assert plan.assign_flops(65536, PILE) == pytest.approx(2.8e16, rel=0.01)
  index = find('IVF65536,SQ8', lists=65536)
  host = plan.build_seconds(index, PILE, 100e9, 3e9)
  train = 2 * 10 * 64 * 65536**2 * 1024 / 100e9
  assert (host - train) / 3600 == pytest.approx(78, rel=0.01)
  moved = (860.16e9 + 216.72e9 + 30 * index.file_bytes) / 3e9
  fast = plan.build_seconds(index, PILE, 100e9, 3e9, 400e12)
  assert fast == pytest.approx(moved + train / 4000, rel=1e-3)
  assert fast < host / 100
  # Rotating and finding codes is left to the host.
  pq, opq = find('IVF32768,PQ64'), find('OPQ64,IVF32768,PQ64')
  assert opq.encode_flops - pq.encode_flops == 2 * 1024**2
  encode = 210e6 * 2 * (256 + 1024) * 1024 / 100e9
  opq_seconds = plan.build_seconds(opq, PILE, 100e9, 1e15, 1e25)
  assert opq_seconds == pytest.approx(encode, rel=1e-3)


def test_embedding():
  at = make_plan()
  flops = 2 * 303e6 * 512 * 210e6
  assert at.embed_seconds() == pytest.approx(flops / 3.2e15)
  by_rate = make_plan(embedding=plan.Embedding(1, 1.0, rate=1000.0))
  assert by_rate.embed_seconds() == pytest.approx(210e6 / 8000)
  # Never faster than the texts are read: 1.3 TB at 3 GB/s.
  fast = make_plan(embedding=plan.Embedding(1, 1.0))
  assert fast.embed_seconds() == pytest.approx(434)


def test_lists_by_size():
  # The nearest powers of two to 16 sqrt(7e6) = 42,332 and 16 sqrt(1e6).
  assert plan.default_lists(PILE) == 32768
  million = dataclasses.replace(PILE, documents=1_000_000, shards=1)
  assert plan.default_lists(million) == 16384
  # 15,000 / 39 = 384.
  few = dataclasses.replace(PILE, documents=15_000, shards=1)
  assert plan.default_lists(few) == 256
  one = dataclasses.replace(PILE, documents=1, shards=1)
  assert plan.default_lists(one) == 1
  with pytest.raises(ValueError, match='64 does not divide the 1000'):
    index_types.indexes(1000, lists=8, pq=64)
  with pytest.raises(ValueError, match='3 documents in 4 files'):
    plan.Corpus(3, 8, 4, 1.0)


def test_answers_on_the_network():
  assert plan.merge_bytes(30, 50) == 18_000
  assert plan.merge_bytes(30, 1024) == 368_640


def test_sizes_and_durations():
  assert planned.size(860.16e9) == '860 GB'
  assert planned.size(15.12e9) == '15.1 GB'
  assert planned.size(600) == '600 B'
  assert planned.size(999.9e6) == '1.0 GB'
  assert planned.duration(None) == '-'
  assert planned.duration(0.0123) == '12 ms'
  assert planned.duration(90) == '1.5 min'
  assert planned.duration(78 * 3600) == '3.2 days'


def test_every_rate_of_the_machine_is_measured():
  found = rates_lib.measure(32, 8, memory=0, product=0, cores=0)
  values = [found.memory, found.product, *found.codes.values()]
  assert all(1e6 < value < 1e15 for value in values)
  assert set(found.codes) == {
    i.codes for i in index_types.indexes(32, lists=8, pq=8)
  } - {'Flat', 'HNSW'}
  given = rates_lib.measure(32, 8, memory=5.0, product=7.0, cores=1)
  assert (given.memory, given.product) == (5.0, 7.0)


# For each key a value that must change what is said or written.
CHANGES = {
  'documents': 3000,
  'dim': 2048,
  'shards': 2,
  'text_bytes': 10.0,
  'tokens': 5.0,
  'parameters': 1000,
  'lists': 4,
  'nprobe': 3,
  'pq': 8,
  'queries': 7,
  'ram': 1e-4,
  'hosts': 1,
  'replicas': 2,
  'cores': 1000,
  'scan_rate': 1.0,
  'host_gflops': 1.0,
  'disk_rate': 1.0,
  'accelerators': 1,
  'accelerator_tflops': 1.0,
  'utilization': 0.1,
  'embed_rate': 9.0,
}


@pytest.fixture
def fixed_rates(monkeypatch):
  """Measured rates are the same at every call."""
  monkeypatch.setattr(rates_lib, 'read_rate', lambda: 20e9)
  monkeypatch.setattr(rates_lib, 'product_rate', lambda dim: 100e9)
  monkeypatch.setattr(rates_lib, 'code_rate', lambda spec, dim: 2e9)


def make_config(**options):
  config = base.get_config()
  config.job = 'plan'
  config.plan.documents = 2000
  config.plan.ram = 1e-3
  for key, value in options.items():
    config.plan[key] = value
  return config


def said(capsys, config, workdir=''):
  capsys.readouterr()
  jobs.run(config, workdir)
  return capsys.readouterr().out


def test_every_key_has_an_effect(fixed_rates, capsys):
  assert set(CHANGES) == set(base.get_config().plan)
  usual = said(capsys, make_config())
  assert said(capsys, make_config()) == usual
  for key, value in CHANGES.items():
    assert said(capsys, make_config(**{key: value})) != usual, key
  for section, key, value in (
    ('store', 'dtype', 'float16'),
    ('retrieval', 'neighbors', 7),
  ):
    config = make_config()
    config[section][key] = value
    assert said(capsys, config) != usual, key


def test_files_say_what_is_printed(fixed_rates, capsys, tmp_path):
  out = said(capsys, make_config(), str(tmp_path))
  written = json.loads((tmp_path / 'plan.json').read_text())
  assert written['corpus']['documents'] == 2000
  assert written['indexes'][0]['layout']['disk_bytes'] == 2000 * 4096
  page = (tmp_path / 'plan.md').read_text()
  for line in out.splitlines():
    if line.startswith('Network'):
      assert line in page
  assert '| Flat | 4,096 | 8.2 MB |' in page


def test_of_a_corpus_and_an_embedder(fixed_rates, capsys, tmp_path):
  _, embedder = tiny.write_models(str(tmp_path))
  texts = ['a' * 30, 'é' * 20, 'b' * 50]
  for name in ('a', 'b'):
    tiny.write_jsonl(tmp_path / f'{name}.jsonl', texts)
  config = make_config(documents=0)
  config.corpus.train = f'{tmp_path}/*.jsonl'
  config.embedder.path = embedder
  config.plan.pq = 2
  out = said(capsys, config, str(tmp_path / 'w'))
  found = json.loads((tmp_path / 'w' / 'plan.json').read_text())
  assert '6 documents' in out and '2 files' in out
  assert found['corpus']['text_bytes'] == 40
  assert found['embedding']['tokens'] == 10
  assert found['embedding']['parameters'] > 0
  config.embedder.max_length = 3
  said(capsys, config, str(tmp_path / 'w'))
  found = json.loads((tmp_path / 'w' / 'plan.json').read_text())
  assert found['embedding']['tokens'] == 5


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'documents': 0}, 'plan.documents=0 and corpus.train is empty'),
    ({'documents': -1}, 'plan.documents=-1'),
    ({'queries': 0}, 'plan.queries=0'),
    ({'utilization': 1.5}, 'plan.utilization=1.5'),
    ({'pq': 48}, 'plan.pq=48 does not divide the 1024'),
    ({'lists': 4000}, 'plan.lists=4000 for 2000 documents'),
    ({'shards': 4000}, '2000 documents in 4000 files'),
  ],
)
def test_impossible_plans_are_refused(fixed_rates, options, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(make_config(**options), '')


@pytest.mark.slow
def test_the_command_as_one_writes_it():
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'tttnn.main', '--config=configs/plan.py'),
      '--config.plan.documents=210_000_000',
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  assert '210,000,000 documents' in done.stdout
  assert 'Flat' in done.stdout and '860 GB' in done.stdout
