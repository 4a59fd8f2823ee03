"""Text generation against `transformers`, and what it promises by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests import tiny
from tttnn.methods import generate
from tttnn.models import model as model_lib
from tttnn.models import roberta

pytestmark = pytest.mark.usefixtures('compile_fast')

CONTEXT = 64
LENGTHS = (3, 40, 17, 25)  # Of prompts; GPT-Neo's local window is 16.
KINDS = ('gpt2', 'gpt_neo')
# For end-of-text, tokens that the models write in some texts and not in others.
END = {'gpt2': 72, 'gpt_neo': 63}
GREEDY = generate.Sampling(20, 0.0, 0, 1.0)
RANDOM = dataclasses.replace(GREEDY, temperature=0.9, top_k=40, top_p=0.95)


def random_prompts(seed=0, lengths=LENGTHS):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, tiny.VOCABULARY, n).tolist() for n in lengths]


@functools.cache
def writer(model, sampling):
  return generate.compile_writer(
    model.init_cache,
    model.decode,
    sampling,
    context=model.context,
    end=END[model.model_type],
  )


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@torch.no_grad()
def reference_text(reference, prompt, max_tokens, end):
  """What `transformers` goes on with, greedily, without the end-of-text."""
  written = reference.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    do_sample=False,
    max_new_tokens=max_tokens,
    eos_token_id=end,
    pad_token_id=end,
  )[0, len(prompt) :].tolist()
  return written[: written.index(end)] if end in written else written


@pytest.mark.parametrize('kind', KINDS)
def test_greedy_is_that_of_transformers(kind):
  model, params, reference = tiny.causal(kind, CONTEXT)
  prompts = random_prompts()
  texts = writer(model, GREEDY)(params, prompts, keys(len(prompts)))
  assert texts == [
    reference_text(reference, prompt, GREEDY.max_tokens, END[kind])
    for prompt in prompts
  ]
  ended = [len(text) < GREEDY.max_tokens for text in texts]
  assert any(ended) and not all(ended)


def test_the_loop_stops_when_every_row_has_ended():
  calls = []

  def init_cache(rows, length):
    return jnp.zeros(rows, jnp.int32)

  def decode(params, tokens_BxT, cache, lengths_B=None):
    # Each row says 0 as often as `params` has it, then the end-of-text.
    jax.debug.callback(lambda: calls.append(1))
    said_B = jnp.where(cache >= params, 5, 0)
    return jax.nn.one_hot(said_B, 8), cache + 1

  write = generate.compile_writer(
    init_cache, decode, GREEDY, context=CONTEXT, end=5
  )
  assert write(np.array([1, 3, 0]), [[1], [2], [3]], keys(3)) == [
    [0],
    [0, 0, 0],
    [],
  ]
  jax.effects_barrier()
  assert len(calls) == 4


@pytest.mark.parametrize('kind', KINDS)
def test_cached_logits_are_those_of_the_whole_text(kind):
  model, params, reference = tiny.causal(kind, CONTEXT)
  rng = np.random.default_rng(1)
  tokens_BxT = rng.integers(0, tiny.VOCABULARY, (len(LENGTHS), CONTEXT))
  with torch.no_grad():
    whole_BxTxV = reference(torch.tensor(tokens_BxT)).logits.numpy()
  row_B, lengths_B = np.arange(len(LENGTHS)), np.array(LENGTHS)
  decode = jax.jit(model.decode)
  cache = model.init_cache(len(LENGTHS), CONTEXT)
  # Padding is another text: none of it may be seen.
  prompts_BxT = rng.integers(0, tiny.VOCABULARY, (len(LENGTHS), max(LENGTHS)))
  for row, length in enumerate(LENGTHS):
    prompts_BxT[row, :length] = tokens_BxT[row, :length]
  logits_BxV, cache = decode(params, prompts_BxT, cache, lengths_B)
  for step in range(CONTEXT - max(LENGTHS)):
    np.testing.assert_allclose(
      logits_BxV, whole_BxTxV[row_B, lengths_B + step - 1], atol=1e-5
    )
    next_Bx1 = tokens_BxT[row_B, lengths_B + step][:, None]
    logits_BxV, cache = decode(params, next_Bx1, cache)
  np.testing.assert_array_equal(
    cache['length'], lengths_B + CONTEXT - max(LENGTHS)
  )


def test_a_text_may_be_read_in_parts_and_a_row_may_wait():
  model, params, _ = tiny.causal('gpt_neo', CONTEXT)
  tokens_BxT = np.array(random_prompts(2, (50, 50)))
  whole_BxTxV = model.logits(params, tokens_BxT)
  decode = jax.jit(model.decode)
  cache = model.init_cache(2, 50)
  _, cache = decode(params, tokens_BxT[:, :20], cache)
  # Five tokens for the first row, padding for the second.
  part_BxT = np.stack([tokens_BxT[0, 20:30], tokens_BxT[0, 20:30]])
  _, cache = decode(params, part_BxT, cache, np.array([5, 0]))
  part_BxT = np.stack([tokens_BxT[0, 25:50], tokens_BxT[1, 20:45]])
  logits_BxV, _ = decode(params, part_BxT, cache)
  np.testing.assert_allclose(
    logits_BxV, whole_BxTxV[[0, 1], [49, 44]], atol=1e-5
  )


def test_bfloat16_is_as_near_cached_as_uncached():
  model, params, _ = tiny.causal('gpt_neo', CONTEXT)
  half = dataclasses.replace(model, dtype='bfloat16')
  tokens_BxT = np.array(random_prompts(3, (40, 40)))
  exact_BxTxV = model.logits(params, tokens_BxT)
  rough_BxTxV = jax.jit(half.logits)(params, tokens_BxT)
  error = np.abs(rough_BxTxV - exact_BxTxV).max()
  decode = jax.jit(half.decode)
  cache = half.init_cache(2, 40)
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(cache['attention'])} == {
    'bfloat16'
  }
  logits_BxV, cache = decode(params, tokens_BxT[:, :30], cache)
  assert logits_BxV.dtype == np.float32
  for step in range(30, 40):
    assert np.abs(logits_BxV - exact_BxTxV[:, step - 1]).max() < 1.5 * error
    logits_BxV, cache = decode(params, tokens_BxT[:, step, None], cache)


def test_a_text_does_not_depend_on_its_company():
  model, params, _ = tiny.causal('gpt_neo', CONTEXT)
  prompts, keys_B = random_prompts(), keys(len(LENGTHS))
  write = writer(model, RANDOM)
  together = write(params, prompts, keys_B)
  for row, prompt in enumerate(prompts):
    assert write(params, [prompt], keys_B[row : row + 1]) == [together[row]]
  assert write(params, prompts[::-1], keys_B[::-1]) == together[::-1]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sampling', [GREEDY, RANDOM])
def test_step_by_step_is_as_at_once(kind, sampling):
  model, params, _ = tiny.causal(kind, CONTEXT)
  prompts = random_prompts()
  calls = []

  def adjust(logits_BxV, keys_BxD, beams):
    calls.append((np.asarray(keys_BxD), beams))
    return jax.nn.log_softmax(logits_BxV)

  write = generate.compile_stepwise_writer(
    model.init_cache,
    functools.partial(model.decode_keys, kind='ffn_input'),
    sampling,
    context=CONTEXT,
    end=END[kind],
  )
  texts = write(params, prompts, keys(len(prompts)), adjust)
  assert texts == writer(model, sampling)(params, prompts, keys(len(prompts)))
  whole_BxT = np.zeros((len(prompts), CONTEXT), int)
  for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
    whole_BxT[row, : len(prompt + text)] = prompt + text
  # What the keys are is told by the model that reads all at once.
  read = jax.jit(lambda params, tokens: model.keys(params, tokens, 'ffn_input'))
  expected_BxTxD = read(params, whole_BxT)
  for step, (keys_BxD, beams) in enumerate(calls):
    assert beams.step == step and beams.rows_R.tolist() == [0, 1, 2, 3]
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
      assert beams.finished_R[row] == (step > len(text))
      place = len(prompt) - 1 + step
      if step <= len(text):
        assert beams.tokens_R[row] == whole_BxT[row, place]
        np.testing.assert_allclose(
          keys_BxD[row], expected_BxTxD[row, place], rtol=1e-4, atol=1e-5
        )


def test_tokens_are_chosen_by_what_the_hook_says():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  write = generate.compile_stepwise_writer(
    model.init_cache,
    functools.partial(model.decode_keys, kind='final_hidden'),
    GREEDY,
    context=CONTEXT,
    end=5,
  )

  def adjust(logits_BxV, keys_BxD, beams):
    # Row i writes 7 at each step, ends after i tokens; the last has no number.
    said_B = jnp.where(jnp.arange(4) == beams.step, 5, 7)
    log_p_BxV = jnp.log(jax.nn.one_hot(said_B, tiny.VOCABULARY))
    return log_p_BxV.at[3, 7].set(jnp.nan)

  texts = write(params, random_prompts(), keys(4), adjust)
  assert texts == [[], [7], [7, 7], None]
  broken = jax.tree.map(lambda x: x * jnp.nan, params)
  assert write(broken, random_prompts(), keys(4), adjust) == [None] * 4
  with pytest.raises(ValueError, match='prompt 1 has no tokens'):
    write(params, [[1], []], keys(2), adjust)


def test_the_key_decides_what_is_drawn():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  write, prompts = writer(model, RANDOM), random_prompts()
  texts = write(params, prompts, keys(4))
  assert texts == write(params, prompts, keys(4))
  others = write(params, prompts, keys(4, seed=1))
  assert all(a != b for a, b in zip(texts, others, strict=True))
  same_prompt = write(params, prompts[:1] * 4, keys(4))
  assert same_prompt[0] == texts[0]
  assert len({tuple(text) for text in same_prompt}) == 4


@pytest.mark.parametrize(
  ('temperature', 'top_k', 'top_p'),
  [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.0, 1, 1.0),
    (1.3, 10, 1.0),
    (1.0, 5000, 1.0),
    (1.0, 0, 0.9),
    (0.5, 0, 0.3),
    (1.0, 0, 1e-6),
    (2.0, 50, 0.6),
    (0.8, 3, 0.99),
  ],
)
def test_logits_are_warped_as_by_transformers(temperature, top_k, top_p):
  rng = np.random.default_rng(0)
  logits_BxV = 3 * rng.normal(size=(16, 1000)).astype(np.float32)
  logits_BxV[8:] = logits_BxV[8:].round(1)  # Many ties.
  expected_BxV = torch.tensor(logits_BxV)
  warpers = [transformers.TemperatureLogitsWarper(temperature)]
  if top_k:
    warpers.append(transformers.TopKLogitsWarper(top_k))
  if top_p < 1:
    warpers.append(transformers.TopPLogitsWarper(top_p))
  for warper in warpers:
    expected_BxV = warper(None, expected_BxV)
  found_BxV = generate.warp(
    jnp.array(logits_BxV), generate.Sampling(1, temperature, top_k, top_p)
  )
  # Where two tokens tie at the edge of the nucleus, which of them is kept is
  # nobody's promise: compare the kept logits, sorted.
  np.testing.assert_allclose(
    np.sort(found_BxV), np.sort(expected_BxV.numpy()), rtol=1e-6
  )
  np.testing.assert_array_equal(
    np.isinf(found_BxV[:8]), np.isinf(expected_BxV[:8].numpy())
  )


def test_tokens_are_drawn_at_the_warped_frequencies():
  draws = 20_000
  logits_V = np.log([0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.float32)
  sampling = generate.Sampling(1, 0.5, 4, 0.9)
  tokens_B = generate.choose(
    jnp.tile(logits_V, (draws, 1)), keys(draws), sampling
  )
  # Squared by the temperature; the 5th goes by top_k, the 4th, at 0.034 of what
  # is left, by top_p.
  squared_V = np.array([0.16, 0.09, 0.0225, 0, 0])
  expected_V = draws * squared_V / squared_V.sum()
  found_V = np.bincount(tokens_B, minlength=5)
  assert np.all(np.abs(found_V - expected_V) <= 5 * np.sqrt(expected_V))


def test_each_token_is_drawn_anew():
  log_likelihood_V = np.log([0.5, 0.3, 0.2]).astype(np.float32)

  def decode(params, tokens_BxT, cache, lengths_B=None):
    return jnp.tile(params, (len(tokens_BxT), 1)), cache

  count = 3000
  write = generate.compile_writer(
    lambda rows, length: 0,
    decode,
    generate.Sampling(count, 1.0, 0, 1.0),
    context=2 * count,
    end=-1,
  )
  for tokens in write(log_likelihood_V, [[0], [0]], keys(2)):
    found_V = np.bincount(tokens, minlength=3)
    expected_V = count * np.exp(log_likelihood_V)
    assert np.all(np.abs(found_V - expected_V) <= 5 * np.sqrt(expected_V))


def test_no_text_where_the_logits_are_not_finite():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  broken = jax.tree.map(lambda x: x * jnp.nan, params)
  for sampling in (GREEDY, RANDOM):
    write = writer(model, sampling)
    assert write(broken, random_prompts(), keys(4)) == [None] * 4


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'max_tokens': 0}, 'max_tokens=0'),
    ({'temperature': -0.5}, 'temperature=-0.5'),
    ({'top_k': -1}, 'top_k=-1'),
    ({'top_p': 0.0}, 'top_p=0.0'),
    ({'top_p': 1.5}, 'top_p=1.5'),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(GREEDY, **changes)


def test_prompts_and_caches_that_do_not_fit_are_refused():
  model, params, _ = tiny.causal('gpt2', CONTEXT)
  write = writer(model, GREEDY)
  longest = random_prompts(0, (44,))
  assert len(write(params, longest, keys(1))[0]) <= 20
  message = 'prompt 1 has 45 tokens, more than the 44 .*=20 .* of 64'
  with pytest.raises(ValueError, match=message):
    write(params, longest + random_prompts(0, (45,)), keys(2))
  with pytest.raises(ValueError, match='prompt 0 has no tokens'):
    write(params, [[]], keys(1))
  with pytest.raises(ValueError, match='65 tokens .* context of 64'):
    model.init_cache(1, 65)
  with pytest.raises(ValueError, match='12 tokens exceed the 10'):
    model.decode(params, np.zeros((1, 12), int), model.init_cache(1, 10))
  encoder = model_lib.Model('roberta', roberta.Config())
  with pytest.raises(ValueError, match='sees later tokens'):
    encoder.init_cache(1, 10)
