"""Files of pairs against plain calls of `transformers`' tokenizers."""

import gzip
import json
import os

import pyarrow
from pyarrow import parquet
import pytest

from tests import tiny
from tttnn.corpus import jsonl
from tttnn.corpus import pairs
from tttnn.corpus import tokenizer as tokenizer_lib

LIMITS = {'max_input': 12, 'max_output': 9}
KINDS = ('seq2seq', 'causal')


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizers')
  tokenizer_lib.train(
    tiny.documents(30), f'{directory}/gpt2', vocab_size=300, kind='gpt2'
  )
  return {
    'causal': tokenizer_lib.load(f'{directory}/gpt2'),
    'seq2seq': tiny.t5_tokenizer(str(directory / 't5')),
  }


def records(count=7, seed=0):
  """Pairs of all lengths, of which some have an id."""
  inputs = tiny.documents(count, seed)
  made = []
  for row, text in enumerate(inputs):
    words = text.split()
    record = {
      'input': ' '.join(words[: row * 2 + 1]),
      'output': ' '.join(reversed(words[: row % 5 + 1])),
    }
    if row % 3:
      record['id'] = f'q{row}' if row % 2 else 100 + row
    made.append(record)
  return made


def write_lines(path, records_):
  with open(path, 'w', encoding='utf-8') as file:
    for record in records_:
      file.write(json.dumps(record) + '\n')
  return str(path)


def expected(tokenizer, kind, record):
  """The ids of a pair by the definition, and which texts are cut."""
  source = tokenizer(record['input'], add_special_tokens=False)['input_ids']
  target = tokenizer(record['output'], add_special_tokens=False)['input_ids']
  target = target + [tokenizer.eos_token_id]
  if kind == 'seq2seq':
    ids = tokenizer(
      record['input'], truncation=True, max_length=LIMITS['max_input']
    )['input_ids']
    cut = len(source) + 1 > LIMITS['max_input']
  else:
    ids = source[max(0, len(source) - LIMITS['max_input']) :]
    cut = len(source) > LIMITS['max_input']
  return (
    (ids, target[: LIMITS['max_output']]),
    (cut, len(target) > LIMITS['max_output']),
  )


@pytest.mark.parametrize('kind', KINDS)
def test_ids_are_those_of_the_tokenizer(
  tokenizers, tmp_path, monkeypatch, kind
):
  monkeypatch.setattr(pairs, '_ROWS', 3)  # The last batch is not full.
  tokenizer = tokenizers[kind]
  made = [records(5), records(8, seed=1)]
  paths = [write_lines(tmp_path / f'{i}.jsonl', r) for i, r in enumerate(made)]
  path = str(tmp_path / 'train.arrow')
  done = []
  counts = pairs.write(
    path, paths, tokenizer, kind=kind, **LIMITS, progress=done.append
  )
  found = pairs.open(path)
  everything = made[0] + made[1]
  assert len(found) == sum(done) == counts['pairs'] == 13
  wanted = [expected(tokenizer, kind, record) for record in everything]
  assert list(found) == [ids for ids, _ in wanted]
  assert [found[i] for i in (12, 0, 7)] == [wanted[i][0] for i in (12, 0, 7)]
  for side, name in enumerate(('input', 'output')):
    cut = sum(cuts[side] for _, cuts in wanted)
    assert 0 < cut < 13
    assert counts[name]['truncated'] == cut
  for i, record in enumerate(everything):
    assert found.texts(i) == (record['input'], record['output'])
    assert found.id(i) == record.get('id', i)
  assert found.kind == kind and found.limits == LIMITS
  assert found.counts == counts
  found.check(tokenizer)
  assert sorted(os.listdir(tmp_path)) == ['0.jsonl', '1.jsonl', 'train.arrow']
  for wrong in (-1, 13):
    with pytest.raises(IndexError, match=f'pair {wrong} of .* has 13 pairs'):
      found[wrong]


def test_lengths_are_those_before_texts_are_cut(tokenizers, tmp_path):
  tokenizer = tokenizers['causal']
  made = records(9)
  path = write_lines(tmp_path / 'a.jsonl', made)
  out = str(tmp_path / 'a.arrow')
  counts = pairs.write(out, [path], tokenizer, kind='causal', **LIMITS)
  for side, more in (('input', 0), ('output', 1)):
    sizes = sorted(len(tokenizer(r[side])['input_ids']) + more for r in made)
    about = counts[side]
    assert about['mean'] == pytest.approx(sum(sizes) / 9)
    assert about['max'] == sizes[-1] > LIMITS[f'max_{side}']
    # Of nine, five are the first that are half.
    assert about['percentiles']['50'] == sizes[4]
    assert about['percentiles']['99'] == sizes[-1]


@pytest.mark.parametrize('kind', ['jsonl.gz', 'jsonl.zst', 'parquet'])
def test_every_format_gives_the_same_pairs(tokenizers, tmp_path, kind):
  made = [record | {'id': f'q{i}'} for i, record in enumerate(records())]
  plain = write_lines(tmp_path / 'a.jsonl', made)
  other = str(tmp_path / f'a.{kind}')
  with open(plain, 'rb') as file:
    data = file.read()
  if kind == 'parquet':
    parquet.write_table(pyarrow.Table.from_pylist(made), other)
  else:
    with open(other, 'wb') as file:
      if kind == 'jsonl.gz':
        file.write(gzip.compress(data))
      else:
        file.write(pyarrow.compress(data, 'zstd', asbytes=True))
  found = []
  for path in (plain, other):
    out = f'{path}.arrow'
    pairs.write(out, [path], tokenizers['seq2seq'], kind='seq2seq', **LIMITS)
    found.append(pairs.open(out))
  one, two = found
  assert list(one) == list(two)
  assert [one.id(i) for i in range(7)] == [two.id(i) for i in range(7)]
  assert one.digest == two.digest
  assert one.sources != two.sources


def test_parquet_without_the_columns_is_refused(tokenizers, tmp_path):
  path = str(tmp_path / 'a.parquet')
  out = str(tmp_path / 'a.arrow')
  for columns, message in (
    ({'input': ['a'], 'text': ['b']}, r'no "output" among the columns'),
    ({'input': [1], 'output': ['b']}, 'column "input" is int64, not string'),
  ):
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ValueError, match=rf'a\.parquet: {message}'):
      pairs.write(out, [path], tokenizers['causal'], kind='causal', **LIMITS)


def test_the_digest_sees_every_change(tokenizers, tmp_path):
  tokenizer = tokenizers['causal']

  def digest(records_, **limits):
    path = write_lines(tmp_path / 'a.jsonl', records_)
    out = str(tmp_path / 'a.arrow')
    pairs.write(out, [path], tokenizer, kind='causal', **LIMITS | limits)
    return pairs.open(out).digest

  made = records(4)
  changes = [
    [*made[:3], made[3] | {'id': 'other'}],
    [*made[:3], made[3] | {'input': made[3]['input'] + '.'}],
    [*made[:3], made[3] | {'output': 'x ' + made[3]['output']}],
    made[:3],
    [made[1], made[0], *made[2:]],
  ]
  digests = [digest(made), *map(digest, changes), digest(made, max_input=5)]
  assert len(set(digests)) == 7
  assert digest(made) == digests[0]


@pytest.mark.parametrize(
  'line, message',
  [
    ({'output': 'b'}, 'no "input" among the keys'),
    ({'input': 'a', 'text': 'b'}, 'no "output" among the keys'),
    ({'input': 'a', 'output': 3}, '"output" must be a string, not int'),
    ({'input': None, 'output': 'b'}, '"input" must be a string, not NoneType'),
    ({'input': 'a', 'output': ''}, '"output" is empty'),
    ({'input': '', 'output': 'b'}, '"input" is empty, and a causal LM'),
    ({'input': 'a', 'output': 'b', 'id': 1.5}, 'id 1.5 is neither a string'),
    ({'input': 'a', 'output': 'b', 'id': True}, 'id True is neither'),
    ({'input': 'a', 'output': '\ud800'}, '"output" holds half of a surrogate'),
    (['a', 'b'], 'a JSON object is needed, not list'),
  ],
)
def test_wrong_lines_are_named_or_left_out(tokenizers, tmp_path, line, message):
  paths = [
    write_lines(tmp_path / 'a.jsonl', [{'input': 'a', 'output': 'b'}]),
    write_lines(
      tmp_path / 'b.jsonl',
      [{'input': 'c', 'output': 'd'}, line, {'input': 'e', 'output': 'f'}],
    ),
  ]
  out = str(tmp_path / 'out.arrow')
  tokenizer = tokenizers['causal']
  with pytest.raises(jsonl.MalformedLine, match=rf'b\.jsonl:2: {message}'):
    pairs.write(out, paths, tokenizer, kind='causal', **LIMITS)
  assert sorted(os.listdir(tmp_path)) == ['a.jsonl', 'b.jsonl']
  counts = pairs.write(
    out, paths, tokenizer, kind='causal', **LIMITS, on_error='skip'
  )
  assert (counts['pairs'], counts['malformed']) == (3, 1)
  found = pairs.open(out)
  assert [found.texts(i)[0] for i in range(3)] == ['a', 'c', 'e']
  assert [found.id(i) for i in range(3)] == [0, 1, 3]


def test_an_encoder_may_read_nothing(tokenizers, tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', [{'input': '', 'output': 'b'}])
  out = str(tmp_path / 'a.arrow')
  tokenizer = tokenizers['seq2seq']
  pairs.write(out, [path], tokenizer, kind='seq2seq', **LIMITS)
  assert pairs.open(out)[0][0] == tokenizer('')['input_ids'] == [1]


def test_wrong_arguments_are_refused(tokenizers, tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', records(3))
  empty = write_lines(tmp_path / 'empty.jsonl', [])
  out = str(tmp_path / 'out.arrow')
  tokenizer = tokenizers['causal']
  for changes, message in (
    ({'kind': 'masked'}, "kind 'masked'"),
    ({'max_input': 0}, 'tokenize.max_input=0'),
    ({'max_output': -1}, 'tokenize.max_output=-1'),
    ({'on_error': 'ignore'}, "'ignore'"),
  ):
    with pytest.raises(ValueError, match=message):
      pairs.write(
        out, [path], tokenizer, **{'kind': 'causal'} | LIMITS | changes
      )
  with pytest.raises(ValueError, match='there is no pair in .*empty'):
    pairs.write(out, [empty], tokenizer, kind='causal', **LIMITS)
  assert sorted(os.listdir(tmp_path)) == ['a.jsonl', 'empty.jsonl']
  with pytest.raises(ValueError, match=r'no such file of pairs: .*out\.arrow'):
    pairs.open(out)
  with pytest.raises(ValueError, match=r'a\.jsonl is no Arrow file'):
    pairs.open(path)
  table = pyarrow.table({'input': ['a']})
  with pyarrow.ipc.new_file(out, table.schema) as file:
    file.write_table(table)
  with pytest.raises(ValueError, match='holds version None of tokenized pairs'):
    pairs.open(out)
  pairs.write(out, [path], tokenizer, kind='causal', **LIMITS)
  with pytest.raises(ValueError, match='another tokenizer'):
    pairs.open(out).check(tokenizers['seq2seq'])


def test_settings_are_those_that_were_written(tokenizers, tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', records(3))
  out = str(tmp_path / 'out.arrow')
  tokenizer = tokenizers['causal']
  given = {'kind': 'causal', **LIMITS}
  pairs.write(out, [path], tokenizer, **given)
  written = pairs.written(out)
  assert written == pairs.settings([path], tokenizer, **given)
  for other in ({'max_output': 8}, {'on_error': 'skip'}, {'kind': 'seq2seq'}):
    assert written != pairs.settings([path], tokenizer, **given | other)
  with open(path, 'a', encoding='utf-8') as file:
    file.write('{"input": "a", "output": "b"}\n')
  assert written != pairs.settings([path], tokenizer, **given)
