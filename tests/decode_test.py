"""Search against `transformers`' `generate` and against every text there is."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests import tiny
from tttnn.methods import decode

pytestmark = pytest.mark.usefixtures('compile_fast')

LENGTHS_B = np.array([20, 4, 1, 9, 13, 17, 2, 6])
MAX_TOKENS = 20
CASES = {'tied': ('relu', True), 'untied': ('gated-gelu', False)}
# For end-of-text, a token that a model writes in some texts and not in others.
END = {'tied': 6, 'untied': 31}


def inputs():
  """(tokens [8, 20], mask)."""
  rng = np.random.default_rng(0)
  mask_BxT = np.arange(20) < LENGTHS_B[:, None]
  tokens_BxT = rng.integers(4, tiny.VOCABULARY, mask_BxT.shape)
  return np.where(mask_BxT, tokens_BxT, 0), mask_BxT


@functools.cache
def writer(name, search, kind='final_hidden'):
  model, _, _ = tiny.seq2seq(*CASES[name])
  return decode.compile_decoder(
    model.encode,
    model.init_cache,
    functools.partial(model.decode, kind=kind),
    search,
    start=model.config.decoder_start_token_id,
    end=END[name],
  )


@functools.cache
def plain_texts(name, search):
  return writer(name, search)(tiny.seq2seq(*CASES[name])[1], *inputs())


def generate(name, search, processors=()):
  """[(tokens, whether they ended, score)] as `transformers` writes them."""
  _, _, reference = tiny.seq2seq(*CASES[name])
  tokens_BxT, mask_BxT = inputs()
  output = reference.generate(
    torch.tensor(tokens_BxT),
    attention_mask=torch.tensor(mask_BxT).long(),
    do_sample=False,
    num_beams=search.beams,
    max_new_tokens=search.max_tokens,
    length_penalty=search.length_penalty,
    early_stopping=search.early_stopping,
    eos_token_id=END[name],
    pad_token_id=0,
    logits_processor=transformers.LogitsProcessorList(processors),
    return_dict_in_generate=True,
    output_scores=True,
  )
  if search.beams == 1:
    log_p = [torch.log_softmax(scores, -1) for scores in output.scores]
  texts = []
  for row, written in enumerate(output.sequences[:, 1:].tolist()):
    ended = END[name] in written
    length = written.index(END[name]) + 1 if ended else len(written)
    if search.beams == 1:
      score = sum(float(log_p[i][row, written[i]]) for i in range(length))
    else:
      score = float(output.sequences_scores[row])
    texts.append((written[: length - ended], ended, score))
  return texts


def assert_same(texts, expected):
  assert [text[:2] for text in texts] == [text[:2] for text in expected]
  np.testing.assert_allclose(
    [text.score for text in texts],
    [text[2] for text in expected],
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'name, beams, length_penalty, early_stopping',
  [
    ('tied', 1, 1.0, False),
    ('tied', 2, 1.0, True),
    ('tied', 4, 1.0, False),
    ('untied', 1, 1.0, False),
    ('untied', 2, 1.0, False),
    ('untied', 4, 1.0, True),
    ('untied', 4, 0.3, False),
    ('untied', 3, 0.0, 'never'),
    ('untied', 4, 2.0, 'never'),
  ],
)
def test_texts_are_those_of_transformers(
  name, beams, length_penalty, early_stopping
):
  search = decode.Search(MAX_TOKENS, beams, length_penalty, early_stopping)
  texts = plain_texts(name, search)
  assert_same(texts, generate(name, search))
  ended = [text.ended for text in texts]
  assert any(ended) and not all(ended)


@pytest.mark.parametrize('beams', [1, 4])
def test_another_distribution_is_searched_as_by_transformers(beams):
  search = decode.Search(MAX_TOKENS, beams)
  rng = np.random.default_rng(0)
  bonus = rng.normal(size=(MAX_TOKENS, tiny.VOCABULARY)).astype(np.float32)

  class Bonus(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
      step = input_ids.shape[1] - 1
      return torch.log_softmax(scores + torch.tensor(bonus[step]), -1)

  def adjust(logits_RxV, keys_RxD, beams):
    return jax.nn.log_softmax(logits_RxV + bonus[beams.step])

  _, params, _ = tiny.seq2seq(*CASES['untied'])
  texts = writer('untied', search)(params, *inputs(), adjust)
  assert_same(texts, generate('untied', search, [Bonus()]))
  assert texts != plain_texts('untied', search)


@pytest.mark.parametrize('beams', [1, 3])
def test_what_the_hook_is_told(beams):
  """State that follows rows_R and tokens_R stays that of the rows' texts."""
  search = decode.Search(MAX_TOKENS, beams, 0.5)
  model, params, _ = tiny.seq2seq(*CASES['untied'])
  tokens_BxT, mask_BxT = inputs()
  of_row = np.repeat(np.arange(8), beams)

  @jax.jit
  def teach(targets_RxU):
    batch = (params, tokens_BxT[of_row], mask_BxT[of_row], targets_RxU)
    return model.logits(*batch), model.keys(*batch, 'ffn_input')

  calls = []
  texts_RxU = np.zeros((8 * beams, MAX_TOKENS), int)

  def adjust(logits_RxV, keys_RxD, beams):
    assert beams.step == len(calls)
    if beams.step:
      texts_RxU[:] = texts_RxU[beams.rows_R]
      texts_RxU[:, beams.step - 1] = beams.tokens_R
    else:
      assert set(beams.tokens_R) == {model.config.decoder_start_token_id}
    np.testing.assert_array_equal(of_row[beams.rows_R], of_row)
    live = ~beams.finished_R
    expected_RxUxV, expected_RxUxD = teach(texts_RxU)
    np.testing.assert_allclose(
      logits_RxV[live], expected_RxUxV[live, beams.step], rtol=0, atol=2e-4
    )
    np.testing.assert_allclose(
      keys_RxD[live], expected_RxUxD[live, beams.step], rtol=0, atol=2e-4
    )
    calls.append((beams.finished_R, texts_RxU[live, : beams.step].copy()))
    # What is said of rows that are done must not count.
    log_p_RxV = jax.nn.log_softmax(logits_RxV)
    return jnp.where(beams.finished_R[:, None], jnp.nan, log_p_RxV)

  write = writer('untied', search, 'ffn_input')
  texts = write(params, tokens_BxT, mask_BxT, adjust)
  assert_same(texts, plain_texts('untied', search))
  assert not calls[0][0].any() and calls[-1][0].any()
  # Once done is done, and for all rows of an input.
  for (before, _), (after, _) in itertools.pairwise(calls):
    assert not (before & ~after).any()
    assert (after.reshape(8, beams) == after[::beams, None]).all()
  if beams == 1:
    for row, text in enumerate(texts):
      steps = sum(not finished[row] for finished, _ in calls)
      assert steps == len(text.tokens) + text.ended
  else:
    rows = [calls[i][1] for i in range(MAX_TOKENS) if len(calls[i][1])]
    assert any(len(np.unique(r, axis=0)) > len(r) // 2 for r in rows)


def test_a_text_does_not_depend_on_its_company():
  search = decode.Search(MAX_TOKENS, 4)
  _, params, _ = tiny.seq2seq(*CASES['untied'])
  tokens_BxT, mask_BxT = inputs()
  write = writer('untied', search)
  texts = write(params, tokens_BxT[::-1], mask_BxT[::-1])[::-1]
  assert_same(texts, plain_texts('untied', search))
  alone = [
    write(params, tokens_BxT[row : row + 1], mask_BxT[row : row + 1])[0]
    for row in range(3)
  ]
  assert_same(alone, texts[:3])


def toy(table_BxSxVxV, search):
  """A writer whose next token depends on step and last token alone."""
  seen = []

  def encode(params, inputs_BxT, mask_BxT):
    return jnp.repeat(inputs_BxT[:, 0], search.beams)

  def init_cache(params, inputs_R, mask_BxT, length, beams):
    assert (length, beams) == (search.max_tokens, search.beams)
    return {'step': jnp.zeros((), int), 'input': inputs_R}

  def step(params, tokens_Rx1, cache, rows_R):
    jax.debug.callback(lambda: seen.append(1))
    logits_RxV = params[cache['input'], cache['step'], tokens_Rx1[:, 0]]
    return logits_RxV, logits_RxV, cache | {'step': cache['step'] + 1}

  write = decode.compile_decoder(
    encode, init_cache, step, search, start=0, end=1
  )
  inputs_Bx1 = np.arange(len(table_BxSxVxV))[:, None]
  return (
    lambda adjust=None: write(table_BxSxVxV, inputs_Bx1, None, adjust),
    seen,
  )


@pytest.mark.parametrize('length_penalty', [0.0, 1.0, -0.7])
def test_with_beams_enough_the_best_of_all_texts_is_found(length_penalty):
  """Every text of up to 3 tokens of 4, of which 1 ends it."""
  rng = np.random.default_rng(0)
  table = rng.normal(0, 2, (6, 3, 4, 4)).astype(np.float32)
  table[3:, ..., 1] -= 20
  search = decode.Search(3, 27, length_penalty, 'never')
  write, _ = toy(table, search)
  ended = []
  for log_p, text in zip(jax.nn.log_softmax(table), write(), strict=True):
    scores = {}
    for tokens in itertools.product(range(4), repeat=3):
      if 1 in tokens:
        tokens = tokens[: tokens.index(1) + 1]
      steps = enumerate(zip((0, *tokens), tokens, strict=False))
      total = sum(float(log_p[step][pair]) for step, pair in steps)
      scores[tokens] = total / len(tokens) ** length_penalty
    best = max(scores, key=scores.get)
    assert (*text.tokens, *[1] * text.ended) == best
    np.testing.assert_allclose(text.score, scores[best], rtol=1e-5)
    ended.append(text.ended)
  assert any(ended) and not all(ended)


@pytest.mark.parametrize('beams', [1, 2])
def test_the_search_stops_when_every_input_is_done(beams):
  table = np.zeros((2, 9, 4, 4), np.float32)
  table[:, :, :, 2] = 5
  table[0, 2:, :, 1] = 50
  table[1, 4:, :, 1] = 50
  search = decode.Search(9, beams, early_stopping=True)
  write, seen = toy(table, search)
  texts = write()
  assert [text.tokens for text in texts] == [[2] * 2, [2] * 4]
  jax.effects_barrier()
  assert len(seen) == 5


@pytest.mark.parametrize('beams', [1, 3])
def test_no_text_where_probabilities_are_not_a_number(beams):
  rng = np.random.default_rng(0)
  table = rng.normal(0, 2, (3, 6, 4, 4)).astype(np.float32)
  search = decode.Search(6, beams)
  expected = toy(table, search)[0]()
  table[1, 2] = np.nan
  found = toy(table, search)[0]()
  assert found[1] is None and None not in expected
  assert [found[0], found[2]] == [expected[0], expected[2]]


def test_what_cannot_be_is_never_written():
  """A look-up alone gives most tokens the probability 0."""
  search = decode.Search(5, 3)
  write, _ = toy(np.zeros((2, 5, 8, 8), np.float32), search)
  log_p_V = np.full(8, -np.inf, np.float32)
  log_p_V[[2, 5]] = np.log([0.75, 0.25])

  def adjust(logits_RxV, keys_RxD, beams):
    return np.tile(log_p_V, (len(logits_RxV), 1))

  for text in write(adjust):
    assert text.tokens == [2] * 5 and not text.ended
    np.testing.assert_allclose(text.score, np.log(0.75), rtol=1e-6)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'max_tokens': 0}, 'max_tokens=0 and beams=1 must'),
    ({'beams': 0}, 'max_tokens=5 and beams=0 must'),
    ({'early_stopping': 'always'}, "early_stopping='always'"),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    decode.Search(**({'max_tokens': 5} | changes))
