"""kNN over pairs as whole runs, against all keys and distances in float64."""

import json
import math
import os
import sys

import numpy as np
import pytest
import sacrebleu
import torch

from tests import pair_store_test
from tests import pair_world
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import pairs as pairs_lib
from tttnn.scoring import results as results_lib
from tttnn.scoring import token_scores
from tttnn.scoring import translation

pytestmark = pytest.mark.usefixtures('compile_fast')
K, LAMBDA, TEMPERATURE, MAX_TOKENS = 6, 0.6, 3.0, 10
changed, rows_of = world_lib.changed, world_lib.rows_of
directory = pair_store_test.directory


# Where the model makes no difference.
one_model = pytest.mark.parametrize('config', ['causal'], indirect=True)


def of_results(workdir):
  return {row['doc_id']: row for row in rows_of(workdir)}


def of_outputs(workdir):
  with open(os.path.join(workdir, 'outputs.jsonl'), encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  return {row['doc_id']: row for row in rows}


@pytest.fixture(scope='module', params=pair_store_test.MODELS)
def config(request, directory):
  """Of a run of knn_lm over a store, some of whose pairs are tested."""
  kind = request.param
  config = pair_world.make(directory, kind)
  jobs.run(config, f'{directory}/{kind}-build')
  records = pair_world.texts(30, seed=0)[:3] + pair_world.texts(6, seed=5)
  for number, record in enumerate(records):
    record['id'] = number if number % 2 else f'test {number}'
  config.pairs.test = pair_world.write(
    directory / f'{kind}-test.arrow', kind, records
  )
  config.job = 'evaluate'
  config.method = 'knn_lm'
  config.knn.update(
    {'neighbors': K, 'lambda': LAMBDA, 'temperature': TEMPERATURE}
  )
  config.eval.generate = True
  config.generate.max_tokens = MAX_TOKENS
  return config


class Oracle:
  """Torch's model with all keys of the store."""

  def __init__(self, config):
    self.states = pair_store_test.States(config.model.path, config.store.key)
    self.keys, self.values = [], []
    for number in range(2):
      path = config.pairs.train.replace('?', str(number))
      for source, target in pairs_lib.open(path):
        keys, _ = self.states(source, target)
        self.keys.append(np.float16(keys))
        self.values += target
    self.keys = np.concatenate(self.keys).astype(np.float64)
    self.values = np.array(self.values)

  def __call__(self, source, target):
    """Log-probabilities of all tokens [U, V], of the model and mixed."""
    keys, log_p = self.states(source, target)
    mixed = []
    for key, of_model in zip(keys, log_p, strict=True):
      squares = ((self.keys - key) ** 2).sum(axis=1)
      nearest = np.argsort(squares, kind='stable')[:K]
      shares = np.exp(-(squares[nearest] - squares[nearest[0]]) / TEMPERATURE)
      p = np.zeros(len(of_model))
      np.add.at(p, self.values[nearest], shares / shares.sum())
      mixed.append(LAMBDA * p + (1 - LAMBDA) * np.exp(of_model))
    return log_p, np.log(mixed)

  def greedy(self, source, end):
    """The likeliest token at each step, mixed."""
    written = []
    while len(written) < MAX_TOKENS and end not in written:
      _, mixed = self(source, [*written, 0])  # The last one is not read.
      written.append(int(mixed[-1].argmax()))
    return written


@pytest.fixture(scope='module')
def oracle(config):
  return Oracle(config)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  jobs.run(config, str(workdir))
  return workdir


@one_model
@pytest.mark.parametrize('method', ['base', 'knn_lm'])
def test_scores_of_tokens_are_kept(config, tmp_path, method):
  config = changed(
    config, method=method, eval__generate=False, eval__save_tokens=True
  )
  jobs.run(config, str(tmp_path))
  reader = token_scores.Reader(str(tmp_path))
  rows = rows_of(tmp_path)
  assert {row['doc_id'] for row in rows} == set(reader.ids)
  for row in rows:
    tokens = reader.read(row['doc_id'])
    assert len(tokens.text.encode()) == row['num_bytes']
    assert tokens.query  # The input.
    scores_CxT = tokens.of_row(row)
    assert scores_CxT.shape == (len(row['at']), row['num_tokens'])
    np.testing.assert_allclose(
      scores_CxT.sum(1), row['log_likelihood'], rtol=1e-6
    )


def test_log_likelihoods_are_those_of_all_keys(config, oracle, finished):
  pairs, rows = pairs_lib.open(config.pairs.test), of_results(finished)
  end = pair_store_test.tokenizer(config).eos_token_id
  assert len(rows) == len(pairs) == 9
  cut = 0
  for number, (source, target) in enumerate(pairs):
    row = rows[pairs.id(number)]
    places = np.arange(len(target))
    scores = [log_p[places, target].sum() for log_p in oracle(source, target)]
    assert row['at'] == [0, K]
    assert row['log_likelihood'] == pytest.approx(scores, rel=1e-4, abs=1e-4)
    assert row['num_tokens'] == len(target)
    assert row['protocol'] == 'pairs'
    text = pairs.texts(number)[1]
    if target[-1] == end:
      assert row['num_bytes'] == len(text.encode())
    else:  # What was cut off, if only the end of the text, is not scored.
      assert 0 < row['num_bytes'] <= len(text.encode())
      cut += row['num_bytes'] < len(text.encode())
  assert cut
  with open(finished / 'summary.json') as file:
    found = json.load(file)['pairs']
  tokens = sum(row['num_tokens'] for row in rows.values())
  num_bytes = sum(row['num_bytes'] for row in rows.values())
  for place, name in enumerate(('base', 'knn')):
    nats = -sum(row['log_likelihood'][place] for row in rows.values())
    assert found[name] == {
      'perplexity': pytest.approx(math.exp(nats / tokens)),
      'bits_per_byte': pytest.approx(nats / math.log(2) / num_bytes),
    }
  assert found['knn']['perplexity'] < found['base']['perplexity']


def test_texts_are_those_of_all_keys(config, oracle, finished):
  pairs, rows = pairs_lib.open(config.pairs.test), of_outputs(finished)
  tokenizer = pair_store_test.tokenizer(config)
  differ = 0
  for number, (source, _) in enumerate(pairs):
    row = rows[pairs.id(number)]
    assert (row['input'], row['reference']) == pairs.texts(number)
    written = oracle.greedy(source, tokenizer.eos_token_id)
    text = tokenizer.decode(written, skip_special_tokens=True)
    assert row['knn']['text'] == text
    assert row['knn']['tokens'] == len(written)
    assert row['knn']['ended'] == (tokenizer.eos_token_id in written)
    _, mixed = oracle(source, written)
    score = sum(m[token] for m, token in zip(mixed, written, strict=True))
    assert row['knn']['score'] == pytest.approx(score, rel=1e-3, abs=1e-3)
    differ += row['base']['text'] != text
  assert differ > 4


@pytest.mark.slow
def test_base_texts_are_those_of_transformers(config, tmp_path):
  beams = 3
  config = changed(
    config, method='base', generate__beams=beams, eval__batch_size=2
  )
  jobs.run(config, str(tmp_path))
  pairs, rows = pairs_lib.open(config.pairs.test), of_outputs(tmp_path)
  tokenizer = pair_store_test.tokenizer(config)
  model = pair_store_test.States(config.model.path, 'ffn_input').model
  for number, (source, _) in enumerate(pairs):
    read = torch.tensor([source])
    output = model.generate(
      read,
      attention_mask=torch.ones_like(read),
      do_sample=False,
      num_beams=beams,
      max_new_tokens=MAX_TOKENS,
      early_stopping=False,
      eos_token_id=tokenizer.eos_token_id,
      pad_token_id=tokenizer.pad_token_id or 0,
    )[0].tolist()
    written = output[1 if model.config.is_encoder_decoder else len(source) :]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    row = rows[pairs.id(number)]
    assert row['base']['text'] == expected
    assert 'knn' not in row


def test_bleu_is_that_of_sacrebleu_and_improves_where_the_store_knows(
  config, finished
):
  with open(finished / 'summary.json') as file:
    found = json.load(file)['generation']
  rows = of_outputs(finished).values()
  references = [row['reference'] for row in rows]
  for name in ('base', 'knn'):
    texts = [row[name]['text'] for row in rows]
    expected = sacrebleu.corpus_bleu(texts, [references])
    assert found[name]['bleu'] == pytest.approx(expected.score)
    same = [
      text.split() == reference.split()
      for text, reference in zip(texts, references, strict=True)
    ]
    assert found[name]['exact_match'] == sum(same) / len(same)
    assert 'tok:13a' in found[name]['signature']
  assert found['knn']['bleu'] > found['base']['bleu']
  markdown = (finished / 'summary.md').read_text()
  assert f'{found["knn"]["bleu"]:.2f}' in markdown


@pytest.mark.slow
def test_lambda_0_is_the_model(config, tmp_path):
  config = changed(config, generate__beams=2)
  config.knn['lambda'] = 0.0
  jobs.run(config, str(tmp_path / 'knn'))
  spread = changed(config, method='base', mesh__data=2)
  jobs.run(spread, str(tmp_path / 'base'))
  alone = of_results(tmp_path / 'base')
  for id_, row in of_results(tmp_path / 'knn').items():
    assert row['log_likelihood'][0] == row['log_likelihood'][1]
    assert row['log_likelihood'][0] == pytest.approx(
      alone[id_]['log_likelihood'][0], rel=1e-5
    )
  alone = of_outputs(tmp_path / 'base')
  for id_, row in of_outputs(tmp_path / 'knn').items():
    assert row['knn'] == row['base']
    assert row['base']['text'] == alone[id_]['base']['text']


@pytest.mark.slow
def test_what_was_killed_goes_on_to_the_same_rows(
  config, finished, tmp_path, monkeypatch
):
  class Killed(Exception):
    pass

  append, left = results_lib.Results.append, [4]

  def dies(self, row):
    append(self, row)
    left[0] -= 1
    if not left[0]:
      raise Killed

  monkeypatch.setattr(results_lib.Results, 'append', dies)
  for count in (4, 10):  # Among the rows, and among the texts.
    left[0] = count
    with pytest.raises(Killed):
      jobs.run(config, str(tmp_path))
  left[0] = 100
  jobs.run(config, str(tmp_path))
  assert left[0] == 96  # Of 18, 4 were left.
  for read in (of_results, of_outputs):
    found, expected = read(tmp_path), read(finished)
    assert world_lib.timeless(found.values()) == world_lib.timeless(
      expected[id_] for id_ in found
    )
    assert found.keys() == expected.keys()
  with pytest.raises(ValueError, match='generate.beams: 1 there, 2 now'):
    jobs.run(changed(config, generate__beams=2), str(tmp_path))


def test_an_automaton_that_always_searches_is_knn_lm(
  config, finished, tmp_path
):
  jobs.run(
    changed(
      config,
      method='retomaton',
      retomaton__min_knns=math.inf,
      retomaton__max_knns=0,
    ),
    str(tmp_path),
  )
  expected = of_results(finished)
  for id_, row in of_results(tmp_path).items():
    assert row['searches'] == row['num_tokens']
    assert row['log_likelihood'] == pytest.approx(
      expected[id_]['log_likelihood'], rel=1e-5
    )
  expected = of_outputs(finished)
  for id_, row in of_outputs(tmp_path).items():
    assert row['knn']['text'] == expected[id_]['knn']['text']


@pytest.mark.slow
def test_an_automaton_saves_searches_under_beams(config, tmp_path, capsys):
  jobs.run(
    changed(config, method='retomaton', generate__beams=3), str(tmp_path)
  )
  rows = of_results(tmp_path).values()
  searches = sum(row['searches'] for row in rows)
  assert 0 < searches < sum(row['num_tokens'] for row in rows)
  (line,) = [
    line
    for line in capsys.readouterr().out.splitlines()
    if 'searches of texts' in line
  ]
  assert 0 < float(line.split()[1]) < 1


@one_model
def test_what_was_found_serves_other_settings(config, tmp_path):
  config = changed(config, eval__generate=False)
  cache = str(tmp_path / 'found.npz')
  jobs.run(changed(config, knn__cache=cache), str(tmp_path / 'first'))
  config.knn.update({'lambda': 0.2, 'temperature': 9.0, 'neighbors': 3})
  jobs.run(config, str(tmp_path / 'searched'))
  config.knn.cache = cache
  config.store.address = '/nobody'
  jobs.run(config, str(tmp_path / 'cached'))
  expected = of_results(tmp_path / 'searched')
  for id_, row in of_results(tmp_path / 'cached').items():
    assert row['log_likelihood'] == pytest.approx(
      expected[id_]['log_likelihood'], rel=1e-6
    )


@one_model
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'method': 'ttt'}, "method='ttt' is of documents"),
    ({'generate__temperature': 0.5}, 'draws none'),
    ({'generate__early_stopping': 'no'}, "early_stopping='no' is not one of"),
    ({'generate__beams': 0}, 'beams=0 must be 1 or more'),
    ({'eval__bleu_tokenize': 'word'}, "bleu_tokenize='word' is not one of"),
    ({'knn__drop_self': True}, 'is in no store'),
    ({'eval__tasks': 'prose'}, 'pairs have no domains'),
    ({'store__path': ''}, 'needs knn.store or store.path'),
  ],
)
def test_bad_input_is_refused(config, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(changed(config, **changes), str(tmp_path))


@one_model
def test_own_entries_are_dropped(config, oracle, tmp_path, directory):
  config = changed(config, eval__generate=False, knn__drop_self=True)
  kind = pairs_lib.open(config.pairs.test).kind
  records = pair_world.texts(30, seed=0)
  for record in records:
    del record['id']
  path = directory / f'{kind}-own.arrow'
  config.pairs.test = pair_world.write(path, kind, records)
  jobs.run(config, str(tmp_path))
  dropped = of_results(tmp_path)
  at = checked = 0
  for number, (source, target) in enumerate(pairs_lib.open(str(path))):
    total, clear = 0.0, True
    keys, log_p = oracle.states(source, target)
    for place, token in enumerate(target):
      squares = ((oracle.keys - keys[place]) ** 2).sum(axis=1)
      squares[at + place] = np.inf
      *nearest, next_ = np.argsort(squares, kind='stable')[: K + 1]
      # Or rounding decides which of them is the last one.
      clear &= squares[next_] - squares[nearest[-1]] > 1e-2
      shares = np.exp(-(squares[nearest] - squares[nearest[0]]) / TEMPERATURE)
      hit = oracle.values[nearest] == token
      p = LAMBDA * shares[hit].sum() / shares.sum()
      total += math.log(p + (1 - LAMBDA) * math.exp(log_p[place][token]))
    at += len(target)
    checked += clear
    if clear:
      assert dropped[number]['log_likelihood'][1] == pytest.approx(
        total, rel=1e-4, abs=1e-4
      )
  assert checked > 8


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(ValueError, match=r'install the extra \[mt\]'):
    translation.check('13a')


@one_model
def test_a_dry_run_reads_and_writes(config, tmp_path, capsys):
  jobs.run(changed(config, dry_run=True), str(tmp_path))
  assert 'documents       9' in capsys.readouterr().out
  assert not (tmp_path / 'results.jsonl').exists()
