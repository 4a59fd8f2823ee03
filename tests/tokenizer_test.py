"""Tokenizers against a byte-pair encoder written as two plain loops."""

import collections
import itertools
import json
import logging
import os
import shutil

import hypothesis
from hypothesis import strategies
import pytest
import regex
import transformers

from tttnn.corpus import tokenizer as tokenizer_lib

_TEXTS = [
  'The cat sat on the mat; the other cats sat there too.\n' * 3,
  'def cat(that):\n  return that + 1  # The sum, they said.\n' * 3,
  "it's where they'd been: naïve café, 漢字 and 漢字 🙂\r\n\tthe end" * 2,
]
_FILES = ['tokenizer.json', 'tokenizer_config.json']
_PATTERN = regex.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def _printable_bytes():
  """GPT-2's character for each byte: itself, or one from 256 on."""
  itself = [*range(33, 127), *range(161, 173), *range(174, 256)]
  other = [byte for byte in range(256) if byte not in itself]
  return {byte: chr(byte) for byte in itself} | {
    byte: chr(256 + number) for number, byte in enumerate(other)
  }


_BYTES = _printable_bytes()


def _words(text):
  for word in _PATTERN.findall(text):
    yield tuple(_BYTES[byte] for byte in word.encode())


def _merge(word, pair):
  merged, position = [], 0
  while position < len(word):
    if word[position : position + 2] == pair:
      merged.append(''.join(pair))
      position += 2
    else:
      merged.append(word[position])
      position += 1
  return tuple(merged)


def _model(directory):
  with open(os.path.join(directory, 'tokenizer.json')) as file:
    model = json.load(file)['model']
  return model['vocab'], [tuple(pair) for pair in model['merges']]


@pytest.fixture(scope='module', params=['gpt2', 'roberta'])
def kind(request):
  return request.param


@pytest.fixture(scope='module')
def directory(kind, tmp_path_factory):
  directory = str(tmp_path_factory.mktemp(kind) / 'tokenizer')
  tokenizer_lib.train(_TEXTS, directory, vocab_size=320, kind=kind)
  return directory


@pytest.fixture(scope='module')
def tokenizer(directory):
  return tokenizer_lib.load(directory)


def test_every_merge_is_of_a_most_frequent_pair(directory):
  _, merges = _model(directory)
  assert len(merges) > 50
  words = collections.Counter(itertools.chain(*map(_words, _TEXTS)))
  for merge in merges:
    pairs = collections.Counter()
    for word, count in words.items():
      for pair in itertools.pairwise(word):
        pairs[pair] += count
    assert pairs[merge] == max(pairs.values()) >= 2
    words = collections.Counter(
      {_merge(word, merge): count for word, count in words.items()}
    )


@hypothesis.settings(
  max_examples=100, deadline=None, database=None, derandomize=True
)
@hypothesis.given(
  text=strategies.text()
  | strategies.lists(
    strategies.sampled_from(['the', ' cat', "'s", '  ', '\n', '漢', '</s', 'é'])
  ).map(''.join)
)
def test_encode_merges_in_order_and_decode_inverts(directory, tokenizer, text):
  vocabulary, merges = _model(directory)
  expected = []
  for word in _words(text):
    for merge in merges:
      word = _merge(word, merge)
    expected += [vocabulary[token] for token in word]
  assert tokenizer_lib.encode(tokenizer, [text, text]) == [expected] * 2
  assert tokenizer_lib.decode(tokenizer, expected) == text


def test_special_tokens(kind, tokenizer):
  text = 'the cat'
  ids = tokenizer_lib.encode(tokenizer, [text])[0]
  if kind == 'gpt2':
    assert tokenizer.bos_token == tokenizer.eos_token == '<|endoftext|>'
    assert tokenizer(text)['input_ids'] == ids
  else:
    names = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    assert tokenizer.convert_ids_to_tokens(range(5)) == names
    assert [
      tokenizer.bos_token,
      tokenizer.pad_token,
      tokenizer.eos_token,
      tokenizer.unk_token,
      tokenizer.mask_token,
    ] == names
    assert tokenizer(text)['input_ids'] == [0, *ids, 2]
  assert len(tokenizer) == 320
  assert not set(ids) & set(tokenizer.all_special_ids)


def test_training_again_gives_the_same_bytes(kind, directory, tmp_path):
  tokenizer_lib.train(iter(_TEXTS), str(tmp_path), vocab_size=320, kind=kind)
  assert sorted(os.listdir(tmp_path)) == _FILES
  for name in _FILES:
    with open(os.path.join(directory, name), 'rb') as file:
      assert (tmp_path / name).read_bytes() == file.read()


@pytest.mark.parametrize('model_type', ['gpt2', 'gpt_neo', 'roberta'])
def test_loads_beside_a_checkpoint(directory, tokenizer, tmp_path, model_type):
  shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
  beside = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert beside(_TEXTS)['input_ids'] == tokenizer(_TEXTS)['input_ids']
  assert beside.special_tokens_map == tokenizer.special_tokens_map


def test_saved_again_it_is_the_same(tokenizer, tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  tokenizer_lib.save(tokenizer, str(tmp_path))
  assert sorted(os.listdir(tmp_path)) == ['config.json', *_FILES]
  saved = tokenizer_lib.load(str(tmp_path))
  assert saved(_TEXTS)['input_ids'] == tokenizer(_TEXTS)['input_ids']
  assert saved.special_tokens_map == tokenizer.special_tokens_map


def test_fingerprint(kind, tokenizer, tmp_path):
  before = tokenizer_lib.fingerprint(tokenizer)
  tokenizer(_TEXTS, truncation=True, max_length=5)
  assert tokenizer_lib.fingerprint(tokenizer) == before
  tokenizer_lib.save(tokenizer, str(tmp_path))
  assert tokenizer_lib.fingerprint(tokenizer_lib.load(str(tmp_path))) == before
  other = tokenizer_lib.train(
    _TEXTS, str(tmp_path / 'other'), vocab_size=319, kind=kind
  )
  assert tokenizer_lib.fingerprint(other) != before


def test_loads_without_configuration(directory, tokenizer, tmp_path):
  shutil.copy(os.path.join(directory, 'tokenizer.json'), tmp_path)
  bare = tokenizer_lib.load(str(tmp_path))
  assert bare(_TEXTS)['input_ids'] == tokenizer(_TEXTS)['input_ids']
  assert bare.special_tokens_map == tokenizer.special_tokens_map
  assert len(bare) == len(tokenizer)


def test_loads_vocabulary_and_merges(kind, directory, tokenizer, tmp_path):
  vocabulary, merges = _model(directory)
  (tmp_path / 'vocab.json').write_text(json.dumps(vocabulary))
  lines = ['#version: 0.2', *map(' '.join, merges)]
  (tmp_path / 'merges.txt').write_text('\n'.join(lines) + '\n')
  with pytest.raises(ValueError, match=r"tokenizer\.json.*'config\.json'"):
    tokenizer_lib.load(str(tmp_path))
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': kind}))
  loaded = tokenizer_lib.load(str(tmp_path))
  assert loaded(_TEXTS)['input_ids'] == tokenizer(_TEXTS)['input_ids']


def test_long_texts_are_neither_cut_nor_warned_of(directory, tmp_path, caplog):
  shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  config['model_max_length'] = 8
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  short = tokenizer_lib.load(str(tmp_path))
  transformers.utils.logging.enable_propagation()
  try:
    with caplog.at_level(logging.WARNING):
      ids = tokenizer_lib.encode(short, _TEXTS)
  finally:
    transformers.utils.logging.disable_propagation()
  assert [tokenizer_lib.decode(short, row) for row in ids] == _TEXTS
  assert not caplog.records


def test_no_texts(tokenizer):
  assert tokenizer_lib.encode(tokenizer, []) == []
  assert tokenizer_lib.encode(tokenizer, ['']) == [[]]
  assert tokenizer_lib.decode(tokenizer, []) == ''


def test_errors(tmp_path):
  with pytest.raises(ValueError, match="'bert', not one of"):
    tokenizer_lib.train([], str(tmp_path), vocab_size=300, kind='bert')
  with pytest.raises(ValueError, match='is 256, but .* need 257'):
    tokenizer_lib.train([], str(tmp_path), vocab_size=256, kind='gpt2')
  assert not os.listdir(tmp_path)
  (tmp_path / 'model.safetensors').touch()
  with pytest.raises(ValueError, match=r'tokenizer\.json.*model\.safetensors'):
    tokenizer_lib.load(str(tmp_path))
