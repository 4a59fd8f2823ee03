"""Documents in flight together against documents one at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import ttt_test
from tttnn import sharding
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.methods import trainable
from tttnn.methods import ttt
from tttnn.models import gpt2
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

pytestmark = pytest.mark.usefixtures('compile_fast')

FULL = trainable.Trainable()
CONTEXT = ttt_test.CONTEXT * 2  # Two buckets: 64, 128.


@pytest.fixture(scope='module')
def model():
  model = model_lib.Model('gpt2', gpt2.Config.create(97, 1, 32, 4, CONTEXT))
  return model, model.init(jax.random.key(0))


def settings(**changes):
  return ttt_test.make_settings(max_length=CONTEXT, stride=CONTEXT, **changes)


def works(count, settings_):
  """Documents of all lengths, with empty ones and one-token windows."""
  made = []
  for key in range(count):
    rng = np.random.default_rng(key)
    sizes = rng.integers(0, 250, 3).tolist() + [0, CONTEXT + 1]
    neighbors = [ttt_test.random_tokens(n, n) for n in sizes]
    document = ttt_test.random_tokens(int(rng.integers(0, 300)), key)
    windows = rolling.windows(document, CONTEXT, ttt_test.EOT)
    made.append(
      schedule.Work(
        key=key,
        scored=dict.fromkeys({0, 2, 5}, windows),
        neighbors=[ttt.windows(tokens, settings_) for tokens in neighbors],
      )
    )
  return made


def run(pool, todo):
  found = {work.key: outcome for work, outcome in pool.run(todo)}
  assert len(found) == len(todo)
  return found


def make_pool(model, settings_, what=FULL, **kwargs):
  model, params = model
  if mesh := kwargs.get('mesh'):
    params = sharding.shard(params, mesh)
  frozen, trained = trainable.split(params, what, seed=0)
  adaptation = ttt_test.make_adaptation(model, settings_)
  return pool_lib.Pool(adaptation, frozen, trained, context=CONTEXT, **kwargs)


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for key, outcome in found.items():
    assert outcome.at == expected[key].at
    assert outcome.steps == expected[key].steps
    for name in ('log_likelihood', 'train_loss'):
      np.testing.assert_allclose(
        getattr(outcome, name), getattr(expected[key], name), rtol=1e-5
      )


@pytest.fixture(scope='module')
def one_at_a_time(model):
  chosen = settings(short_windows='step')
  return run(make_pool(model, chosen), works(7, chosen))


@pytest.mark.parametrize('slots', [3, 16])
def test_company_changes_no_number(model, one_at_a_time, slots):
  chosen = settings(short_windows='step')
  pool = make_pool(model, chosen, slots=slots)
  assert_same(run(pool, works(7, chosen)), one_at_a_time)
  steps = sum(sum(outcome.steps) for outcome in one_at_a_time.values())
  assert pool.usage['step'].rows == steps
  assert pool.usage['step'].dispatches < steps
  # Another run through places that have been used.
  assert_same(run(pool, works(7, chosen)[::-1]), one_at_a_time)


def test_a_mesh_changes_no_number(model, one_at_a_time):
  chosen = settings(short_windows='step')
  mesh = sharding.make_mesh(2, 4)
  pool = make_pool(model, chosen, slots=4, mesh=mesh)
  assert_same(run(pool, works(7, chosen)), one_at_a_time)
  # Each device holds its documents' part of its part of the weights.
  mlp = pool.state[0]['h']['0']['mlp']['c_fc']['weight']
  shards = {shard.data.nbytes for shard in mlp.addressable_shards}
  assert shards == {mlp.nbytes // 8}
  moments = [x for x in jax.tree.leaves(pool.state[1]) if x.shape == mlp.shape]
  assert moments
  for moment in moments:
    assert moment.sharding == mlp.sharding
  # In a pool of one place, a gradient lies where the one before lay.
  pool = make_pool(model, chosen, mesh=sharding.make_mesh(1, 8))
  run(pool, works(1, chosen))
  jax.tree.map(
    lambda one, other: np.testing.assert_(one.sharding == other.sharding),
    pool._spent,
    pool.state[0],
  )


def test_a_part_trains_in_company(model):
  chosen = settings()
  part = trainable.Trainable.parse('lora', 2, 4.0, 'attention,mlp')
  alone = run(make_pool(model, chosen, part), works(3, chosen))
  pool = make_pool(model, chosen, part, slots=4)
  assert_same(run(pool, works(3, chosen)), alone)
  copies = sum(x.size for x in jax.tree.leaves(pool.state[0]))
  whole = sum(x.size for x in jax.tree.leaves(model[1]))
  assert copies < 4 * whole / 2
  for outcome in alone.values():
    if outcome.log_likelihood[0]:
      assert outcome.log_likelihood[0] != outcome.log_likelihood[-1]


def test_rows_without_a_document_change_no_state(model):
  # One document in a dispatch for two shards, the other place being taken.
  chosen = settings(weight_decay=0.5)
  mesh = sharding.make_mesh(2, 1, jax.devices()[:2])
  pool = make_pool(model, chosen, slots=2, mesh=mesh)
  both, one = works(2, chosen), works(1, chosen)
  run(pool, both)
  before = jax.tree.map(np.array, pool.state)
  run(pool, one)  # It goes to the place that was freed first.
  after = jax.tree.map(np.array, pool.state)
  same = [
    all(
      np.array_equal(old[shard], new[shard])
      for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(after), strict=True
      )
    )
    for shard in range(2)
  ]
  # A count of steps among the leaves would have moved with an empty row.
  assert sum(same) >= 1


def test_adapted_parameters_are_those_of_the_last_document(model):
  chosen = settings()
  pool = make_pool(model, chosen)
  (work,) = works(1, chosen)
  outcome = run(pool, [work])[0]
  params = pool.adapted()
  base = run(make_pool((model[0], params), chosen), [work])[0]
  assert base.log_likelihood[0] == pytest.approx(
    outcome.log_likelihood[-1], rel=1e-5
  )
  with pytest.raises(ValueError, match='2 documents'):
    make_pool(model, chosen, slots=2).adapted()


@pytest.mark.parametrize(
  'changes', [{'optimizer_state': 'carry'}, {'reset_weights': False}]
)
def test_documents_in_order_go_one_by_one(model, changes):
  chosen = dataclasses.replace(settings(), **changes)
  with pytest.raises(ValueError, match='batch_documents=1'):
    make_pool(model, chosen, slots=2)


def test_documents_divide_over_the_mesh(model):
  mesh = sharding.make_mesh(4, 2)
  with pytest.raises(ValueError, match=r'6 documents .*mesh\.data=4'):
    make_pool(model, settings(), slots=6, mesh=mesh)


def test_compiling_is_announced_once_a_program(model):
  said = []
  chosen = settings()
  pool = make_pool(model, chosen, on_compile=said.append)
  run(pool, works(4, chosen))
  run(pool, works(4, chosen))
  assert sorted(said) == sorted(set(said))
  assert set(said) <= {
    f'{kind} of 1 x {size} tokens'
    for kind in ('step', 'score')
    for size in (64, 128)
  }


def test_memory_grows_with_the_copies(model):
  chosen = settings()
  one, eight = (make_pool(model, chosen, slots=n) for n in (1, 8))
  copy = 3 * sum(x.nbytes for x in jax.tree.leaves(model[1]))
  assert one.memory(64) >= copy
  assert eight.memory(64) - one.memory(64) >= 7 * copy


def test_a_large_model_pads_little_and_finds_the_same(model, monkeypatch):
  chosen = settings()
  coarse = make_pool(model, chosen)
  expected = run(coarse, works(4, chosen))
  monkeypatch.setattr(pool_lib, '_LARGE', 0)
  fine = make_pool(model, chosen)
  found = run(fine, works(4, chosen))
  for kind in ('step', 'score'):
    assert fine.usage[kind].padding < coarse.usage[kind].padding / 2
  for key, outcome in found.items():
    np.testing.assert_allclose(
      outcome.log_likelihood, expected[key].log_likelihood, rtol=1e-5
    )
