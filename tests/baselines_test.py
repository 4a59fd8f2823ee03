"""The baselines as whole runs, against PyTorch and plain loops."""

import collections
import copy
import itertools
import json
import math

import pytest
import torch
import transformers

from configs import evaluate
from tests import torch_loop
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.methods import ttt
from tttnn.scoring import rolling

CONTEXT, EOT = 64, 0
changed, rows_of = world_lib.changed, world_lib.rows_of


@pytest.fixture(scope='module')
def oracle(world):
  """What a plain program makes of the same files."""
  return Oracle(world)


class Oracle:
  def __init__(self, world):
    path = world.model.path
    self.model = transformers.GPT2LMHeadModel.from_pretrained(
      path, attn_implementation='eager'
    ).eval()
    self.base = copy.deepcopy(self.model.state_dict())
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    self.documents = documents_lib.read(world.eval.documents)
    corpus = jsonl.read(jsonl.expand(world.corpus.train))
    self.corpus = list(corpus.iter_texts())

  def encode(self, text):
    return self.tokenizer(text)['input_ids']

  def parts(self, document, protocol):
    """Token ids of (what is queried, what is scored)."""
    tokens = self.encode(document.text)
    if protocol == 'whole':
      return tokens, tokens
    cut = CONTEXT if len(tokens) >= 2 * CONTEXT else len(tokens) // 2
    both = tokens[:cut], tokens[cut:]
    return tuple(
      self.encode(
        self.tokenizer.decode(part, clean_up_tokenization_spaces=False)
      )
      for part in both
    )

  @torch.no_grad()
  def token_scores(self, windows):
    """Log-likelihoods of the targets, one after another."""
    found = []
    for window in windows:
      logits = self.model(torch.tensor([window.inputs])).logits[0]
      scores = torch.log_softmax(logits.double(), dim=-1)
      first = len(window.inputs) - len(window.targets)
      found += [
        float(scores[first + i, target])
        for i, target in enumerate(window.targets)
      ]
    return found


def run(world, workdir, method, **changes):
  jobs.run(changed(world, method=method, **changes), str(workdir))
  rows = rows_of(workdir)
  assert len(rows) == world_lib.COUNT
  assert all(row['method'] == method for row in rows)
  return rows


@pytest.mark.parametrize('protocol', ['whole', 'split'])
@pytest.mark.parametrize('variant', ['fixed', 'as_described', 'as_coded'])
def test_in_context_rows_equal_torch(
  world, oracle, tmp_path, protocol, variant
):
  rows = run(
    world,
    tmp_path,
    'in_context',
    eval__protocol=protocol,
    in_context__variant=variant,
  )
  inside = 0
  for row, document in zip(rows, oracle.documents, strict=True):
    _, tokens = oracle.parts(document, protocol)
    texts = [oracle.encode(oracle.corpus[n['id']]) for n in row['neighbors']]
    joined = list(itertools.chain.from_iterable(texts))
    plain = rolling.windows(tokens, CONTEXT, EOT)
    windows = plain
    if len(plain) == 1 and joined:
      # What stands before the last token, the context long.
      front = {
        'fixed': [EOT, *joined[: CONTEXT - len(tokens)]],
        'as_described': joined[: CONTEXT + 1 - len(tokens)],
        'as_coded': (joined + tokens)[-CONTEXT - 1 : -len(tokens)],
      }[variant]
      windows = [rolling.Window(front + tokens[:-1], tokens)]
      inside += len(front) > 1
    expected = [sum(oracle.token_scores(w)) for w in (plain, windows)]
    assert row['at'] == [0, 3]
    assert row['log_likelihood'] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert row['steps'] == row['train_loss'] == []
    size = len(windows[0].inputs) - len(tokens) if windows is not plain else 0
    assert row['context_tokens'] == size
  assert 2 <= inside < world_lib.COUNT


def test_interpolation_rows_equal_a_plain_loop(world, oracle, tmp_path):
  rows = run(world, tmp_path, 'interpolation', interpolation__alpha='0.3')
  for row, document in zip(rows, oracle.documents, strict=True):
    _, tokens = oracle.parts(document, 'split')
    scores = oracle.token_scores(rolling.windows(tokens, CONTEXT, EOT))
    # One text of the corpus is empty, and has no frequencies.
    found = [n for n in row['neighbors'] if oracle.corpus[n['id']]]
    texts = [oracle.encode(oracle.corpus[n['id']]) for n in found]
    weights = [math.exp(-n['distance']) for n in found]
    counts = [collections.Counter(text) for text in texts]
    assert len(row['by_alpha']['alpha']) == 21
    for alpha, found in zip(*row['by_alpha'].values(), strict=True):
      expected = 0.0
      for token, score in zip(tokens, scores, strict=True):
        near = sum(
          weight / sum(weights) * count[token] / len(text)
          for weight, count, text in zip(weights, counts, texts, strict=True)
        )
        expected += math.log(alpha * near + (1 - alpha) * math.exp(score))
      assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    place = row['by_alpha']['alpha'].index(0.3)
    by_alpha = row['by_alpha']['log_likelihood']
    assert row['log_likelihood'] == [by_alpha[0], by_alpha[place]]
    assert (row['at'], row['alpha']) == ([0, 3], 0.3)


def best(rows):
  totals = [
    math.fsum(values)
    for values in zip(
      *(row['by_alpha']['log_likelihood'] for row in rows), strict=True
    )
  ]
  place = totals.index(max(totals))
  return place, rows[0]['by_alpha']['alpha'][place]


def test_alpha_is_chosen_on_validation_or_for_each_task_on_test(
  world, tmp_path
):
  rows = run(
    world, tmp_path / 'test', 'interpolation', interpolation__alpha='test'
  )
  for task in ('prose', 'numbers'):
    of_task = [row for row in rows if row['task'] == task]
    place, alpha = best(of_task)
    for row in of_task:
      assert row['alpha'] == alpha
      value = row['by_alpha']['log_likelihood'][place]
      assert row['log_likelihood'][1] == value
  # A rerun leaves everything as it is.
  before = (tmp_path / 'test' / 'results.jsonl').read_bytes()
  run(world, tmp_path / 'test', 'interpolation', interpolation__alpha='test')
  assert (tmp_path / 'test' / 'results.jsonl').read_bytes() == before
  # Of the numbers alone, which want another alpha than prose does.
  validation = tmp_path / 'validation.jsonl'
  with open(world.eval.documents) as file:
    lines = [line for line in file if 'numbers' in line]
  validation.write_text(''.join(lines))
  chosen = run(
    world,
    tmp_path / 'chosen',
    'interpolation',
    eval__validation=str(validation),
  )
  with open(tmp_path / 'chosen' / 'validation.jsonl') as file:
    place, alpha = best([json.loads(line) for line in file])
  assert {row['alpha'] for row in chosen} == {alpha}
  for row in chosen:
    value = row['by_alpha']['log_likelihood'][place]
    assert row['log_likelihood'][1] == value


def test_dynamic_evaluation_equals_torch(world, oracle, tmp_path):
  rows = run(
    world,
    tmp_path,
    'dynamic_eval',
    dynamic_eval__steps=3,
    eval__at='0,1,3',
    store__path='',
    embedder__path='',
  )
  settings = ttt.Settings(learning_rate=1e-3, max_length=64, stride=64)
  for row, document in zip(rows, oracle.documents, strict=True):
    first, second = oracle.parts(document, 'split')
    oracle.model.load_state_dict(oracle.base)
    expected, losses = torch_loop.run(
      oracle.model, second, [first] * 3, settings, EOT
    )
    oracle.model.load_state_dict(oracle.base)
    assert row['at'] == [0, 1, 3]
    found = [expected[count] for count in row['at']]
    assert row['log_likelihood'] == pytest.approx(found, rel=1e-4)
    assert row['train_loss'] == pytest.approx(losses, rel=1e-4)
    assert row['neighbors'] == []
    assert len(row['adapt_seconds']) == 3


def test_faithful_dynamic_evaluation_carries_and_reports_the_sixth_pass(
  world, oracle, tmp_path
):
  preset = evaluate.get_config('dynamic_eval,faithful')
  config = changed(
    world, method='dynamic_eval', eval=preset.eval, ttt=preset.ttt
  )
  config.dynamic_eval = preset.dynamic_eval
  config.eval.documents = world.eval.documents
  config.eval.limit = 3
  config.ttt.learning_rate = 1e-3
  config.ttt.dropout = False  # Or no other program could say the same.
  jobs.run(config, str(tmp_path))
  settings = ttt.Settings(
    learning_rate=1e-3, max_length=64, stride=64, weight_decay=0.01
  )
  adamw = torch_loop.optimizer(oracle.model, settings)
  for row, document in zip(rows_of(tmp_path), oracle.documents, strict=False):
    tokens = oracle.encode(document.text)  # Shorter than 2048.
    first, second = (
      oracle.encode(oracle.tokenizer.decode(part))
      for part in (tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :])
    )
    oracle.model.load_state_dict(oracle.base)
    expected, _ = torch_loop.run(
      oracle.model, second, [first] * 20, settings, EOT, adamw
    )
    assert row['at'] == [0, 6]
    assert row['log_likelihood'] == pytest.approx(
      [expected[0], expected[6]], rel=1e-4
    )
  oracle.model.load_state_dict(oracle.base)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'interpolation__alpha': '2'}, "alpha='2' is neither"),
    ({'interpolation__alpha': 'validation'}, 'needs eval.validation'),
    ({'retrieval__neighbors': 0}, 'needs retrieval.neighbors, which is 0'),
    ({'method': 'in_context', 'in_context__variant': 'x'}, "variant='x'"),
    (
      {'method': 'dynamic_eval', 'eval__protocol': 'whole'},
      "protocol='whole', but dynamic_eval",
    ),
    (
      {'method': 'dynamic_eval', 'eval__at': '51'},
      'asks for 51 .* dynamic_eval.steps is 50',
    ),
  ],
)
def test_bad_input_is_refused(world, tmp_path, changes, message):
  changes = {'method': 'interpolation'} | changes
  with pytest.raises(ValueError, match=message):
    jobs.run(changed(world, **changes), str(tmp_path))


def test_variants_of_the_config():
  for method in ('base', 'ttt', 'dynamic_eval', 'in_context', 'interpolation'):
    for variant in (method, f'{method},clean', f'{method},faithful'):
      assert evaluate.get_config(variant).method == method
  with pytest.raises(ValueError, match='the variant is one of base, ttt'):
    evaluate.get_config('knn')
