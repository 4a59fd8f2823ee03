"""Models of pairs with their tokenizers, and files of pairs, for whole jobs."""

import json
import os

from configs import base
from tests import tiny
from tttnn.corpus import pairs as pairs_lib
from tttnn.corpus import tokenizer as tokenizer_lib

LIMITS = {'max_input': 24, 'max_output': 12}
NAMES = {'seq2seq': 't5', 'causal': 'lm'}


def write_models(directory) -> None:
  """`t5` and `lm` of a directory, with random weights."""
  _, _, reference = tiny.seq2seq()
  reference.save_pretrained(directory / 't5')
  tiny.t5_tokenizer(str(directory / 't5'))
  tiny.write_models(str(directory))


def texts(count: int, seed: int) -> list[dict]:
  """Pairs of short texts; the last one is longer than LIMITS."""
  found = []
  for i, text in enumerate(tiny.documents(count, seed)):
    words = text.split()
    size = 1 + i % 4
    pair = {'input': ' '.join(words[:5]), 'output': ' '.join(words[-size:])}
    found.append(pair | {'id': f'pair {i}'})
  found[-1]['output'] = ' '.join(['over'] * 30)
  return found


def write(path, kind: str, records, *, limits=None) -> str:
  """A file of pairs of the model of a kind in the same directory."""
  source = f'{path}.jsonl'
  with open(source, 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(record) + '\n' for record in records)
  tokenizer = tokenizer_lib.load(
    os.path.join(os.path.dirname(path), NAMES[kind])
  )
  pairs_lib.write(
    str(path), [source], tokenizer, kind=kind, **(limits or LIMITS)
  )
  return str(path)


def make(directory, kind: str):
  """The config of the build of a store of two files of pairs."""
  for number, count in enumerate((30, 20)):
    records = texts(count, seed=number)
    write(directory / f'{kind}-{number}.arrow', kind, records)
  config = base.get_config()
  config.job = 'build'
  config.model.path = f'{directory}/{NAMES[kind]}'
  config.pairs.train = f'{directory}/{kind}-?.arrow'
  config.store.key = 'ffn_input'
  config.store.path = f'{directory}/{kind}-store'
  config.build.block = 50
  return config
