"""Embeddings, whatever batches, devices and blocks they are computed in."""

import functools
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import transformers

from tests import tiny
from tttnn import sharding
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import build
from tttnn.datastore import embed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# All lengths, from no token to more than the model has places for.
TEXTS = ['', *tiny.documents(40), 'dog ' * 200, 'fox']


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp('models') / 'embedder')
  torch.manual_seed(0)
  tokenizer = tokenizer_lib.train(
    tiny.documents(200), directory, vocab_size=300, kind='roberta'
  )
  model = transformers.RobertaModel(
    transformers.RobertaConfig(
      vocab_size=len(tokenizer),
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=64,
      max_position_embeddings=258,
      type_vocab_size=1,
      initializer_range=0.2,
    )
  )
  model.save_pretrained(directory)
  return directory


@pytest.fixture(scope='module')
def expected(path):
  """By PyTorch, one text at a time, without padding."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  model = transformers.RobertaModel.from_pretrained(path).eval()
  rows = []
  for text in TEXTS:
    ids = tokenizer(
      text or ' ', truncation=True, max_length=256, return_tensors='pt'
    )
    with torch.no_grad():
      rows.append(model(**ids).last_hidden_state[0].mean(dim=0).numpy())
  return np.stack(rows)


def assert_same(vectors, expected):
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_one_by_one_and_in_batches_as_pytorch(path, expected):
  assert np.linalg.norm(expected[2] - expected[3]) > 0.1
  embedder = embed.load(path)
  assert_same(embedder(TEXTS), expected)
  for rows in (1, 3):
    (vectors,) = embedder.blocks([TEXTS], rows)
    assert_same(vectors, expected)


def test_a_text_by_itself_has_the_same_bits_in_any_company(path):
  embedder = embed.load(path)
  together = embedder(TEXTS)
  for i in (0, 5, 41):
    assert (embedder([TEXTS[i]])[0] == together[i]).all()


def test_a_block_has_the_same_bits_beside_any_other(path):
  embedder = embed.load(path)
  blocks = [TEXTS[:17], TEXTS[17:20], [], TEXTS[20:]]
  all_of_them = list(embedder.blocks(iter(blocks), 2))
  assert [len(vectors) for vectors in all_of_them] == list(map(len, blocks))
  for texts, vectors in zip(blocks, all_of_them, strict=True):
    (alone,) = embedder.blocks([texts], 2)
    assert (alone == vectors).all()


@pytest.mark.parametrize('shape', [(8, 1), (2, 4)])
def test_eight_devices_as_one(path, expected, shape):
  mesh = sharding.make_mesh(*shape)
  embedder = embed.load(path, mesh=mesh)
  assert embedder.fingerprint() == embed.load(path).fingerprint()
  weight = embedder.params['encoder']['layer']['0']['intermediate']['dense']
  parts = {shard.data.shape for shard in weight['weight'].addressable_shards}
  assert parts == {(32, 64 // shape[1])}
  (vectors,) = embedder.blocks([TEXTS], 1)
  assert_same(vectors, expected)
  assert_same(embedder(TEXTS[:3]), expected[:3])


def test_batches_pad_little_and_are_of_few_shapes(path):
  embedder = embed.load(path)
  shapes = set()
  compiled = embedder._embed

  def spy(params, tokens, lengths):
    shapes.add(tokens.shape)
    return compiled(params, tokens, lengths)

  embedder._embed = spy
  texts = tiny.documents(300, seed=1)
  (vectors,) = embedder.blocks([texts], 2)
  usage = embedder.usage
  assert (usage.texts, usage.tokens) == (
    300,
    sum(map(len, embedder._encode(texts))),
  )
  in_file_order = sum(
    len(part) * max(map(len, part))
    for part in (embedder._encode(texts[i : i + 16]) for i in range(0, 300, 16))
  )
  assert usage.padding < 0.15 < 1 - usage.tokens / in_file_order
  assert len(shapes) <= 12
  assert all(rows * size <= 2 * 256 for rows, size in shapes)
  # A text's row is found again, wherever it was sorted to.
  assert_same(vectors[[7, 250]], embedder([texts[7], texts[250]]))


def test_the_next_block_is_read_while_one_is_computed(path):
  embedder = embed.load(path)
  read = []
  more = threading.Event()

  def blocks():
    for number in range(5):
      read.append(number)
      if number == 2:
        more.set()
      yield TEXTS[number : number + 2]

  found = embedder.blocks(blocks())
  next(found)
  assert more.wait(60)  # Although nobody asked for a second block.
  found.close()
  assert read == [0, 1, 2]


def test_what_reading_raises_is_raised(path):
  def blocks():
    yield TEXTS[:3]
    raise ValueError('a.jsonl:4: no text')

  with pytest.raises(ValueError, match=r'a\.jsonl:4'):
    list(embed.load(path).blocks(blocks()))


# Dies at the n-th block that is tokenized or written.
KILLED = """
import os, signal, sys
from tttnn.datastore import build, embed, shards

path, corpus, store, die_at = sys.argv[1:]
steps = 0


def counted(function):
  def step(*args):
    global steps
    steps += 1
    if steps == int(die_at):
      os.kill(os.getpid(), signal.SIGKILL)
    return function(*args)
  return step


embedder = embed.load(path)
embedder._encode = counted(embedder._encode)
shards.Block.write = counted(shards.Block.write)
options = build.Options(block=16, threads=1)
build.build(
  store, [corpus], embedder.blocks, dim=32, fingerprint='', options=options
)
"""


def _contents(directory):
  return {
    os.path.relpath(os.path.join(root, name), directory): open(
      os.path.join(root, name), 'rb'
    ).read()
    for root, _, names in os.walk(directory)
    for name in names
  }


@pytest.mark.slow
def test_killed_at_any_block_and_resumed_is_the_same_bytes(path, tmp_path):
  corpus = tiny.write_jsonl(tmp_path / 'a.jsonl', TEXTS[1:33])

  def run(store, die_at):
    command = [sys.executable, '-c', KILLED, path, corpus]
    command += [str(tmp_path / store), str(die_at)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode

  assert run('whole', 0) == 0
  whole = _contents(tmp_path / 'whole')
  assert len([name for name in whole if '/c/' in name]) == 2
  for die_at in range(1, 5):  # Two blocks, tokenized and written.
    assert run(str(die_at), die_at) == -signal.SIGKILL
    assert run(str(die_at), 0) == 0
    assert _contents(tmp_path / str(die_at)) == whole


def test_vectors_that_are_not_finite_are_counted_and_left_out(path, tmp_path):
  embedder = embed.load(path)
  table = embedder.params['embeddings']['word_embeddings']
  (fox,) = embedder._encode(['zzz'])
  table['weight'] = table['weight'].at[fox[1]].set(np.nan)
  texts = [*TEXTS[1:9], 'zzz']
  corpus = tiny.write_jsonl(tmp_path / 'a.jsonl', texts)
  make = functools.partial(embedder.blocks, rows=2)
  store = build.build(tmp_path / 's', [corpus], make, dim=32, fingerprint='')
  (shard,) = store.manifest.shards
  assert 8 in shard.left_out
  clean = [i for i in range(8) if np.isfinite(embedder([texts[i]])).all()]
  assert clean == [i for i in range(8) if i not in shard.left_out]
  assert store.manifest.searchable == len(clean) > 0
