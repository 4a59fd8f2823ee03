"""Stores of tokens: layout, resuming, many builders; with a toy for a model."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import build_test
from tests import index_test
from tests import toy_keys
from tttnn.datastore import begun
from tttnn.datastore import build
from tttnn.datastore import client
from tttnn.datastore import device_store
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib

run = toy_keys.run
ROOT = pathlib.Path(build.__file__).parents[2]
TEXTS = [
  ['', 'a text of some length, in words', 'b', 'ünï'],
  [],
  ['one', '', '', 'two and more', 'eight by', 'eight by8', ''],
]


def write_corpus(directory, texts=TEXTS):
  paths = []
  for i, some in enumerate(texts):
    path = directory / f'{i}.jsonl'
    path.write_text(''.join(json.dumps({'text': t}) + '\n' for t in some))
    paths.append(str(path))
  return paths


def expected(texts=TEXTS, context=8, start=256):
  """[(key, value, (shard, line))] of all tokens, by a loop over them."""
  found = []
  for shard, some in enumerate(texts):
    for line, text in enumerate(some):
      ids = list(text.encode())
      for at, value in enumerate(ids):
        first = at // context * context
        if first:
          inputs = ids[min(first + context, len(ids)) - 1 - context : at]
        else:
          inputs = [start, *ids[:at]]
        found.append((toy_keys.key(inputs), value, (shard, line)))
  return found


@pytest.mark.parametrize('block', [1, 6, 1000])
def test_a_store_holds_every_token_with_its_key(tmp_path, block):
  seen = []
  store = run(
    tmp_path / 's',
    write_corpus(tmp_path),
    block=block,
    progress=lambda done, total: seen.append((done, total)),
  )
  entries = expected()
  count = len(entries)
  assert count == sum(len(t.encode()) for some in TEXTS for t in some)
  assert len(store.tokens) == store.manifest.rows == count
  assert store.corpus is None
  assert store.manifest.kind == 'tokens'
  assert store.manifest.sequences == 11 and store.manifest.malformed == 0
  assert [shard.rows for shard in store.manifest.shards][1] == 0
  ids = np.arange(count)
  keys = np.stack([key for key, _, _ in entries])
  np.testing.assert_array_equal(store.gather(ids), keys.astype(np.float32))
  values = store.tokens.values(ids)
  assert values.dtype == np.int32
  assert values.tolist() == [value for _, value, _ in entries]
  assert seen[-1] == (count, count)
  assert [done for done, _ in seen] == sorted(done for done, _ in seen)
  names = {path.name for path in (tmp_path / 's').iterdir()}
  assert names == {'manifest.json', 'values', 'sequences', 'vectors', 'index'}
  for i, some in enumerate(TEXTS):
    values = np.load(tmp_path / f's/values/{i:02}.npy')
    sequences = np.load(tmp_path / f's/sequences/{i:02}.npy')
    assert (values.dtype, sequences.dtype) == (np.int32, np.int64)
    ends = np.cumsum([0] + [len(text.encode()) for text in some])
    assert sequences.tolist() == ends.tolist()
    assert bytes(values.astype(np.uint8)).decode() == ''.join(some)


def test_pointers_stay_within_a_text(tmp_path):
  store = run(tmp_path / 's', write_corpus(tmp_path))
  tokens, entries = store.tokens, expected()
  count = len(entries)
  following = [
    i + 1 if i + 1 < count and entries[i + 1][2] == entries[i][2] else -1
    for i in range(count)
  ]
  assert following.count(-1) == sum(bool(text) for t in TEXTS for text in t)
  found = tokens.next_ids(np.arange(count))
  assert found.dtype == np.int64 and found.tolist() == following
  ids = np.array([[3, -1], [count - 1, 0]])
  assert tokens.next_ids(ids).tolist() == [[4, -1], [-1, 1]]
  values = [value for _, value, _ in entries]
  assert tokens.values(ids).tolist() == [[values[3], -1], [values[-1], 97]]
  for id_ in range(count):
    same = [i for i in range(id_) if entries[i][2] == entries[id_][2]]
    for size in (0, 1, 5, 100):
      before = [values[i] for i in same][-size:] if size else []
      assert tokens.context(id_, size).tolist() == before
  for wrong in (count, -2):
    with pytest.raises(ValueError, match=f'entry {wrong} of .* {count} entr'):
      tokens.values([0, wrong])
    with pytest.raises(ValueError, match=f'entry {wrong}'):
      tokens.next_ids(wrong)
    with pytest.raises(ValueError, match=f'entry {wrong}'):
      tokens.context(wrong, 1)
  with pytest.raises(ValueError, match='id -1 stands for no entry'):
    tokens.context(-1, 1)
  first = store.manifest.shards[0].rows
  part = store_lib.open(store.directory, shards=(2,))
  assert part.tokens.values(first) == values[first]
  with pytest.raises(ValueError, match='shard 0 are not on this host'):
    part.tokens.next_ids([first, first - 1])


def test_two_builds_are_the_same_bytes(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    run(tmp_path / name / 's', write_corpus(tmp_path / name), index='SQfp16')
  assert build_test.contents(tmp_path / 'a') == build_test.contents(
    tmp_path / 'b'
  )


# As that of `build_test`, which says what a step is.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests import toy_keys

corpus, work = sys.argv[1:]
paths = [os.path.join(corpus, name) for name in ('0.jsonl', '1.jsonl.gz')]
EVENTS = 'open', 'os.rename', 'os.remove', 'os.mkdir'


def attempt(store, die_at):
  child = os.fork()
  if child:
    return os.waitpid(child, 0)[1]
  steps = 0

  def step(number=0):
    nonlocal steps
    steps += 1
    if steps == die_at:
      os.kill(os.getpid(), signal.SIGKILL)

  def hook(event, args):
    if event in EVENTS and str(args[0]).startswith(work):
      if event != 'open' or args[1] not in ('r', 'rb'):
        step()

  sys.addaudithook(hook)
  toy_keys.run(store, paths, toy_keys.Toy(step), block=20)
  os._exit(0)


die_at = 1
while attempt(os.path.join(work, str(die_at)), die_at):
  assert attempt(os.path.join(work, str(die_at)), -1) == 0
  die_at += 1
again = 1
while attempt(os.path.join(work, 'again'), again % 5 + 18):
  again += 1
"""


@pytest.mark.slow
def test_killed_anywhere_and_resumed_is_the_same_bytes(tmp_path):
  corpus, work = tmp_path / 'corpus', tmp_path / 'work'
  corpus.mkdir()
  work.mkdir()
  plain, other = write_corpus(corpus, [TEXTS[0], TEXTS[2][:4]])
  run(work / 'whole', [plain, build_test.compress(other)], block=20)
  script = KILLED.format(root=str(ROOT))
  command = [sys.executable, '-c', script, str(corpus), str(work)]
  subprocess.run(command, check=True, timeout=120)
  whole = build_test.contents(work / 'whole')
  directories = sorted(work.iterdir())
  assert len(directories) > 25
  for directory in directories:
    assert build_test.contents(directory) == whole, directory


def test_what_is_there_is_not_made_again(tmp_path):
  paths = write_corpus(tmp_path)
  whole = build_test.contents(run(tmp_path / 'whole', paths).directory)
  blocks = len([name for name in whole if '/c/' in name])
  calls = []

  def stop(number):
    calls.append(number)
    if len(calls) == 9:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 's', paths, toy_keys.Toy(stop))
  again = []
  model = toy_keys.Toy(again.append)
  model.encode = None  # What was tokenized stays.
  store = run(tmp_path / 's', paths, model)
  assert len(again) == blocks - 8
  assert build_test.contents(store.directory) == whole
  run(tmp_path / 's', paths, toy_keys.Toy(again.append))
  assert len(again) == blocks - 8


# Three processes, each a shard, at the same time.
PARTS = """
import os, sys
sys.path.insert(0, {root!r})
from tests import toy_keys
from tttnn.datastore import begun

store, *paths = sys.argv[1:]
children = []
for shard in range(3):
  child = os.fork()
  if not child:
    part = begun.Part(shard)
    assert toy_keys.run(store, paths, part=part) is None
    os._exit(0)
  children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_three_processes_write_what_one_writes(tmp_path):
  texts = [TEXTS[0], TEXTS[2], ['again', 'and again']]
  paths = write_corpus(tmp_path, texts)
  whole = run(tmp_path / 'whole', paths)
  script = PARTS.format(root=str(ROOT))
  command = [sys.executable, '-c', script, str(tmp_path / 's'), *paths]
  subprocess.run(command, check=True, timeout=120)
  assert not (tmp_path / 's/manifest.json').exists()

  def nothing(number):
    raise AssertionError(number)

  store = run(tmp_path / 's', paths, toy_keys.Toy(nothing))
  assert build_test.contents(store.directory) == build_test.contents(
    whole.directory
  )


def test_parts_are_whole_files_and_do_not_overlap(tmp_path):
  paths = write_corpus(tmp_path)
  for part in (begun.Part(3), begun.Part(0, 1), begun.Part(-1, 0, 2)):
    with pytest.raises(ValueError, match='is one of its 3 files'):
      run(tmp_path / 's', paths, part=part)

  def inside(number):
    with pytest.raises(ValueError, match='another process is building'):
      run(tmp_path / 's', paths, part=begun.Part(0))
    run(tmp_path / 's', paths, part=begun.Part(2))

  run(tmp_path / 's', paths, toy_keys.Toy(inside), part=begun.Part(0))


@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_a_key_that_does_not_fit_is_named(tmp_path, value):
  paths = write_corpus(tmp_path)

  class Spoiled(toy_keys.Toy):
    def blocks(self, blocks, rows):
      for number, keys in enumerate(super().blocks(blocks, rows)):
        if number == 7:  # The first one of shard 2: tokens 3.. are of line 3.
          keys[4, 2] = value
        yield keys

  first = sum(len(text.encode()) for text in TEXTS[0])
  assert -(-first // 6) == 7
  message = r'2\.jsonl:4: the key of token 1 is not finite'
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', paths, Spoiled())


@pytest.mark.parametrize(
  'keys, message',
  [
    (np.zeros((5, 4), np.float16), r'float16 \[5, 4\], not float16 \[6, 4\]'),
    (np.zeros((6, 3), np.float16), r'float16 \[6, 3\], not float16 \[6, 4\]'),
    (np.zeros((6, 4), np.float32), r'float32 \[6, 4\], not float16 \[6, 4\]'),
  ],
)
def test_keys_of_another_shape_are_refused(tmp_path, keys, message):
  class Wrong(toy_keys.Toy):
    def blocks(self, blocks, rows):
      for windows in blocks:
        list(windows)
        yield keys

  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', write_corpus(tmp_path), Wrong())


def test_malformed_lines_are_texts_without_tokens(tmp_path):
  paths = write_corpus(tmp_path)
  with open(paths[2], 'a') as file:
    file.write('{"text": 3}\n{"text": "last"}\n\n')
  with pytest.raises(ValueError, match=r'2\.jsonl:8: "text" must be a string'):
    run(tmp_path / 's', paths)
  store = run(tmp_path / 's', paths, on_error='skip')
  assert [shard.malformed for shard in store.manifest.shards] == [0, 0, 2]
  assert [shard.sequences for shard in store.manifest.shards] == [4, 0, 10]
  last = len(store.tokens) - 1
  assert bytes(store.tokens.context(last, 9).tolist()) == b'las'
  with pytest.raises(ValueError, match='2 malformed lines were left out'):
    run(tmp_path / 's', paths)


def test_a_begun_store_does_not_forget_malformed_lines(tmp_path):
  paths = write_corpus(tmp_path, [['a'], ['b', 'c']])
  pathlib.Path(paths[0]).write_text('{"text": "a"}\nno\n')
  for shard in range(2):
    run(tmp_path / 's', paths, part=begun.Part(shard), on_error='skip')
  with pytest.raises(ValueError, match=r'0\.jsonl:2: malformed JSON'):
    run(tmp_path / 's', paths)
  store = run(tmp_path / 's', paths, on_error='skip')
  assert store.manifest.malformed == 1


@pytest.mark.parametrize(
  'texts, changed, message',
  [
    ([['', ''], []], {}, 'has no tokens: 2 lines in 2 files'),
    (TEXTS, {'dtype': 'float32'}, 'keys are float16 .* not float32'),
    (TEXTS, {'metric': 'cosine'}, 'under the metric cosine'),
    (TEXTS, {'index': 'IVF128,Flat'}, 'cannot be trained on'),
    (TEXTS, {'index': 'PQ3'}, "index 'PQ3' with dim 4"),
    (TEXTS, {'block': 0}, 'block 0 must be positive'),
  ],
)
def test_wrong_arguments(tmp_path, texts, changed, message):
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', write_corpus(tmp_path, texts), **changed)


@pytest.mark.parametrize(
  'name, value', [('kind', 'mine'), ('dim', 5), ('computed', 'bfloat16')]
)
def test_another_model_is_refused(tmp_path, name, value):
  paths = write_corpus(tmp_path)
  run(tmp_path / 's', paths)
  model = toy_keys.Toy()
  setattr(model, name, value)
  key = 'keys' if name == 'kind' else name
  there = getattr(toy_keys.Toy, name)
  with pytest.raises(ValueError, match=f'{key} is {there!r} there, {value!r}'):
    run(tmp_path / 's', paths, model)


def test_documents_and_tokens_are_told_apart(tmp_path):
  paths = write_corpus(tmp_path)
  tokens = run(tmp_path / 'tokens', paths)
  documents = build_test.run(tmp_path / 'documents', paths)
  with pytest.raises(ValueError, match="kind is 'tokens' there, 'documents'"):
    build_test.run(tmp_path / 'tokens', paths)
  with pytest.raises(ValueError, match="kind is 'documents' there, 'tokens'"):
    run(tmp_path / 'documents', paths)
  message = 'is a store of tokens, where one of documents is needed'
  with pytest.raises(ValueError, match=message):
    store_lib.open(tokens.directory, kind='documents')
  with pytest.raises(ValueError, match=message):
    store_lib.check_embedder(tokens.info(), 'toy', 4)
  with pytest.raises(ValueError, match='is a store of documents, where one'):
    store_lib.check_embedder(documents.info(), 'me', 8, 'toy')
  store_lib.check_embedder(documents.info(), 'me', 8)
  # What was there before tokens were is there still, and nothing else.
  manifest = json.loads((documents.directory / 'manifest.json').read_text())
  names = 'version embedder dim metric dtype block seed keep_vectors imported'
  assert ' '.join(manifest) == f'{names} shards'
  names = 'path bytes digest text rows malformed left_out'
  assert ' '.join(manifest['shards'][0]) == names


def test_search_is_brute_force_here_in_a_server_and_on_devices(tmp_path):
  store = run(tmp_path / 's', write_corpus(tmp_path))
  keys = np.stack([key for key, _, _ in expected()]).astype(np.float32)
  rng = np.random.default_rng(0)
  queries = np.concatenate([keys[:3], rng.normal(size=(5, 4)) * 9])
  queries = queries.astype(np.float32)
  distances, ids = index_test.brute_force(keys, queries, 7)
  engine = engine_lib.Engine(store, threads=1)
  on_device = device_store.StoreIndex(store)
  with client.start(store.directory, threads=1) as served:
    for searcher in (engine, served, on_device):
      found = searcher.search(queries, 7)
      np.testing.assert_array_equal(found[1], ids)
      np.testing.assert_array_equal(found[0], distances)
    for searcher in (served, on_device):
      assert searcher.info['rows'] == len(keys)
      searcher.check('toy', 4, 'toy')
      with pytest.raises(ValueError, match='with model toy .* from you'):
        searcher.check('you', 4, 'toy')
      with pytest.raises(ValueError, match="holds keys 'toy', .* 'mine'"):
        searcher.check('toy', 4, 'mine')
      with pytest.raises(ValueError, match='is a store of tokens'):
        searcher.check('toy', 4)


def test_indexes_stand_beside_each_other(tmp_path):
  paths = write_corpus(tmp_path, [['some words ' * 9, 'others'], ['z' * 90]])
  flat = run(tmp_path / 's', paths, keep_vectors=False)
  assert not (flat.directory / 'vectors').exists()
  ivf = run(
    tmp_path / 's', paths, index='IVF2,Flat;nprobe=2', keep_vectors=False
  )
  queries = flat.gather([0, 50, 100])
  for store in (flat, ivf):
    engine = engine_lib.Engine(store, threads=1)
    assert not engine.search(queries, 1)[0].any()
  np.testing.assert_array_equal(ivf.tokens.values([9, 110]), [115, 122])


def test_damaged_stores_are_refused_by_name(tmp_path):
  whole = run(tmp_path / 'whole', write_corpus(tmp_path)).directory
  for name in ('values/02.npy', 'sequences/02.npy'):
    copy = shutil.copytree(whole, tmp_path / name.replace('/', ''))
    os.truncate(copy / name, (copy / name).stat().st_size - 4)
    with pytest.raises(ValueError, match=f'{name} cannot be read'):
      store_lib.open(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=name):
      store_lib.open(copy)
    np.save(copy / name, np.arange(3.0))
    with pytest.raises(ValueError, match=r'holds float64 \[3\], not int'):
      store_lib.open(copy)
  copy = shutil.copytree(whole, tmp_path / 'sequences')
  shutil.copy(copy / 'sequences/00.npy', copy / 'sequences/02.npy')
  with pytest.raises(ValueError, match=r'02\.npy goes from .* values'):
    store_lib.open(copy)
  shutil.copy(copy / 'values/00.npy', copy / 'values/02.npy')
  with pytest.raises(ValueError, match='the manifest says .* of 7'):
    store_lib.open(copy)


def test_the_corpus_is_not_needed_any_more(tmp_path):
  (tmp_path / 'a').mkdir()
  paths = write_corpus(tmp_path / 'a')
  store = run(tmp_path / 's', paths)
  before = store.fingerprint()
  shutil.rmtree(tmp_path / 'a')
  assert store_lib.open(tmp_path / 's').fingerprint() == before


def test_a_corpus_that_changes_while_it_is_read_is_noticed(tmp_path):
  paths = write_corpus(tmp_path)

  class Changes(toy_keys.Toy):
    def encode(self, texts):
      with open(paths[0], 'a') as file:
        file.write('{"text": "more"}\n')
      return super().encode(texts)

  with pytest.raises(ValueError, match=r'0\.jsonl has \d+ bytes but had'):
    run(tmp_path / 's', paths, Changes())
