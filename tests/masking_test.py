"""Which tokens masked training hides, and how, against the definitions."""

import jax
import numpy as np
import pytest

from tests import tiny
from tttnn import objectives
from tttnn.corpus import packing
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import model as model_lib
from tttnn.models import roberta


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp('tokenizer'))
  return tokenizer_lib.train(
    tiny.documents(100), directory, vocab_size=300, kind='roberta'
  )


def masked(tokenizer, masking, rows=200, length=102, p=0.15):
  return objectives.StreamTask(
    model=None,
    tokenizer=tokenizer,
    objective='masked',
    rows=rows,
    length=length,
    mask_probability=p,
    dropout=False,
    masking=masking,
  )


def stream(rows=200, length=100):
  tokens = np.random.default_rng(0).integers(5, 300, rows * length * 3)
  return packing.Stream([tokens.astype(np.int32)], 1, '')


def originals(texts, rows=200, length=100):
  return packing.batch(texts, 0, rows=rows, length=length, overlap=0, seed=1)


@pytest.mark.parametrize('masking', ['bert', 'always'])
def test_what_is_hidden_is_predicted_and_nothing_else_changes(
  tokenizer, masking
):
  task, texts = masked(tokenizer, masking), stream()
  batch = task.batch(texts, 0, seed=1)
  tokens, positions, weights = (
    batch[name] for name in ('tokens', 'positions', 'weights')
  )
  assert tokens.shape == (200, 102)
  assert (tokens[:, 0] == 0).all() and (tokens[:, -1] == 2).all()
  original = originals(texts)
  used = weights > 0
  for row in range(200):
    at = positions[row][used[row]]
    assert len(set(at)) == len(at)  # Never twice.
    assert at.min() >= 1 and at.max() <= 100  # Never a special token.
    np.testing.assert_array_equal(
      batch['targets'][row][used[row]], original[row][at - 1]
    )
    kept = np.setdiff1d(np.arange(1, 101), at)
    np.testing.assert_array_equal(tokens[row][kept], original[row][kept - 1])
  assert weights.sum() == pytest.approx(1.0, rel=1e-5)
  assert len(set(weights[used])) == 1
  assert task.predicted(batch) == used.sum()
  again = task.batch(texts, 0, seed=1)
  for name in batch:
    np.testing.assert_array_equal(again[name], batch[name])
  assert (task.batch(texts, 0, seed=2)['tokens'] != tokens).any()


def test_bert_hides_fifteen_percent_in_the_usual_mixture(tokenizer):
  texts = stream()
  batch = masked(tokenizer, 'bert').batch(texts, 0, seed=1)
  assert batch['positions'].shape == (200, 15)
  assert (batch['weights'] > 0).all()
  shown = np.take_along_axis(batch['tokens'], batch['positions'], axis=1)
  share = np.mean(shown == tokenizer.mask_token_id)
  assert share == pytest.approx(0.8, abs=0.03)
  share = np.mean(shown == batch['targets'])
  assert share == pytest.approx(0.1, abs=0.03)


def test_always_hides_each_token_with_the_probability(tokenizer):
  texts = stream()
  task = masked(tokenizer, 'always')
  batch = task.batch(texts, 0, seed=1)
  used = batch['weights'] > 0
  shown = np.take_along_axis(batch['tokens'], batch['positions'], axis=1)
  assert (shown[used] == tokenizer.mask_token_id).all()
  counts = used.sum(axis=1)
  # A binomial distribution: mean 15, variance 12.75, and none is cut off.
  assert counts.mean() == pytest.approx(15, abs=0.8)
  assert counts.var() == pytest.approx(12.75, rel=0.35)
  assert counts.max() < task.chosen
  # Every place alike: of 200 rows 30, give or take 5.
  places = np.bincount(batch['positions'][used], minlength=102)[1:101]
  assert places.min() > 10 and places.max() < 52


def test_the_loss_is_the_mean_over_what_is_hidden(tokenizer):
  shape = roberta.Config.create(len(tokenizer), 1, 16, 2, 34)
  model = model_lib.Model('roberta', shape)
  params = model.init(jax.random.key(0))
  task = objectives.StreamTask(
    model, tokenizer, 'masked', 4, 32, 0.3, False, 'always'
  )
  batch = task.batch(stream(4, 30), 0, seed=1)
  used = batch['weights'] > 0
  assert len(set(used.sum(axis=1))) > 1
  scores, score = [], model.masked_log_likelihood
  for row in range(4):
    # One row at a time, without what is not used.
    at = batch['positions'][row][used[row]]
    targets = batch['targets'][row][used[row]]
    found = score(
      params, batch['tokens'][row][None], None, at[None], targets[None]
    )
    scores += np.asarray(found)[0].tolist()
  loss = float(task.loss(params, batch))
  assert loss == pytest.approx(-np.mean(scores), rel=1e-5)
