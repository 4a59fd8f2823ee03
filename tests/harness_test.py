"""The model of lm-evaluation-harness, against the harness's own and a loop."""

import copy
import json
import os

import numpy as np
import pytest
import torch
import transformers

from tests import torch_loop
from tttnn import language_model
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.methods import in_context
from tttnn.methods import ttt

pytest.importorskip('lm_eval', reason='lm-eval, extra [lm-eval], is missing')

from lm_eval.api import model as lm_eval_model
from lm_eval.models import huggingface

from tests import harness_world
from tttnn import harness

pytestmark = pytest.mark.usefixtures('compile_fast')

CONTEXT = 64


@pytest.fixture(scope='module')
def arguments(world, tmp_path_factory):
  directory = tmp_path_factory.mktemp('harness')
  return harness_world.make_arguments(world, directory)


@pytest.fixture(scope='module')
def oracle(arguments):
  """The harness's own model with the same weights."""
  lm = huggingface.HFLM(
    pretrained=arguments['model.path'],
    device='cpu',
    dtype='float32',
    batch_size=1,
  )
  assert lm.max_length == CONTEXT
  return lm


@pytest.fixture(scope='module')
def base(arguments):
  return harness.Harness(method='base', **arguments)


@pytest.fixture(scope='module')
def adapted(arguments):
  return harness.Harness(method='ttt', **arguments)


@pytest.fixture(scope='module')
def nearest(world):
  """(query, count) -> texts of the nearest in the store, by brute force."""
  reference = transformers.RobertaModel.from_pretrained(
    world.embedder.path, add_pooling_layer=False
  ).eval()
  tokenizer = tokenizer_lib.load(world.embedder.path)
  paths = sorted(
    os.path.join(os.path.dirname(world.corpus.train), name)
    for name in os.listdir(os.path.dirname(world.corpus.train))
    if name.startswith('train-') and name.endswith('.jsonl')
  )
  texts = []
  for path in paths:
    with open(path) as file:
      texts += [json.loads(line)['text'] for line in file]

  @torch.no_grad()
  def embed(text):
    ids = tokenizer(text or ' ', truncation=True, max_length=64)['input_ids']
    return reference(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()

  vectors = np.stack([embed(text) for text in texts])

  def find(query, count=harness_world.NEIGHBORS):
    distances = np.linalg.norm(vectors - embed(query), axis=1)
    return [texts[i] for i in np.argsort(distances, kind='stable')[:count]]

  return find


@torch.no_grad()
def greedily(model, tokens, count):
  """The next tokens by a plain loop."""
  tokens, begin = list(tokens), len(tokens)
  for _ in range(count):
    logits = model(torch.tensor([tokens])).logits[0, -1]
    tokens.append(int(logits.argmax()))
    if tokens[-1] == 0:  # The end-of-text token.
      return tokens[begin:-1]
  return tokens[begin:]


def test_base_is_the_harness_s_own_model(base, oracle):
  found, expected = (
    harness_world.likelihoods(base),
    harness_world.likelihoods(oracle),
  )
  np.testing.assert_allclose(
    [value for value, _ in found], [value for value, _ in expected], rtol=1e-5
  )
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
  np.testing.assert_allclose(
    harness_world.rolling(base), harness_world.rolling(oracle), rtol=1e-5
  )


def test_base_knows_what_it_would_write(base, oracle):
  made = []
  for prompt in ('How vexingly quick', 'Pack my box', '17 23'):
    (tokens,) = tokenizer_lib.encode(oracle.tokenizer, [prompt])
    written = greedily(oracle.model, tokens, 4)
    other = [*written[:-1], (written[-1] + 1) % 300]
    made += [
      ((prompt, ' of its own'), tokens, written),
      ((prompt, ' and not'), tokens, other),
    ]
  found = base._loglikelihood_tokens(made, disable_tqdm=True)
  expected = oracle._loglikelihood_tokens(made, disable_tqdm=True)
  np.testing.assert_allclose(
    [value for value, _ in found], [value for value, _ in expected], rtol=1e-5
  )
  assert [greedy for _, greedy in found] == [True, False] * 3


@pytest.mark.parametrize('until', [[], 'number', ['quick', ' ']])
def test_base_writes_what_the_harness_s_own_model_does(base, oracle, until):
  prompts = ['The quick brown', '17 23 991', harness_world.LONG, 'jump']
  if until == 'number':  # A piece of what is written, within a token.
    until = harness_world.texts_of(oracle, prompts[:1], max_gen_toks=20)[0][5:7]
  kwargs = {'max_gen_toks': 20, 'until': until}
  found = harness_world.texts_of(base, prompts, **kwargs)
  assert found == harness_world.texts_of(oracle, prompts, **kwargs)
  assert any(found)


@pytest.mark.parametrize('method', ['base', 'ttt', 'in_context'])
def test_whole_texts_are_scored_as_evaluate_does(
  world, arguments, tmp_path, method
):
  found = harness_world.rolling(harness.Harness(method=method, **arguments))
  rows = harness_world.evaluated(world, arguments, tmp_path, method)
  scores = [row['log_likelihood'] for row in rows]
  np.testing.assert_allclose(
    found, [of_row[-1] for of_row in scores], rtol=1e-6
  )
  if method != 'base':  # Neighbours count.
    before = [of_row[0] for of_row in scores]
    assert (np.abs(np.subtract(found, before)) > 1e-3).sum() >= 3


def torch_adapted(arguments):
  """(tokenizer, reference, settings) of a loop in PyTorch."""
  path = arguments['model.path']
  reference = transformers.GPT2LMHeadModel.from_pretrained(
    path, attn_implementation='eager'
  ).eval()
  settings = ttt.Settings(
    learning_rate=arguments['ttt.learning_rate'],
    max_length=CONTEXT,
    stride=CONTEXT,
  )
  return tokenizer_lib.load(path), reference, settings


def test_choices_are_scored_after_a_loop_in_pytorch(
  arguments, adapted, nearest
):
  context = harness_world.PAIRS[0][0]
  tokenizer, reference, settings = torch_adapted(arguments)
  trained = tokenizer_lib.encode(tokenizer, nearest(context))
  torch_loop.run(reference, [], trained, settings, 0)  # Changes the reference.
  before = len(tokenizer_lib.encode(tokenizer, [context])[0])
  expected = {}
  for pair in harness_world.PAIRS:
    if pair[0] == context:
      (tokens,) = tokenizer_lib.encode(tokenizer, [''.join(pair)])
      with torch.no_grad():
        logits = reference(torch.tensor([tokens])).logits[0, before - 1 : -1]
      scores = torch.log_softmax(logits.double(), -1)
      targets = torch.tensor(tokens[before:])
      expected[pair] = scores.gather(1, targets[:, None]).sum().item()
  assert len(expected) == 3
  found = dict(
    zip(harness_world.PAIRS, harness_world.likelihoods(adapted), strict=True)
  )
  for pair, value in expected.items():
    assert found[pair][0] == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_company_changes_no_answer(arguments, adapted):
  together = harness_world.likelihoods(adapted)
  for pair, answer in list(zip(harness_world.PAIRS, together, strict=True))[:4]:
    ((value, greedy),) = harness_world.likelihoods(adapted, [pair])
    assert value == pytest.approx(answer[0], rel=1e-6)
    assert greedy == answer[1]
  # Dropout's random numbers are made of the context.
  many = harness.Harness(
    method='ttt',
    **arguments,
    **{'ttt.batch_documents': 3, 'ttt.dropout': True},
  )
  alone = harness.Harness(method='ttt', **arguments, **{'ttt.dropout': True})
  pairs = harness_world.PAIRS[:4]
  values = [value for value, _ in harness_world.likelihoods(many, pairs)]
  turned = [
    value for value, _ in harness_world.likelihoods(alone, pairs[::-1])
  ][::-1]
  np.testing.assert_allclose(values, turned, rtol=1e-5)
  plain = [value for value, _ in together[:4]]
  assert (np.abs(np.subtract(values, plain)) > 1e-4).any()


def test_a_context_is_adapted_to_once(arguments, monkeypatch):
  lm = harness.Harness(method='ttt', **arguments)
  texts = []
  trained = language_model.LanguageModel.trained

  def counted(self, found):
    texts.append(found)
    return trained(self, found)

  monkeypatch.setattr(language_model.LanguageModel, 'trained', counted)
  harness_world.likelihoods(lm)
  assert len(texts) == len({context for context, _ in harness_world.PAIRS})


def test_neighbors_stand_in_front_where_they_fit(arguments, oracle, nearest):
  lm = harness.Harness(method='in_context', **arguments)
  tokenizer = tokenizer_lib.load(arguments['model.path'])

  def front(query, tokens):
    found = tokenizer_lib.encode(tokenizer, nearest(query))
    chosen = in_context.Settings()
    return in_context.prefix(found, tokens, CONTEXT, 0, chosen)

  expected = []
  for context, continuation in harness_world.PAIRS:
    if context:
      of_context, target = oracle._encode_pair(context, continuation)
      before = front(context, len(of_context) + len(target)) + of_context
    else:
      (target,) = tokenizer_lib.encode(tokenizer, [continuation])
      if target[0] == 0:  # Which the harness takes for the context.
        target = target[1:]
      before = front(context, len(target))
    ((value, _),) = oracle._loglikelihood_tokens(
      [(None, before, target)], disable_tqdm=True
    )
    expected.append(value)
  found = [value for value, _ in harness_world.likelihoods(lm)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Texts that are written, too: the prompt is read behind its neighbours.
  prompt = 'The quick brown'
  (tokens,) = tokenizer_lib.encode(tokenizer, [prompt])
  tokens = front(prompt, len(tokens) + 9)[: CONTEXT - 8 - len(tokens)] + tokens
  assert len(tokens) == CONTEXT - 8
  written = greedily(oracle.model, tokens, 8)
  (text,) = harness_world.texts_of(lm, [prompt], max_gen_toks=8)
  assert text == tokenizer_lib.decode(tokenizer, written)


def test_texts_are_those_of_the_adapted_model(arguments, adapted, nearest):
  tokenizer, reference, settings = torch_adapted(arguments)
  prompts = ['five boxing wizards', '17 23 991', '']
  found = harness_world.texts_of(adapted, prompts, max_gen_toks=10)
  for prompt, text in zip(prompts, found, strict=True):
    model = copy.deepcopy(reference)
    trained = tokenizer_lib.encode(tokenizer, nearest(prompt))
    torch_loop.run(model, [], trained, settings, 0)
    (tokens,) = tokenizer_lib.encode(tokenizer, [prompt])
    written = greedily(model, tokens or [0], 10)
    assert text == tokenizer_lib.decode(tokenizer, written)


def test_drawn_texts_differ_by_repeat_and_not_by_company(base):
  drawn = {'max_gen_toks': 12, 'do_sample': True, 'temperature': 1.0}
  one, other, again = harness_world.texts_of(
    base, ['fox', 'dog', 'fox'], **drawn
  )
  assert len({one, other, again}) == 3
  assert harness_world.texts_of(base, ['fox'], **drawn) == [one]
  # Of which one is the likeliest, that is drawn.
  greedy = harness_world.texts_of(base, ['fox'], max_gen_toks=12)
  assert harness_world.texts_of(base, ['fox'], **drawn, top_k=1) == greedy


def test_answers_are_kept_as_they_come(arguments, tmp_path):
  lm = harness.Harness(method='base', **arguments)
  cached = lm_eval_model.CachingLM(lm, str(tmp_path / 'cache.db'))
  expected = harness_world.likelihoods(lm)  # Fills it, by the model's own hook.
  made = harness_world.requests('loglikelihood', harness_world.PAIRS)
  lm.loglikelihood = None
  assert cached.loglikelihood(made) == expected


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'ttt.learning_rat': 1.0}, 'nearest known one is ttt.learning_rate'),
    ({'pretrained': 'gpt2'}, 'unknown key pretrained'),
    ({'ttt.learning_rate': 'x'}, "learning_rate='x' .* str, .* be float"),
    ({'retrieval.neighbors': 2.5}, 'neighbors=2.5 .* float, .* be int'),
    ({'model.path': 1e5}, r'model.path=100000.0 .*quotes'),
    ({'ttt.dropout': 1}, 'ttt.dropout=1 .* int, .* be bool'),
    ({'method': 'interpolation'}, "method='interpolation' is not one of"),
    ({'model.path': ''}, 'model.path is empty'),
    ({'store.path': ''}, 'needs store.path'),
    ({'eval.protocol': 'split'}, "eval.protocol='split'"),
    ({'eval.stride': 16}, 'eval.window=0 and eval.stride=16'),
    ({'retrieval.save': 'a.jsonl'}, 'retrieval.save and .replay'),
    ({'ttt.reset_weights': False}, 'reset_weights=False'),
    ({'in_context.variant': 'x'}, "in_context.variant='x'"),
    ({'batch_size': '8'}, "batch_size='8'.*ttt.batch_documents"),
    ({'max_batch_size': 8}, 'max_batch_size=8'),
  ],
)
def test_wrong_arguments_are_refused(arguments, changes, message):
  with pytest.raises(ValueError, match=message):
    harness.Harness(**{**arguments, **changes})


def test_wrong_requests_are_refused(base, arguments):
  with pytest.raises(ValueError, match='has 65 tokens, and may have 1 to 64'):
    harness_world.likelihoods(base, [('a', '<|endoftext|>' * 65)])
  with pytest.raises(ValueError, match="'' has 0 tokens"):
    harness_world.likelihoods(base, [('a', '')])
  with pytest.raises(ValueError, match='max_gen_toks=64 leaves nothing'):
    harness_world.texts_of(base, ['a'], max_gen_toks=64)
  with pytest.raises(ValueError, match="without effect: {'num_beams': 2}"):
    harness_world.texts_of(base, ['a'], max_gen_toks=8, num_beams=2)
  with pytest.raises(ValueError, match='needs a temperature'):
    harness_world.texts_of(base, ['a'], max_gen_toks=8, do_sample=True)
  diverged = {**arguments, 'ttt.learning_rate': 1e38}
  lm = harness.Harness(**diverged)
  with pytest.raises(ValueError, match="'The quick brown fox' has diverged"):
    harness_world.likelihoods(lm, harness_world.PAIRS[:1])
  with pytest.raises(ValueError, match="'fox' has diverged"):
    harness_world.texts_of(lm, ['fox'], max_gen_toks=8)
