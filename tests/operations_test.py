"""Operations of a step against the products that a forward pass traces."""

import jax
import numpy as np
import pytest

from tests import tiny
from tttnn import objectives
from tttnn import operations
from tttnn.corpus import packing
from tttnn.models import model as model_lib
from tttnn.models import roberta


class Tokenizer:
  bos_token_id, eos_token_id, mask_token_id = 0, 2, 4

  def __len__(self):
    return tiny.VOCABULARY


def products(jaxpr) -> int:
  """2 M N K of each product in a program, loops counted out.

  But for sums that are written as products with one column.
  """
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      ((left, _), _) = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      inner = int(np.prod([shape[i] for i in left]))
      out = equation.outvars[0].aval.shape
      total += (out[-1] > 1) * 2 * int(np.prod(out)) * inner
    times = equation.params.get('length', 1)
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'),
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += times * products(inner)
  return total


def forward(task, params, texts):
  batch = task.batch(texts, 0, 0)
  return products(jax.make_jaxpr(task.loss)(params, batch).jaxpr)


def stream():
  tokens = np.random.default_rng(1).integers(5, tiny.VOCABULARY, 400)
  return packing.Stream([tokens.astype(np.int32)], 1, '')


def test_of_a_causal_model():
  for kind in ('gpt2', 'gpt_neo'):
    model, params, _ = tiny.causal(kind, 32)
    task = objectives.StreamTask(
      model, Tokenizer(), 'causal', 4, 16, 0.15, False
    )
    # The program multiplies what causal attention masks: as much again.
    masked = 2 * model.config.layers * 16**2 * model.width * 4
    found = operations.of_step(task, params)
    assert found == 3 * (forward(task, params, stream()) - masked)
  pair = objectives.CausalPairTask(model, 4, 9, 8, False)
  assert operations.of_step(pair, params) == found


def test_of_a_masked_model():
  shape = roberta.Config.create(tiny.VOCABULARY, 2, 16, 2, 32)
  model = model_lib.Model('roberta', shape)
  params = model.init(jax.random.key(0))
  task = objectives.StreamTask(model, Tokenizer(), 'masked', 4, 18, 0.2, False)
  found = operations.of_step(task, params)
  assert found == 3 * forward(task, params, stream())


@pytest.mark.parametrize('tied', [True, False])
def test_of_a_t5(tied):
  model, params, _ = tiny.seq2seq(tied=tied)
  task = objectives.PairTask(model, 4, 9, 6, False)
  pairs = [([5, 6, 1], [7, 8, 1])] * 4
  shape = model.config
  width = shape.num_heads * shape.d_kv
  masked = 2 * shape.num_decoder_layers * 6**2 * width * 4
  found = operations.of_step(task, params)
  assert found == 3 * (forward(task, params, pairs) - masked)
