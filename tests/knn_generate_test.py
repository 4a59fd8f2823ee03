"""The job `generate` with neighbours at each token, against slow loops."""

import json
import math

import numpy as np
import pytest
import torch
import transformers

from tests import knn_job_test
from tests import retomaton_test
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import jsonl
from tttnn.methods import retomaton

PROMPTS = ['The quick brown', '17 23 991', 'five boxing wizards', '']
MAX_TOKENS = 10
K, LAMBDA, TEMPERATURE = 8, 0.6, 5.0
POINTERS = retomaton.Settings(min_knns=2, max_knns=12)
EOT = 0

config = knn_job_test.config  # A store of tokens.


@pytest.fixture(scope='module')
def prompts(config, tmp_path_factory):
  """The config of a job over a file of prompts."""
  path = tmp_path_factory.mktemp('prompts') / 'prompts.jsonl'
  with open(path, 'w') as file:
    for text in PROMPTS:
      file.write(json.dumps({'text': text}) + '\n')
  config = world_lib.changed(
    config,
    job='generate',
    generate__input=str(path),
    generate__max_tokens=MAX_TOKENS,
    retomaton__min_knns=float(POINTERS.min_knns),
    retomaton__max_knns=POINTERS.max_knns,
  )
  config.knn.update(
    {'neighbors': K, 'lambda': LAMBDA, 'temperature': TEMPERATURE}
  )
  return config


@pytest.fixture(scope='module')
def oracle(config):
  return Oracle(config)


class Oracle(knn_job_test.Oracle):
  """Reads a text from its beginning for each of its tokens."""

  def __init__(self, config):
    super().__init__(config)
    self.cluster = None
    corpus = jsonl.read(jsonl.expand(config.corpus.train))
    lengths = [
      len(self.tokenizer(text)['input_ids']) for text in corpus.iter_texts()
    ]
    self.starts = np.cumsum([0, *lengths])[:-1]
    assert sum(lengths) == len(self.values)

  def distance(self, query, ids):
    return np.sqrt(((self.keys[ids] - query) ** 2).sum(axis=1))

  def search(self, queries):
    away = np.array([self.distance(query, slice(None)) for query in queries])
    ids = np.argsort(away, axis=1, kind='stable')[:, :K]
    return np.take_along_axis(away, ids, axis=1), ids

  @torch.no_grad()
  def write(self, prompt, choose):
    """Tokens that `choose` picks by (log p_LM, key) of the whole text."""
    tokens = self.tokenizer(prompt)['input_ids'] or [EOT]
    written = []
    while len(written) < MAX_TOKENS:
      self.states.clear()
      logits = self.model(torch.tensor([tokens + written])).logits[0, -1]
      log_p = torch.log_softmax(logits.double(), dim=-1).numpy()
      token = choose(log_p, self.states[0][-1].numpy())
      if token == EOT:
        break
      written.append(token)
    return self.tokenizer.decode(written, clean_up_tokenization_spaces=False)

  def best(self, log_p, found):
    """The likeliest token of the mixture with neighbours."""
    p = np.exp(log_p) * (1 - LAMBDA)
    squares = [distance**2 for distance, _ in found]
    shares = [math.exp((min(squares) - s) / TEMPERATURE) for s in squares]
    for share, (_, entry) in zip(shares, found, strict=True):
      p[self.values[entry]] += LAMBDA * share / sum(shares)
    return int(p.argmax())


def run(config, output, **changes):
  jobs.run(
    world_lib.changed(config, generate__output=str(output), **changes), ''
  )
  with open(output) as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope='module')
def base_rows(prompts, tmp_path_factory):
  output = tmp_path_factory.mktemp('base') / 'texts.jsonl'
  return run(prompts, output, method='base')


@pytest.fixture(scope='module')
def rows(prompts, tmp_path_factory):
  return run(prompts, tmp_path_factory.mktemp('knn') / 'texts.jsonl')


def test_texts_equal_a_loop_that_reads_all_again(oracle, rows, base_rows):
  def choose(log_p, key):
    (distances,), (ids,) = oracle.search(key[None])
    return oracle.best(log_p, list(zip(distances, ids, strict=True)))

  expected = [
    {**row, 'after': oracle.write(row['prompt'], choose)} for row in base_rows
  ]
  assert rows == expected
  assert all(row['after'] != row['before'] for row in rows)


def test_retomaton_equals_a_plain_automaton(
  oracle, prompts, base_rows, tmp_path, capsys
):
  def expected(row):
    plain = retomaton_test.Plain(oracle, POINTERS)

    def choose(log_p, key):
      _, found = plain.candidates(key)
      token = oracle.best(log_p, found)
      plain.advance(token)
      return token

    after = oracle.write(row['prompt'], choose)
    counts = {'steps': plain.steps, 'searches': plain.searches}
    return {**row, 'after': after, **counts}

  found = run(prompts, tmp_path / 'texts.jsonl', method='retomaton')
  assert found == list(map(expected, base_rows))
  steps, searches = (
    sum(row[name] for row in found) for name in ('steps', 'searches')
  )
  assert 0.1 < searches / steps < 0.9


@pytest.mark.slow
def test_the_same_random_numbers_draw_both_texts(prompts, rows, tmp_path):
  changes = {'generate__temperature': 1.0, 'generate__top_p': 0.9}
  alone = world_lib.changed(prompts, **changes)
  alone.knn['lambda'] = 0.0
  found = run(alone, tmp_path / 'alone.jsonl')
  assert all(row['after'] == row['before'] for row in found)
  found = run(prompts, tmp_path / 'knn.jsonl', **changes)
  assert all(row['after'] != row['before'] for row in found)
  assert found != rows
  # That searches always and points nowhere: kNN-LM, however it draws.
  pointless = run(
    prompts,
    tmp_path / 'retomaton.jsonl',
    method='retomaton',
    retomaton__min_knns=math.inf,
    retomaton__max_knns=0,
    **changes,
  )
  for row, other in zip(pointless, found, strict=True):
    assert row.pop('steps') == row.pop('searches')
    assert row == other


def test_one_prompt_is_shown_beside_its_neighbours(prompts, rows, capsys):
  config = world_lib.changed(
    prompts, generate__input='', generate__prompt=PROMPTS[0]
  )
  for method, title in (
    ('knn_lm', f'with {K} neighbours a token'),
    ('retomaton', f'searches in {MAX_TOKENS} tokens'),
  ):
    jobs.run(world_lib.changed(config, method=method), '')
    lines = capsys.readouterr().out.splitlines()
    (top,) = [n for n, line in enumerate(lines) if line.startswith('before')]
    assert title in lines[top]
    if method == 'knn_lm':
      sides = zip(
        *[line.split(' | ') for line in lines[top + 2 :]], strict=True
      )
      for side, name in zip(sides, ('before', 'after'), strict=True):
        assert ''.join(''.join(side).split()) == ''.join(rows[0][name].split())


def test_a_rerun_goes_on_with_the_same_settings_alone(prompts, rows, tmp_path):
  output = tmp_path / 'texts.jsonl'
  assert run(prompts, output) == rows
  whole = output.read_bytes()
  lines = whole.splitlines(keepends=True)
  output.write_bytes(lines[0] + lines[1][:10])
  assert run(prompts, output) == rows
  with pytest.raises(ValueError, match=r'knn.neighbors: 8 there, 7 now'):
    run(prompts, output, knn__neighbors=7)
  with pytest.raises(ValueError, match=r"method: 'knn_lm' there, 'retomaton'"):
    run(prompts, output, method='retomaton')


def test_a_dry_run_tells_what_texts_cost(prompts, capsys):
  jobs.run(world_lib.changed(prompts, dry_run=True), '')
  assert 'generate (knn_lm)' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'store__path': ''}, 'method=knn_lm needs knn.store or store.path'),
    ({'knn__drop_self': True}, 'still to be written is in no store'),
    ({'knn__lambdas': '0.1,0.2'}, "lambdas='0.1,0.2' goes with job=evaluate"),
    ({'knn__neighbors': 10**6}, 'asks for 1000000 entries'),
    ({'knn__temperature': 0.0}, 'knn.temperature=0.0'),
    ({'generate__max_tokens': 60}, 'than the 4 .*=60 .* of 64'),
  ],
)
def test_bad_input_is_refused(prompts, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(prompts, tmp_path / 'texts.jsonl', **changes)


def test_another_models_store_is_refused(prompts, world, tmp_path):
  model = transformers.GPT2LMHeadModel.from_pretrained(world.model.path)
  with torch.no_grad():
    model.transformer.wte.weight *= 2
  model.save_pretrained(tmp_path / 'other')
  transformers.AutoTokenizer.from_pretrained(world.model.path).save_pretrained(
    tmp_path / 'other'
  )
  with pytest.raises(ValueError, match='was built with model'):
    run(prompts, tmp_path / 'texts.jsonl', model__path=str(tmp_path / 'other'))
