"""Stores of tokens by real models: against a loop over texts in PyTorch."""

import dataclasses
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import base
from tests import build_test
from tests import model_keys_test
from tests import tiny
from tttnn import jobs
from tttnn.datastore import build
from tttnn.datastore import build_tokens
from tttnn.datastore import client
from tttnn.datastore import embed
from tttnn.datastore import keys as keys_lib
from tttnn.datastore import retrieve
from tttnn.datastore import store as store_lib
from tttnn.datastore import text_source
from tttnn.scoring import rolling

MODELS, KINDS = model_keys_test.MODELS, model_keys_test.KINDS
CONTEXT = model_keys_test.CONTEXT
# Of longer and of shorter texts, one as long as the context, none, one token.
TEXTS = [*tiny.documents(5, seed=4), 'x' * CONTEXT, '', 'y']


class Bytes:
  """A tokenizer for the vocabulary of `tiny.causal`."""

  eos_token_id = 0
  special_tokens_map = {}

  def __len__(self):
    return tiny.VOCABULARY

  def __call__(self, texts, **unused):
    return {'input_ids': [[1 + b % 96 for b in t.encode()] for t in texts]}

  @property
  def backend_tokenizer(self):
    return self

  def to_str(self):
    return json.dumps({'truncation': None, 'padding': None})


def plain_loop(reference, kind, tokens):
  """The keys [T, D] of a text's tokens, one rolling window at a time."""
  activations, keys, done = model_keys_test.hooked(reference, kind), [], 0
  while done < len(tokens):
    end = min(done + CONTEXT, len(tokens))
    if done:
      inputs = tokens[end - 1 - CONTEXT : end - 1]
    else:
      inputs = [0, *tokens[: end - 1]]
    keys.append(activations(inputs)[len(inputs) - (end - done) :])
    done = end
  return np.concatenate(keys)


def test_a_tokenizer_of_more_ids_is_refused():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  with pytest.raises(ValueError, match='the tokenizer has 97 ids .* 90 ids'):
    small = dataclasses.replace(model.config, vocab_size=90)
    keys_lib.Keys(
      dataclasses.replace(model, config=small), params, Bytes(), 'ffn_input'
    )


def build_store(directory, paths, keys, window=0, stride=0, **kwargs):
  chosen = {'dtype': 'float16', 'block': 100, 'threads': 1} | kwargs
  chosen = build_test.split(chosen)
  on_error = chosen['options'].on_error
  source = text_source.Texts(keys, on_error, window=window, stride=stride)
  return build_tokens.build(directory, paths, source, keys, **chosen)


@pytest.mark.parametrize('architecture', MODELS)
@pytest.mark.parametrize('kind', KINDS)
def test_a_store_is_a_plain_loop_over_documents(tmp_path, architecture, kind):
  model, params, reference = tiny.causal(architecture, CONTEXT)
  paths = [
    tiny.write_jsonl(tmp_path / '0.jsonl', TEXTS[:3]),
    tiny.write_jsonl(tmp_path / '1.jsonl', TEXTS[3:]),
  ]
  keys = keys_lib.Keys(model, params, Bytes(), kind)
  store = build_store(tmp_path / 's', paths, keys)
  tokens = Bytes()(TEXTS)['input_ids']
  expected = np.concatenate(
    [plain_loop(reference, kind, ids) for ids in tokens if ids]
  )
  assert store.manifest.rows == len(expected) == sum(map(len, tokens))
  found = store.gather(np.arange(len(expected)))
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
  flat = [id_ for ids in tokens for id_ in ids]
  assert store.tokens.values(np.arange(len(flat))).tolist() == flat
  # One to the right: what a key's state has read last stands before its value.
  entry = len(tokens[0]) + 5
  *_, last = store.tokens.context(entry, 5)
  alone = model_keys_test.hooked(reference, kind)([0, *tokens[1][:5]])
  assert (last, flat[entry]) == (tokens[1][4], tokens[1][5])
  np.testing.assert_allclose(found[entry], alone[-1], rtol=2e-3, atol=2e-3)


def test_a_key_hardly_depends_on_its_company():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  rng = np.random.default_rng(0)
  windows = [
    window
    for size in (70, 1, 32, 5, 200)
    for window in rolling.windows(
      rng.integers(1, tiny.VOCABULARY, size).tolist(), CONTEXT, 0
    )
  ]
  mesh = jax.make_mesh(
    (2, 1), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  whole = keys_lib.Keys(model, params, Bytes(), 'ffn_input')
  spread = keys_lib.Keys(model, params, Bytes(), 'ffn_input', mesh)
  assert whole.fingerprint() == spread.fingerprint()
  (together,) = whole.blocks([windows])
  assert together.shape == (308, 32) and together.dtype == np.float16
  ways = {
    'alone': whole.blocks([window] for window in windows),
    'few': whole.blocks([windows], rows=2),
    'mesh': spread.blocks([windows[:4], windows[4:]], rows=3),
  }
  for name, way in ways.items():
    np.testing.assert_allclose(
      np.concatenate(list(way)), together, rtol=2e-3, atol=1e-3, err_msg=name
    )
  assert whole.usage.tokens == 3 * 308 and 0 < whole.usage.padding < 1


@pytest.mark.parametrize(
  'bias, stored', [(65503, 65504), (-65503, -65504), (65504, None), (np.nan, 0)]
)
def test_keys_end_where_float16_does(tmp_path, bias, stored):
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  params = jax.tree.map(np.array, params)
  params['h']['1']['ln_2']['weight'][7] = 0
  params['h']['1']['ln_2']['bias'][7] = bias
  path = tiny.write_jsonl(tmp_path / 'a.jsonl', ['', 'ab'])
  keys = keys_lib.Keys(model, params, Bytes(), 'ffn_input')
  if stored:
    store = build_store(tmp_path / 's', [path], keys)
    assert store.gather([0, 1])[:, 7].tolist() == [stored, stored]
    return
  message = r'a\.jsonl:2: the key of token 0 is not finite, or holds 65504'
  with pytest.raises(ValueError, match=message):
    build_store(tmp_path / 's', [path], keys)


def test_interrupted_and_resumed_is_the_same_bytes(tmp_path):
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  paths = [
    tiny.write_jsonl(tmp_path / '0.jsonl', TEXTS[:4]),
    tiny.write_jsonl(tmp_path / '1.jsonl', TEXTS[4:]),
  ]
  keys = keys_lib.Keys(model, params, Bytes(), 'ffn_input')
  whole = build_store(tmp_path / 'whole', paths, keys)

  def stop(done, total):
    if done > 300:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    build_store(tmp_path / 's', paths, keys, progress=stop)
  before = keys.usage.tokens
  store = build_store(tmp_path / 's', paths, keys)
  assert keys.usage.tokens - before < store.manifest.rows - 300
  assert build_test.contents(store.directory) == build_test.contents(
    whole.directory
  )


@pytest.fixture(scope='module')
def job(tmp_path_factory):
  """The config of a build of tokens, and what it is to print first."""
  directory = tmp_path_factory.mktemp('tokens')
  lm, embedder = tiny.write_models(str(directory))
  tiny.write_jsonl(directory / '0.jsonl', tiny.documents(8, seed=1))
  tiny.write_jsonl(directory / '1.jsonl', [*tiny.documents(4, seed=2), ''])
  config = base.get_config()
  config.job = 'build'
  config.corpus.train = f'{directory}/*.jsonl'
  config.model.path = lm
  config.embedder.path = embedder
  config.store.path = f'{directory}/store'
  config.store.key = 'ffn_input'
  config.build.block = 500
  return config


def changed(config, **values):
  config = config.copy_and_resolve_references()
  for name, value in values.items():
    section, leaf = name.split('__')
    config[section][leaf] = value
  return config


def test_the_job_builds_what_a_server_serves(job, tmp_path, capsys):
  estimated = job.copy_and_resolve_references()
  estimated.dry_run = True
  jobs.run(estimated, str(tmp_path))
  shown = capsys.readouterr().out
  assert 'tokens' in shown and 'estimated time' in shown
  # A part, and then all of it.
  part = changed(job, build__shard=1)
  jobs.run(part, str(tmp_path))
  assert 'build without build.shard' in capsys.readouterr().out
  jobs.run(job, str(tmp_path))
  shown = capsys.readouterr().out
  store = store_lib.open(job.store.path)
  assert f'{store.manifest.rows:,} tokens of 13 documents' in shown
  assert 'tokens/s' in shown and 'recall@10' in shown
  manifest = store.manifest
  assert (manifest.keys, manifest.computed) == ('ffn_input', 'float32')
  keys = keys_lib.load(job.model.path, 'ffn_input')
  queries = store.gather([3, 40, 700])
  with client.start(job.store.path, threads=1) as search:
    search.check(keys.fingerprint(), keys.dim, keys.kind)
    distances, ids = search.search(queries, 1)
    assert not distances.any()
    assert store.tokens.values(ids).shape == (3, 1)
    embedder = embed.load(job.embedder.path)
    with pytest.raises(ValueError, match='is a store of tokens'):
      search.check(embedder.fingerprint(), embedder.dim)
    other = keys_lib.load(job.model.path, 'final_hidden')
    with pytest.raises(ValueError, match="'ffn_input', .* 'final_hidden'"):
      search.check(other.fingerprint(), other.dim, other.kind)
  with (
    pytest.raises(
      ValueError, match='a store of tokens, where one of documents'
    ),
    retrieve.connect(job.store.path, embedder),
  ):
    pass


@pytest.mark.parametrize(
  'values, message',
  [
    ({'model__path': ''}, 'model.path is empty, and store.key needs it'),
    ({'store__key': 'ffn'}, "a gpt2 has no keys 'ffn'"),
    ({'store__metric': 'cosine'}, 'under the metric cosine'),
    ({'build__begin': 2}, 'a part of a store of tokens is one of its 2 files'),
    ({'build__import_index': 'README.md'}, 'leaves nothing to embed in ffn_in'),
  ],
)
def test_wrong_settings(job, tmp_path, values, message):
  config = changed(job, store__path=f'{tmp_path}/s', **values)
  with pytest.raises(ValueError, match=message):
    jobs.run(config, str(tmp_path))


@pytest.mark.slow
def test_main_builds_and_serves(job, tmp_path):
  main = [sys.executable, '-m', 'tttnn.main']
  root = build.__file__.removesuffix('/tttnn/datastore/build.py')
  store, address = f'{tmp_path}/s', f'{tmp_path}/socket'
  subprocess.run(
    [
      *main,
      '--config=configs/build.py',
      f'--workdir={tmp_path}/work',
      f'--config.corpus.train={job.corpus.train}',
      f'--config.model.path={job.model.path}',
      '--config.store.key=ffn_output',
      f'--config.store.path={store}',
    ],
    check=True,
    cwd=root,
  )
  command = [
    *main,
    '--config=configs/serve.py',
    f'--config.store.path={store}',
    f'--config.store.address={address}',
  ]
  with subprocess.Popen(command, cwd=root) as server:
    for _ in range(600):
      if client.answers(address):
        break
      assert server.poll() is None

      time.sleep(0.1)
    opened = store_lib.open(store)
    with client.Client(address) as search:
      assert search.info['keys'] == 'ffn_output'
      ids = search.search(opened.gather([9]), 1)[1]
      assert opened.tokens.values(ids).shape == (1, 1)
      search.shutdown()
    assert server.wait(30) == 0
