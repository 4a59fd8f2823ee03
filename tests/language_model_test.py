"""How many documents adapt at once, and what does not go together."""

import pytest

from tests import tiny
from tttnn import checkpoint
from tttnn import estimate
from tttnn import language_model
from tttnn import sharding
from tttnn.corpus import tokenizer
from tttnn.methods import trainable
from tttnn.methods import ttt

pytestmark = pytest.mark.usefixtures('compile_fast')


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  path, _ = tiny.write_models(str(tmp_path_factory.mktemp('models')))
  return *checkpoint.load_model(path), tokenizer.load(path)


def make(parts, settings=None, what='full', mesh=None):
  return language_model.create(
    *parts,
    settings or ttt.Settings(),
    trainable=trainable.Trainable.parse(what, 2, 4.0, 'mlp'),
    mesh=mesh,
  )


def test_zeros_become_the_context(parts):
  settings = make(parts).adaptation.settings
  assert (settings.max_length, settings.stride) == (64, 64)
  settings = make(parts, ttt.Settings(max_length=32)).adaptation.settings
  assert (settings.max_length, settings.stride) == (32, 32)
  with pytest.raises(ValueError, match=r'max_length=65 .* 64 positions'):
    make(parts, ttt.Settings(max_length=65))
  with pytest.raises(ValueError, match=r'stride=40 .*max_length=\s*32'):
    ttt.Settings(max_length=32, stride=40)


def test_auto_fills_the_memory_there_is(parts, capsys):
  model = make(parts)
  base = estimate.num_bytes(model.params)
  one = model.pool().memory(64)
  few, many = (
    model.documents_at_once('auto', limit) for limit in (3 * one, 12 * one)
  )
  assert 1 <= few < many <= 64
  assert f'auto is {many}' in capsys.readouterr().out
  # What it says is true of the program that the pool runs.
  assert model.pool(many).memory(64) <= 12 * one
  # Copies of a part are smaller.
  assert make(parts, what='mlp_out').documents_at_once('auto', 3 * one) > few
  with pytest.raises(ValueError, match='try ttt.trainable=lora'):
    model.documents_at_once('auto', base)


def test_auto_is_one_on_cpu_and_in_order(parts):
  assert make(parts).documents_at_once('auto') == 1
  carry = ttt.Settings(optimizer_state='carry')
  assert make(parts, carry).documents_at_once('auto', 10**12) == 1
  mesh = sharding.make_mesh(4, 2)
  assert make(parts, mesh=mesh).documents_at_once('auto') == 4


@pytest.mark.parametrize('wanted', ['0', '-1', 'all', '1.5', ''])
def test_other_numbers_are_refused(parts, wanted):
  with pytest.raises(ValueError, match='batch_documents'):
    make(parts).documents_at_once(wanted)
  assert make(parts).documents_at_once('7') == 7


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(parts):
  model, params, _ = parts

  class Larger:
    eos_token_id = 0

    def __len__(self):
      return model.vocab_size + 1

  with pytest.raises(ValueError, match=f'{model.vocab_size + 1} ids'):
    language_model.create(model, params, Larger(), ttt.Settings())


def test_weights_lie_over_the_mesh(parts):
  model = make(parts, mesh=sharding.make_mesh(2, 4))
  weight = model.params['h']['0']['mlp']['c_fc']['weight']
  assert {s.data.nbytes for s in weight.addressable_shards} == {
    weight.nbytes // 4
  }
  assert len(weight.sharding.device_set) == 8
