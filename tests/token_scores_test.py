"""Scores of single tokens: their file, and that they make up the rows."""

import json
import math
import os
import random
import signal
import time

import numpy as np
import pytest

from tests import evaluate_test
from tests import tiny
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.scoring import results
from tttnn.scoring import token_scores

changed = world_lib.changed
rows_of = world_lib.rows_of


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return world_lib.make(tmp_path_factory.mktemp('world'))


def tokens_of(text, scores):
  return token_scores.Tokens(
    text=text,
    ends_T=np.arange(1, len(text) + 1, dtype=np.uint32),
    at=list(range(len(scores))),
    scores_CxT=np.asarray(scores, np.float32),
    query='asked \u2028',
    neighbors=['one', ''],
    neighbor_chars=[3, 0],
  )


def row_of(doc_id, tokens):
  sums = [math.fsum(scores) for scores in tokens.scores_CxT]
  return {'doc_id': doc_id, 'at': tokens.at, 'log_likelihood': sums}


def opened(workdir, **more):
  workdir.mkdir(exist_ok=True)
  return results.Results(str(workdir), {}, tokens=True, **more)


def append(to, doc_id, text='h\u00e9\U0001f389', scores=None):
  scores = np.full((2, len(text)), -1.5) if scores is None else scores
  tokens = tokens_of(text, scores)
  to.append(row_of(doc_id, tokens) | {results.TOKENS: tokens})
  return tokens


def test_what_is_read_is_what_was_written(tmp_path):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(3, 4)).astype(np.float32)
  scores[1, 2] = -np.inf
  to = opened(tmp_path)
  written = append(to, 'a', '<b>\n', scores)
  append(to, 7, '', np.zeros((2, 0)))
  to.close()
  assert all(results.TOKENS not in row for row in rows_of(tmp_path))
  reader = token_scores.Reader(str(tmp_path))
  assert list(reader.ids) == ['a', 7]
  found = reader.read('a')
  np.testing.assert_array_equal(found.scores_CxT, scores)
  np.testing.assert_array_equal(found.ends_T, [1, 2, 3, 4])
  for name in ('text', 'at', 'query', 'neighbors', 'neighbor_chars'):
    assert getattr(found, name) == getattr(written, name)
  assert reader.read(7).scores_CxT.shape == (2, 0)


def test_wherever_writing_stops_rows_and_scores_agree(tmp_path):
  # Records are written before their rows: all states a kill can leave.
  to = opened(tmp_path / 'whole')
  for doc_id in range(3):
    append(to, doc_id)
  to.close()
  lines = (tmp_path / 'whole' / 'results.jsonl').read_bytes()
  records = (tmp_path / 'whole' / 'tokens.bin').read_bytes()
  one = len(records) // 3
  for cut in range(1, one + 1):  # The second record is torn, or just there.
    torn = tmp_path / str(cut)
    torn.mkdir()
    (torn / 'results.config.json').write_text('{}')
    (torn / 'results.jsonl').write_bytes(lines.splitlines(True)[0])
    (torn / 'tokens.bin').write_bytes(records[: one + cut])
    again = opened(torn)
    assert list(again.rows) == [0]
    for doc_id in (1, 2):
      append(again, doc_id)
    again.close()
    assert (torn / 'results.jsonl').read_bytes() == lines
    reader = token_scores.Reader(str(torn))
    assert sorted(reader.ids) == [0, 1, 2]
    for row in rows_of(torn):
      reader.read(row['doc_id']).of_row(row)


def test_rows_that_have_none_are_named(tmp_path):
  to = results.Results(str(tmp_path), {})
  to.append({'doc_id': 'x'})
  to.close()
  with pytest.raises(ValueError, match="1 documents, of which 1, 'x' for one"):
    opened(tmp_path)


def test_scores_of_deleted_rows_go(tmp_path):
  to = opened(tmp_path)
  append(to, 0)
  to.close()
  os.unlink(tmp_path / 'results.jsonl')
  opened(tmp_path).close()
  assert not token_scores.Reader(str(tmp_path)).ids


def test_processes_write_apart_and_are_put_together(tmp_path):
  both = [opened(tmp_path, process=p, processes=2) for p in range(2)]
  for doc_id in (2, 0, 3, 1):
    append(both[doc_id % 2], doc_id, scores=np.full((2, 3), -doc_id))
  for one in both:
    one.close()
  assert len(token_scores.paths(str(tmp_path))) == 3 - 1
  assert token_scores.Reader(str(tmp_path)).ids == {0, 1, 2, 3}
  both[0].unite([0, 1, 2, 3])
  assert os.listdir(tmp_path).count('tokens.bin') == 1
  assert len(token_scores.paths(str(tmp_path))) == 1
  reader = token_scores.Reader(str(tmp_path))
  assert list(reader.ids) == [0, 1, 2, 3]
  for row in rows_of(tmp_path):
    assert reader.read(row['doc_id']).of_row(row)[0, 0] == -row['doc_id']


def test_one_process_goes_on_with_what_two_left(tmp_path):
  both = [opened(tmp_path, process=p, processes=2) for p in range(2)]
  for doc_id, one in enumerate(both):
    append(one, doc_id)
    one.close()
  alone = opened(tmp_path, processes=1)
  append(alone, 2)
  alone.close()
  assert [row['doc_id'] for row in rows_of(tmp_path)] == [0, 1, 2]
  names = [os.path.basename(p) for p in token_scores.paths(str(tmp_path))]
  assert names == ['tokens.bin']
  assert list(token_scores.Reader(str(tmp_path)).ids) == [0, 1, 2]


def test_what_does_not_fit_is_refused(tmp_path):
  to = opened(tmp_path)
  tokens = append(to, 0)
  to.close()
  row = row_of(0, tokens)
  with pytest.raises(ValueError, match=r'counts \[0\], its token scores'):
    tokens.of_row(row | {'at': [0], 'log_likelihood': [0.0]})
  with pytest.raises(ValueError, match='at 1: .* is 5 in its row, -4.5 by'):
    tokens.of_row(row | {'log_likelihood': [-4.5, 5.0]})
  tokens.of_row(row | {'log_likelihood': [-4.5, None]})
  path = tmp_path / 'tokens.bin'
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match='document 0 do not fit their checksum'):
    token_scores.Reader(str(tmp_path)).read(0)
  path.write_bytes(b'something else entirely, and long')
  with pytest.raises(ValueError, match=r'tokens\.bin: no token scores at byte'):
    token_scores.Reader(str(tmp_path))


def test_a_mixture_is_known_with_its_alpha():
  base = np.log(np.array([0.5, 0.25], np.float32))
  near = np.log(np.array([0.1, 0.8], np.float32))
  tokens = token_scores.Tokens(
    'ab', np.array([1, 2]), [0, 5], np.stack([base, near]), mixture=True
  )
  sums = [math.log(0.125), math.log(0.46 * 0.305)]
  row = {'doc_id': 0, 'at': [0, 5], 'log_likelihood': sums, 'alpha': 0.1}
  np.testing.assert_allclose(
    np.exp(tokens.of_row(row)), [[0.5, 0.25], [0.46, 0.305]], rtol=1e-6
  )
  unknown = {'doc_id': 0, 'at': [0, 5], 'log_likelihood': [sums[0], None]}
  assert np.isnan(tokens.of_row(unknown)[1]).all()


@pytest.mark.parametrize('kind', ['gpt2', 't5'])
def test_pieces_make_up_the_text(tmp_path, kind):
  if kind == 't5':
    tokenizer = tiny.t5_tokenizer(str(tmp_path))
  else:
    tokenizer = tokenizer_lib.train(
      tiny.documents(30), str(tmp_path), vocab_size=300, kind='gpt2'
    )
  for text in (
    '',
    ' The quick  brown fox 12\n',
    'h\u00e9 \U0001f389\U0001f389',
  ):
    (ids,) = tokenizer_lib.encode(tokenizer, [text])
    for tokens in (ids, [*ids, tokenizer.eos_token_id]):
      found, ends = tokenizer_lib.pieces(tokenizer, text, tokens)
      assert found == text and len(ends) == len(tokens)
      assert ends == sorted(ends) and ends[-1:] in ([], [len(text)])
  (ids,) = tokenizer_lib.encode(tokenizer, ['The quick brown fox'])
  found, ends = tokenizer_lib.pieces(tokenizer, 'another', ids)
  assert len(ends) == len(ids) and ends[-1] == len(found)
  assert 'brown' in found.replace(' ', '')


def test_pieces_are_the_tokens(tmp_path):
  tokenizer = tokenizer_lib.train(
    tiny.documents(30), str(tmp_path), vocab_size=400, kind='gpt2'
  )
  text = 'The quick brown fox'
  (ids,) = tokenizer_lib.encode(tokenizer, [text])
  _, ends = tokenizer_lib.pieces(tokenizer, text, ids)
  cut = [text[b:e] for b, e in zip([0, *ends], ends, strict=False)]
  assert cut == [tokenizer_lib.decode(tokenizer, [i]) for i in ids]


METHODS = {
  'base': {},
  'ttt': {},
  'dynamic_eval': {'dynamic_eval__steps': 2},
  'in_context': {},
  'interpolation': {'interpolation__alpha': '0.25'},
  'interpolation-test': {'interpolation__alpha': 'test'},
}


@pytest.mark.parametrize('name', METHODS)
def test_tokens_sum_to_the_rows_and_change_none(world, tmp_path, name):
  method = name.split('-')[0]
  config = changed(world, method=method, **METHODS[name])
  jobs.run(config, str(tmp_path / 'without'))
  assert not token_scores.paths(str(tmp_path / 'without'))
  kept = changed(config, eval__save_tokens=True)
  jobs.run(kept, str(tmp_path / 'with'))
  rows = rows_of(tmp_path / 'with')
  assert world_lib.timeless(rows) == world_lib.timeless(
    rows_of(tmp_path / 'without')
  )
  _check(config, tmp_path / 'with', exact=method != 'interpolation')
  # There is nothing to do, and nothing that changes.
  before = (tmp_path / 'with' / 'tokens.bin').read_bytes()
  jobs.run(kept, str(tmp_path / 'with'))
  assert (tmp_path / 'with' / 'tokens.bin').read_bytes() == before
  with pytest.raises(ValueError, match='without eval.save_tokens'):
    jobs.run(kept, str(tmp_path / 'without'))


def _check(config, workdir, exact):
  reader = token_scores.Reader(str(workdir))
  tokenizer = tokenizer_lib.load(config.model.path)
  texts = {}
  if config.method not in ('base', 'dynamic_eval', 'knn_lm', 'retomaton'):
    corpus = []
    for part in range(2):
      folder = os.path.dirname(config.store.path)
      with open(os.path.join(folder, f'train-{part}.jsonl')) as file:
        corpus += [json.loads(line)['text'] for line in file]
    texts = dict(enumerate(corpus))
  documents = {d.doc_id: d for d in documents_lib.read(config.eval.documents)}
  for row in rows_of(workdir):
    tokens = reader.read(row['doc_id'])
    scores = tokens.of_row(row)
    assert scores.shape == (len(row['at']), row['num_tokens'])
    for known, of_count in zip(row['log_likelihood'], scores, strict=True):
      if exact:  # float32 is what the model gave.
        assert math.fsum(map(float, of_count)) == known
      else:
        assert of_count.sum() == pytest.approx(known, rel=1e-5)
    case = documents_lib.apply_protocol(
      documents[row['doc_id']],
      tokenizer,
      protocol=config.eval.protocol,
      prefix=64,
    )
    assert (tokens.text, tokens.query) == (case.text, case.query)
    assert len(tokens.text.encode()) == row['num_bytes']
    assert tokens.neighbors == [texts[n['id']] for n in row['neighbors']]


@pytest.mark.parametrize('method', ['knn_lm', 'retomaton'])
def test_of_tokens_that_have_neighbours_of_their_own(world, tmp_path, method):
  config = world_lib.with_tokens(world, tmp_path)
  config = changed(
    config, method=method, knn__neighbors=8, eval__save_tokens=True
  )
  jobs.run(config, str(tmp_path / 'run'))
  _check(config, tmp_path / 'run', exact=False)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_scores(world, tmp_path):
  config = changed(world, eval__save_tokens=True)
  jobs.run(config, str(tmp_path / 'whole'))
  killed = tmp_path / 'killed'
  rng = random.Random(0)
  for _ in range(2):
    process = evaluate_test.command(config, killed)
    path = killed / 'results.jsonl'
    begin, deadline = _lines(path), time.monotonic() + 120
    while _lines(path) <= begin and process.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
  jobs.run(config, str(killed))
  reader = token_scores.Reader(str(killed))
  whole = token_scores.Reader(str(tmp_path / 'whole'))
  assert set(reader.ids) == set(whole.ids)
  for doc_id in whole.ids:
    expected, found = whole.read(doc_id), reader.read(doc_id)
    np.testing.assert_array_equal(found.scores_CxT, expected.scores_CxT)
    assert found.neighbors == expected.neighbors


def _lines(path):
  return path.read_bytes().count(b'\n') if path.exists() else 0
