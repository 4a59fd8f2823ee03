"""A toy to translate: words to words, in two domains that say it otherwise."""

import json

import numpy as np
import tokenizers
import transformers

# A word has a place in its sentence, so that a model learns soon which is next.
PLACES, WORDS = 'vwxyz', 8


def sentences(count: int, domain: str, seed: int) -> list[dict]:
  """Pairs; a word of the input becomes one of the domain's in its place."""
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    numbers = rng.integers(WORDS, size=rng.integers(2, len(PLACES) + 1))
    words = [
      f'{place}{word}' for place, word in zip(PLACES, numbers, strict=False)
    ]
    found.append(
      {
        'input': ' '.join(f's{word}' for word in words),
        'output': ' '.join(f'{domain}{word}' for word in words),
      }
    )
  return found


def write(path, pairs) -> str:
  with open(path, 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(pair) + '\n' for pair in pairs)
  return str(path)


def write_tokenizer(directory) -> str:
  """A token a word."""
  words = [
    f'{kind}{place}{word}'
    for kind in 'sab'
    for place in PLACES
    for word in range(WORDS)
  ]
  vocabulary = ['<pad>', '</s>', '<unk>', *words]
  model = tokenizers.models.WordLevel(
    {word: id_ for id_, word in enumerate(vocabulary)}, unk_token='<unk>'
  )
  whole = tokenizers.Tokenizer(model)
  whole.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=whole,
    pad_token='<pad>',
    eos_token='</s>',
    unk_token='<unk>',
  ).save_pretrained(directory)
  return str(directory)
