"""Tokenizes pairs of texts, to train on them or to store their tokens.

Leaves `train.arrow`, `validation.arrow` and `test.arrow` in the work directory,
of the corpus files that are given, which `pairs.train` and so on then name.
"""

import os

import tqdm

from tttnn import settings
from tttnn.corpus import jsonl
from tttnn.corpus import pairs
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf

_SPLITS = ('train', 'validation', 'test')


def run(config, workdir: str) -> None:
  """The job; what is there stays, unless files or settings have changed.

  Raises:
    ValueError: no corpus is given, or what `pairs.write` refuses.
  """
  path, revision = _tokenizer_of(config)
  tokenizer = tokenizer_lib.load(path, revision)
  splits = [split for split in _SPLITS if config.corpus[split]]
  if not splits:
    raise ValueError(
      'tokenize needs corpus.train, corpus.validation or corpus.test: JSONL '
      'paths or globs'
    )
  options = {
    'kind': _kind(config, path, revision),
    'max_input': config.tokenize.max_input,
    'max_output': config.tokenize.max_output,
    'on_error': config.corpus.on_error,
  }
  for split in splits:
    out = os.path.join(workdir, f'{split}.arrow')
    sources = jsonl.expand(config.corpus[split])
    if _is_there(out, pairs.settings(sources, tokenizer, **options)):
      print(f'tokenize: {out} is there')
    else:
      with tqdm.tqdm(desc=f'tokenize {split}', unit=' pairs') as bar:
        pairs.write(out, sources, tokenizer, **options, progress=bar.update)
    _report(split, pairs.open(out))


def _tokenizer_of(config) -> tuple[str, str]:
  """(path, revision) of the model, or of what `train` begins with."""
  train = config.train
  if config.model.path:
    return config.model.path, config.model.revision
  if train.init:
    return train.init, train.revision
  if train.tokenizer:
    return train.tokenizer, ''
  raise ValueError(
    'tokenize needs model.path, or as `train` does train.init or '
    'train.tokenizer'
  )


def _kind(config, path: str, revision: str) -> str:
  """Of the model in `path`; where it is a tokenizer alone, of the one to be."""
  directory = hf.resolve(path, revision)
  if (directory / hf.CONFIG).is_file():
    seq2seq = hf.role_of(str(directory)) == 'seq2seq'
  else:
    seq2seq = config.train.model_type == 't5'
  return 'seq2seq' if seq2seq else 'causal'


def _is_there(path: str, wanted: dict) -> bool:
  """Whether the file was made so; says what differs where it was not."""
  if not os.path.exists(path):
    return False
  found = pairs.written(path)
  differ = settings.difference(found, wanted)
  if differ:
    print(f'tokenize: {path} is made again ({differ})')
  return not differ


def _report(split: str, found: pairs.Pairs) -> None:
  counts = found.counts
  print(f'tokenize: {split}: {counts["pairs"]:,} pairs ({found.kind})')
  if counts['malformed']:
    print(f'  {counts["malformed"]:,} malformed lines were left out')
  for side in ('input', 'output'):
    about, limit = counts[side], found.limits[f'max_{side}']
    shares = ', '.join(
      f'{percent} % up to {length:,}'
      for percent, length in about['percentiles'].items()
    )
    print(
      f'  {side + "s":8}{about["mean"]:,.1f} tokens on average, {shares}, the '
      f'longest {about["max"]:,}; {about["truncated"]:,} '
      f'({about["truncated"] / counts["pairs"]:.1%}) cut to {limit:,}'
    )
