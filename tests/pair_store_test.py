"""Stores of the outputs of pairs, against torch's states; and their bytes."""

import os

import jax
import numpy as np
import pytest
import torch
import transformers

from tests import build_test
from tests import pair_world
from tests import world as world_lib
from tttnn import jobs
from tttnn import pair_model
from tttnn.corpus import pair_batches
from tttnn.corpus import pairs as pairs_lib
from tttnn.datastore import begun
from tttnn.datastore import build_tokens
from tttnn.datastore import pair_keys
from tttnn.datastore import pair_source
from tttnn.datastore import store as store_lib

pytestmark = pytest.mark.usefixtures('compile_fast')
KINDS = ('ffn_input', 'ffn_output', 'final_hidden')
MODELS = ('seq2seq', 'causal')


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pairs')
  pair_world.write_models(directory)
  return directory


@pytest.fixture(scope='module', params=MODELS)
def config(request, directory):
  return pair_world.make(directory, request.param)


def tokenizer(config):
  return transformers.AutoTokenizer.from_pretrained(config.model.path)


class States:
  """What torch's model computes on its way, a pair at a time."""

  def __init__(self, path, kind):
    self.seq2seq = os.path.basename(path) == 't5'
    if self.seq2seq:
      load = transformers.T5ForConditionalGeneration.from_pretrained
      self.model = load(path, attn_implementation='eager').eval()
      decoder = self.model.decoder
      ffn, norm = (
        decoder.block[-1].layer[-1].DenseReluDense,
        (decoder.final_layer_norm),
      )
    else:
      load = transformers.GPT2LMHeadModel.from_pretrained
      self.model = load(path, attn_implementation='eager').eval()
      decoder = self.model.transformer
      ffn, norm = decoder.h[-1].mlp, decoder.ln_f
    self.seen = []
    if kind == 'ffn_input':
      ffn.register_forward_pre_hook(
        lambda module, inputs: self.seen.append(inputs[0][0])
      )
    else:
      module = ffn if kind == 'ffn_output' else norm
      module.register_forward_hook(
        lambda module, inputs, output: self.seen.append(output[0])
      )

  @torch.no_grad()
  def __call__(self, source, target):
    """(keys [U, D], log-probabilities [U, V]) before each token, float64."""
    self.seen.clear()
    if self.seq2seq:
      labels = torch.tensor([target])
      logits = self.model(torch.tensor([source]), labels=labels).logits[0]
      keys = self.seen[0]
    else:
      both = torch.tensor([[*source, *target[:-1]]])
      logits = self.model(both).logits[0, len(source) - 1 :]
      keys = self.seen[0][len(source) - 1 :]
    return keys.numpy(), torch.log_softmax(logits.double(), -1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_store_holds_the_outputs_with_torchs_states(config, tmp_path, kind):
  config = world_lib.changed(
    config, store__key=kind, store__path=f'{tmp_path}/store'
  )
  jobs.run(config, str(tmp_path))
  store = store_lib.open(tmp_path / 'store', kind='tokens')
  states, at, lines = States(config.model.path, kind), 0, 0
  for number in range(2):
    path = config.pairs.train.replace('?', str(number))
    pairs = pairs_lib.open(path)
    shard = store.manifest.shards[number]
    assert shard.digest == pairs.digest
    assert shard.bytes == os.path.getsize(path)
    assert (shard.sequences, shard.malformed) == (len(pairs), 0)
    for source, target in pairs:
      ids = np.arange(at, at + len(target))
      assert store.tokens.line(lines) == (at, at + len(target))
      assert store.tokens.values(ids).tolist() == target
      assert store.tokens.next_ids(ids).tolist() == [*ids[1:].tolist(), -1]
      keys, _ = states(source, target)
      np.testing.assert_allclose(
        store.gather(ids), np.float16(keys), rtol=2e-3, atol=2e-3
      )
      at, lines = at + len(target), lines + 1
    # The end-of-text is a value like others, where nothing was cut off.
    end = tokenizer(config).eos_token_id
    assert pairs[0][1][-1] == end != pairs[len(pairs) - 1][1][-1]
    assert len(pairs[len(pairs) - 1][1]) == pair_world.LIMITS['max_output']
  assert at == len(store.tokens)
  manifest = store.manifest
  assert (manifest.kind, manifest.keys, manifest.pairs) == (
    'tokens',
    kind,
    True,
  )
  assert manifest.computed == 'float32'
  assert store.index.self_check['recall'] == 1


def run(store, paths, model, on_block=lambda number: None, **kwargs):
  """A build as the job makes it; `on_block` is told of each that is read."""

  class Watched(pair_keys.PairKeys):
    def blocks(self, blocks, rows):
      for number, keys in enumerate(super().blocks(blocks, rows)):
        on_block(number)
        yield keys

  longest = tuple(pair_world.LIMITS.values())
  arguments = {'dtype': 'float16', 'block': 50, 'threads': 1} | kwargs
  return build_tokens.build(
    store,
    paths,
    pair_source.Outputs(),
    Watched(model, 'ffn_input', longest),
    **build_test.split(arguments),
  )


@pytest.fixture(scope='module')
def model(directory):
  return pair_model.load(str(directory / 't5'), 'seq2seq')


@pytest.fixture
def paths(directory):
  config = pair_world.make(directory, 'seq2seq')
  return [config.pairs.train.replace('?', str(number)) for number in range(2)]


def test_parts_and_what_was_killed_become_the_same_bytes(
  tmp_path, model, paths
):
  whole = build_test.contents(run(tmp_path / 'whole', paths, model).directory)

  class Killed(Exception):
    pass

  def die(number):
    if number == 2:
      raise Killed

  deaths = 0
  while True:
    try:
      run(tmp_path / 'killed', paths, model, die)
      break
    except Killed:
      deaths += 1
  assert deaths > 1
  assert build_test.contents(tmp_path / 'killed') == whole
  for shard in (1, 0):
    part = begun.Part(shard)
    assert run(tmp_path / 'parts', paths, model, part=part) is None

  def never(number):
    raise AssertionError(number)

  run(tmp_path / 'parts', paths, model, never)
  assert build_test.contents(tmp_path / 'parts') == whole


def test_another_index_is_made_of_the_keys_that_are_there(
  tmp_path, model, paths
):
  run(tmp_path / 's', paths, model)

  def never(number):
    raise AssertionError(number)

  spec = 'IVF4,SQfp16;nprobe=4'
  store = run(tmp_path / 's', paths, model, never, index=spec)
  assert store.index.spec == spec


def test_a_key_that_does_not_fit_is_named_by_pair_and_token(
  tmp_path, model, paths
):
  head = model.params['decoder']['block']['1']['layer']['2']
  big = jax.tree.map(lambda x: x, model.params)
  layer = big['decoder']['block']['1']['layer']['2']
  weight = head['layer_norm']['weight']
  layer['layer_norm'] = {'weight': weight.at[0].set(1e9)}
  spoiled = pair_model.PairModel(model.model, big, model.tokenizer)
  message = r'seq2seq-0.arrow: pair 0: the key of token 0 is not finite'
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', paths, spoiled)


def test_other_pairs_are_refused(tmp_path, directory, model, paths):
  run(tmp_path / 's', paths, model)
  copy = directory / 'copy.arrow'
  pair_world.write(copy, 'seq2seq', pair_world.texts(5, seed=9))
  with pytest.raises(ValueError, match='is of another build: .*digest'):
    run(tmp_path / 's', [str(copy), paths[1]], model)
  other = pair_world.make(directory, 'causal').pairs.train.replace('?', '0')
  with pytest.raises(ValueError, match='made with another tokenizer'):
    model.longest(pairs_lib.open(other))
  short = pair_model.load(str(directory / 'lm'), 'causal')
  with pytest.raises(ValueError, match='exceeds the 64 positions'):
    short.longest(pairs_lib.open(other), max_output=60)


def test_a_dry_run_counts_tokens(config, capsys, tmp_path):
  jobs.run(world_lib.changed(config, dry_run=True), str(tmp_path))
  total = sum(
    len(target)
    for number in range(2)
    for _, target in pairs_lib.open(
      config.pairs.train.replace('?', str(number))
    )
  )
  assert f'tokens          {total:,}' in capsys.readouterr().out


def test_batches_hold_each_pair_once_in_few_shapes():
  rng = np.random.default_rng(0)
  lengths = [tuple(pair) for pair in rng.integers(0, 512, (300, 2)).tolist()]
  batches = pair_batches.plan(lengths, (512, 512), 4, multiple=2)
  numbers = [number for batch in batches for number in batch.numbers]
  assert sorted(numbers) == list(range(300))
  shapes = {batch.shape for batch in batches}
  assert len(shapes) <= 16
  for batch in batches:
    shape = batch.shape
    assert shape.rows % 2 == 0 and len(batch.numbers) <= shape.rows
    assert shape.rows * (shape.inputs + shape.outputs) <= 2 * 4 * 1024
    for number in batch.numbers:
      assert lengths[number][0] <= shape.inputs
      assert lengths[number][1] <= shape.outputs
  full = [len(batch.numbers) == batch.shape.rows for batch in batches]
  assert sum(full) >= len(full) - 1
