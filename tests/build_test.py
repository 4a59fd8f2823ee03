import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorstore

from tttnn.datastore import build
from tttnn.datastore import check
from tttnn.datastore import store as store_lib

DIM = 8
ROOT = pathlib.Path(build.__file__).parents[2]


def vector(text):
  seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
  return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)


def embed(texts):
  return np.stack([vector(text) for text in texts])


def write_corpus(directory, sizes=(10, 7), text='shard {} row {}'):
  paths = []
  for i, size in enumerate(sizes):
    path = directory / f'{i}.jsonl'
    with open(path, 'w') as f:
      for row in range(size):
        f.write(json.dumps({'text': text.format(i, row)}) + '\n')
    paths.append(str(path))
  return paths


def run(directory, paths, embed_=embed, **kwargs):
  arguments = {'dim': DIM, 'fingerprint': 'me', 'block': 4, 'threads': 1}
  each = functools.partial(map, embed_)
  return build.build(directory, paths, each, **split(arguments | kwargs))


def split(arguments):
  """Those of `build.build`, with those of `build.Options` under 'options'."""
  names = {field.name for field in dataclasses.fields(build.Options)}
  chosen = {key: arguments.pop(key) for key in names & set(arguments)}
  return arguments | {'options': build.Options(**chosen)}


def read_vectors(store, shard):
  path = f'{store.vectors(shard).path}/'
  spec = {'driver': 'zarr3', 'kvstore': {'driver': 'file', 'path': path}}
  return tensorstore.open(spec).result().read().result()


def contents(directory):
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_a_store_holds_what_was_embedded(tmp_path, dtype):
  paths = write_corpus(tmp_path, (10, 0, 7))
  seen = []
  calls = []

  def spy(texts):
    calls.append(list(texts))
    return embed(texts)

  store = run(
    tmp_path / 's',
    paths,
    spy,
    dtype=dtype,
    progress=lambda done, total: seen.append((done, total)),
  )
  assert [len(call) for call in calls] == [4, 4, 2, 4, 3]
  assert seen == [(4, 17), (8, 17), (10, 17), (14, 17), (17, 17)]
  assert [len(store.corpus), store.manifest.rows] == [17, 17]
  assert store.corpus.text(10) == 'shard 2 row 0'
  for i, size in ((0, 10), (2, 7)):
    expected = embed([f'shard {i} row {row}' for row in range(size)])
    expected = expected.astype(dtype)
    np.testing.assert_array_equal(read_vectors(store, i), expected)
    rows = np.array([6, 0, 3, 6])
    np.testing.assert_array_equal(store.vectors(i).gather(rows), expected[rows])
  names = {path.name for path in (tmp_path / 's').iterdir()}
  assert names == {'manifest.json', 'offsets', 'checks', 'vectors', 'index'}


def test_empty_texts_reach_the_embedder_as_a_space(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": ""}\n{"text": "a"}\n')
  calls = []

  def spy(texts):
    calls.extend(texts)
    return embed(texts)

  store = run(tmp_path / 's', [str(path)], spy)
  assert calls == [' ', 'a']
  assert store.corpus.text(0) == ''


def test_vectors_of_zeros_are_vectors(tmp_path):
  def zeros(texts):
    return np.zeros((len(texts), DIM), np.float32)

  store = run(tmp_path / 's', write_corpus(tmp_path), zeros)
  assert (store.manifest.searchable, store.vectors(0).rows) == (17, 10)
  assert not store.vectors(0).gather(np.arange(10)).any()


@pytest.mark.parametrize('spec', ['Flat', 'SQfp16', 'IVF2,Flat;nprobe=2'])
def test_two_builds_are_the_same_bytes(tmp_path, spec):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    paths = write_corpus(tmp_path / name, (60, 50))
    run(tmp_path / name / 's', paths, index=spec, min_recall=0.5)
  a, b = contents(tmp_path / 'a'), contents(tmp_path / 'b')
  assert a == b
  assert str(tmp_path) not in a['s/manifest.json'].decode()


def compress(path):
  """Replaces a file by path.gz; returns that."""
  with open(path, 'rb') as f:
    data = gzip.compress(f.read(), mtime=0)
  os.unlink(path)
  with open(f'{path}.gz', 'wb') as f:
    f.write(data)
  return f'{path}.gz'


# Builds in a child that dies at the n-th step that can be seen from Python:
# before a file is opened for writing, renamed or removed, a directory is made,
# or a block is embedded.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
import build_test

corpus, work, log = sys.argv[1:]
paths = [os.path.join(corpus, name) for name in ('0.jsonl', '1.jsonl.gz')]
EVENTS = 'open', 'os.rename', 'os.remove', 'os.mkdir'


def attempt(store, die_at):
  child = os.fork()
  if child:
    return os.waitpid(child, 0)[1]
  steps = 0

  def step():
    nonlocal steps
    steps += 1
    if steps == die_at:
      os.kill(os.getpid(), signal.SIGKILL)

  def hook(event, args):
    if event in EVENTS and str(args[0]).startswith(work):
      if event != 'open' or args[1] not in ('r', 'rb'):
        step()

  def embed(texts):
    step()
    with open(log, 'a') as f:
      f.write(store + ' ' + texts[0] + chr(10))
    return build_test.embed(texts)

  sys.addaudithook(hook)
  build_test.run(store, paths, embed, index={spec!r})
  os._exit(0)


die_at = 1
while attempt(os.path.join(work, str(die_at)), die_at):
  assert attempt(os.path.join(work, str(die_at)), -1) == 0
  die_at += 1
again = 1
while attempt(os.path.join(work, 'again'), again % 5 + 8):
  again += 1
"""


def test_killed_anywhere_and_resumed_is_the_same_bytes(tmp_path):
  spec = 'IVF2,Flat;nprobe=2'
  corpus, work = tmp_path / 'corpus', tmp_path / 'work'
  corpus.mkdir()
  work.mkdir()
  plain, other = write_corpus(corpus, (6, 3))
  run(work / 'whole', [plain, compress(other)], index=spec)
  script = KILLED.format(
    root=str(ROOT), tests=os.path.dirname(__file__), spec=spec
  )
  log = tmp_path / 'log'
  command = [sys.executable, '-c', script, str(corpus), str(work), str(log)]
  subprocess.run(command, check=True, timeout=60)
  expected = contents(work / 'whole')
  directories = sorted(work.iterdir())
  assert len(directories) > 15
  for directory in directories:
    assert contents(directory) == expected, directory
  calls = log.read_text().splitlines()
  assert len(calls) == len(set(calls)) == 3 * (len(directories) - 1)


def test_a_chunk_that_was_being_written_is_written_again(tmp_path):
  paths = write_corpus(tmp_path)
  expected = contents(run(tmp_path / 'whole', paths).directory)

  def stop_in_second_block(texts):
    if texts[0].endswith('row 4'):
      raise KeyboardInterrupt
    return embed(texts)

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 's', paths, stop_in_second_block)
  # What TensorStore leaves behind when it is killed while writing a chunk.
  (tmp_path / 's/vectors/00/c/1').mkdir()
  (tmp_path / 's/vectors/00/c/1/0.__lock').write_bytes(b'torn')
  assert contents(run(tmp_path / 's', paths).directory) == expected


def test_a_finished_build_returns_at_once(tmp_path):
  paths = write_corpus(tmp_path)
  first = run(tmp_path / 's', paths)
  again = run(tmp_path / 's', paths, embed_=None)
  assert again.fingerprint() == first.fingerprint()
  data = (tmp_path / 's/manifest.json').read_bytes()
  data += (tmp_path / 's/index/Flat/index.json').read_bytes()
  assert first.fingerprint() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'fingerprint': 'you'}, "embedder is 'me' there, 'you' now"),
    ({'dim': 9}, 'dim is 8 there, 9 now'),
    ({'dtype': 'float16'}, "dtype is 'float32' there, 'float16' now"),
    ({'block': 5}, 'block is 4 there, 5 now'),
    ({'metric': 'ip'}, "metric is 'l2' there, 'ip' now"),
    ({'keep_vectors': False}, 'keep_vectors is True there, False now'),
    ({'imported': ['x']}, 'imported is False there, True now'),
    ({'seed': 1}, 'seed is 0 there, 1 now'),
  ],
)
def test_other_arguments_are_refused(tmp_path, changed, message):
  paths = write_corpus(tmp_path)
  run(tmp_path / 's', paths)
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', paths, **changed)


def test_another_corpus_is_refused(tmp_path):
  paths = write_corpus(tmp_path)
  run(tmp_path / 's', paths)
  message = r"path is '../0.jsonl' there, '../1.jsonl' now"
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', paths[::-1])
  with pytest.raises(ValueError, match=r"\[1\].path is '.*' there, None now"):
    run(tmp_path / 's', paths[:1])
  with open(paths[1], 'a') as f:
    f.write('{"text": "more"}\n')
  with pytest.raises(ValueError, match=r'\[1\].bytes is 182 there, 199 now'):
    run(tmp_path / 's', paths)
  with pytest.raises(
    ValueError, match=r'1\.jsonl has .* the corpus has changed'
  ):
    store_lib.open(tmp_path / 's')


def test_a_begun_build_of_another_embedder_is_refused(tmp_path):
  paths = write_corpus(tmp_path)

  def die(texts):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 's', paths, die)
  with pytest.raises(ValueError, match="embedder is 'me' there, 'you' now"):
    run(tmp_path / 's', paths, fingerprint='you')
  with pytest.raises(
    ValueError, match=r'no finished store in .*manifest\.json'
  ):
    store_lib.open(tmp_path / 's')
  assert run(tmp_path / 's', paths).manifest.rows == 17


def test_a_directory_of_something_else_is_refused(tmp_path):
  paths = write_corpus(tmp_path)
  with pytest.raises(ValueError, match=r'0\.jsonl but no store'):
    run(tmp_path, paths)


def test_one_builder_at_a_time(tmp_path):
  paths = write_corpus(tmp_path)

  def build_inside(texts):
    run(tmp_path / 's', paths)
    return embed(texts)

  with pytest.raises(ValueError, match='another process is building'):
    run(tmp_path / 's', paths, build_inside)
  assert run(tmp_path / 's', paths).manifest.rows == 17


def test_a_failed_self_check_shows_numbers_and_keeps_the_vectors(tmp_path):
  paths = write_corpus(tmp_path, (300,))
  with pytest.raises(ValueError, match=r'recall@10 0\.\d+ \(at least 0.95\)'):
    run(tmp_path / 's', paths, index='IVF4,Flat')
  store = run(tmp_path / 's', paths, embed_=None, index='IVF4,Flat;nprobe=4')
  assert store.index.self_check['recall'] == 1
  fresh = run(tmp_path / 'fresh', paths, index='IVF4,Flat;nprobe=4')
  assert contents(store.directory) == contents(fresh.directory)


def test_a_finished_store_below_a_new_recall_is_refused(tmp_path):
  paths = write_corpus(tmp_path, (300,))
  run(tmp_path / 's', paths, index='IVF4,Flat', min_recall=0.1)
  with pytest.raises(ValueError, match='at least 0.95'):
    run(tmp_path / 's', paths, index='IVF4,Flat')


def test_the_self_check_notices_mixed_up_indexes(tmp_path):
  store = run(tmp_path / 's', write_corpus(tmp_path, (20, 20)))
  found = check.self_check(store, threads=1)
  assert found['recall'] == 1 and found['max_distance_error'] < 1e-6
  a, b = store.index_path(0), store.index_path(1)
  a.rename(tmp_path / 'x')
  b.rename(a)
  (tmp_path / 'x').rename(b)
  found = check.self_check(store, threads=1)
  assert found['recall'] < 0.9 and found['max_distance_error'] > 0.1


def test_rows_that_are_not_finite_are_stored_and_left_out(tmp_path):
  paths = write_corpus(tmp_path)

  def spoil(texts):
    vectors = embed(texts)
    for text, row in zip(texts, vectors, strict=True):
      if text in ('shard 0 row 3', 'shard 1 row 0'):
        row[2] = np.nan
      if text == 'shard 1 row 6':
        row[:] = -np.inf
    return vectors

  store = run(tmp_path / 's', paths, spoil)
  assert [shard.left_out for shard in store.manifest.shards] == [(3,), (0, 6)]
  assert (store.manifest.rows, store.manifest.searchable) == (17, 14)
  assert np.isnan(read_vectors(store, 0)[3, 2])
  assert np.isinf(read_vectors(store, 1)[6]).all()

  def nothing(texts):
    return np.full((len(texts), DIM), np.nan, np.float32)

  with pytest.raises(ValueError, match='not one of 17 embeddings is finite'):
    run(tmp_path / 'none', paths, nothing)


@pytest.mark.parametrize(
  'embed_, message',
  [
    (lambda texts: embed(texts)[:, 1:], r'float32 \[4, 7\], not .* \[4, 8\]'),
    (lambda texts: embed(texts)[1:], r'float32 \[3, 8\], not .* \[4, 8\]'),
    (lambda texts: embed(texts).astype(float), r'float64 \[4, 8\], not'),
    (lambda texts: 1e5 + embed(texts), r'float16 ends at 65504'),
  ],
)
def test_embeddings_that_do_not_fit_are_named(tmp_path, embed_, message):
  paths = write_corpus(tmp_path)
  with pytest.raises(ValueError, match=rf'0\.jsonl:1-4: .*{message}'):
    run(tmp_path / 's', paths, embed_, dtype='float16')


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'index': 'Falt'}, "index 'Falt' with dim 8: .*could not parse"),
    ({'index': 'PQ3'}, "index 'PQ3' with dim 8"),
    ({'index': 'Flat;nprobe=x'}, 'Flat;nprobe=x'),
    ({'index': 'IVF64,Flat'}, "'IVF64,Flat' cannot be trained on 17 vectors"),
    ({'dtype': 'bfloat16'}, 'bfloat16'),
    ({'dim': 0}, 'dim 0'),
  ],
)
def test_wrong_arguments(tmp_path, changed, message):
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', write_corpus(tmp_path), **changed)


def test_broken_corpora(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "a"}\n' * 5 + b'{"text": "\xff"}\n')
  with pytest.raises(ValueError, match=r'a\.jsonl:6: invalid UTF-8'):
    run(tmp_path / 's', [str(path)])
  path.write_bytes(b'')
  with pytest.raises(ValueError, match=r'corpus is empty: .*a\.jsonl'):
    run(tmp_path / 'empty', [str(path)])


def test_damaged_stores_are_refused_by_name(tmp_path):
  whole = run(tmp_path / 'whole', write_corpus(tmp_path)).directory
  damage = {
    'offsets/01.npy': r'offsets/01\.npy cannot be read',
    'checks/01.npy': r'checks/01\.npy cannot be read',
    'index/Flat/00.faiss': r'Flat/00\.faiss has \d+ bytes, but \d+ are needed',
    'manifest.json': r'manifest\.json is not JSON',
  }
  for name, message in damage.items():
    copy = shutil.copytree(whole, tmp_path / name.replace('/', ''))
    os.truncate(copy / name, (copy / name).stat().st_size - 4)
    with pytest.raises(ValueError, match=message):
      store_lib.open(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=name):
      store_lib.open(copy)
  copy = shutil.copytree(whole, tmp_path / 'rows')
  shutil.copy(copy / 'offsets/00.npy', copy / 'offsets/01.npy')
  with pytest.raises(ValueError, match=r'01\.npy has 10 rows, .*json 7'):
    store_lib.open(copy)
  copy = shutil.copytree(whole, tmp_path / 'version')
  text = (copy / 'manifest.json').read_text()
  new = text.replace('"version": 3', '"version": 4')
  (copy / 'manifest.json').write_text(new)
  with pytest.raises(ValueError, match='version 4, this program 3'):
    store_lib.open(copy)
  copy = shutil.copytree(whole, tmp_path / 'vectors')
  store = store_lib.open(copy)
  os.truncate(store.vectors(0).chunk_path(1), 100)
  with pytest.raises(ValueError, match='has 100 bytes, but 128 are needed'):
    store.vectors(0).gather(np.array([5]))


def test_a_store_moves_together_with_its_corpus(tmp_path):
  (tmp_path / 'a').mkdir()
  run(tmp_path / 'a/s', write_corpus(tmp_path / 'a'))
  (tmp_path / 'a').rename(tmp_path / 'b')
  assert store_lib.open(tmp_path / 'b/s').corpus.text(16) == 'shard 1 row 6'
  (tmp_path / 'link').symlink_to(tmp_path / 'b/s')
  assert store_lib.open(tmp_path / 'link').corpus.text(0) == 'shard 0 row 0'
