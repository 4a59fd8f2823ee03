"""Byte-level BPE tokenizers: train, load, encode, decode.

Sennrich et al., "Neural machine translation of rare words with subword units"
(ACL 2016), over bytes as in GPT-2 (Radford et al., 2019, section 2.2), so that
every text has an encoding and decodes to itself.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import hashlib
import itertools
import json
import os
import pathlib
import tempfile

import tokenizers
import transformers

from tttnn import files
from tttnn.models import hf

_CONFIG = 'tokenizer_config.json'
_TOKENIZER = 'tokenizer.json'
_PARTS = {'vocab.json', 'merges.txt', 'config.json'}

# Which token plays which role. The trainer numbers a kind's distinct tokens in
# this order from 0: for RoBERTa <s> <pad> </s> <unk> <mask>.
_ROLES = {
  'gpt2': {
    'bos_token': '<|endoftext|>',
    'eos_token': '<|endoftext|>',
    'unk_token': '<|endoftext|>',
  },
  'roberta': {
    'bos_token': '<s>',
    'cls_token': '<s>',
    'pad_token': '<pad>',
    'eos_token': '</s>',
    'sep_token': '</s>',
    'unk_token': '<unk>',
    'mask_token': '<mask>',
  },
}
_CLASSES = {'gpt2': 'GPT2Tokenizer', 'roberta': 'RobertaTokenizer'}


def train(
  texts: Iterable[str], directory: str, *, vocab_size: int, kind: str
) -> transformers.PreTrainedTokenizerBase:
  """Trains a tokenizer, saves it and returns it as `load` does.

  The same texts give the same bytes on disk, `tokenizer.json` last.

  Args:
    texts: the training texts, read once.
    directory: where tokenizer.json and tokenizer_config.json go.
    vocab_size: tokens, special ones included. Texts too small to hold that many
      repeated pairs give fewer: size a model by the tokenizer's length.
    kind: 'gpt2' (<|endoftext|> begins and ends texts, nothing is added when
      encoding) or 'roberta' (texts become <s> text </s>).

  Raises:
    ValueError: an unknown kind, or a vocabulary smaller than the byte alphabet.
  """
  if kind not in _ROLES:
    raise ValueError(f'kind is {kind!r}, not one of {sorted(_ROLES)}')
  specials = list(dict.fromkeys(_ROLES[kind].values()))
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  if vocab_size < len(specials) + len(alphabet):
    raise ValueError(
      f'vocab_size is {vocab_size}, but {len(alphabet)} bytes and '
      f'{len(specials)} special tokens need {len(specials) + len(alphabet)}'
    )
  bpe = _byte_pairs(texts, vocab_size, specials, alphabet)
  if kind == 'roberta':
    bpe.post_processor = tokenizers.processors.RobertaProcessing(
      ('</s>', bpe.token_to_id('</s>')),
      ('<s>', bpe.token_to_id('<s>')),
      add_prefix_space=False,
    )
  config = {
    'add_prefix_space': False,
    'clean_up_tokenization_spaces': False,
    'tokenizer_class': _CLASSES[kind],
    **_ROLES[kind],
  }
  root = pathlib.Path(directory)
  root.mkdir(parents=True, exist_ok=True)
  files.write_atomic(root / _CONFIG, json.dumps(config, indent=2) + '\n')
  files.write_atomic(root / _TOKENIZER, bpe.to_str(pretty=True) + '\n')
  return load(directory)


def _byte_pairs(
  texts: Iterable[str],
  vocab_size: int,
  specials: list[str],
  alphabet: list[str],
) -> tokenizers.Tokenizer:
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  bpe.decoder = tokenizers.decoders.ByteLevel()
  bpe.train_from_iterator(
    texts,
    tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size,
      min_frequency=2,
      special_tokens=specials,
      initial_alphabet=alphabet,
      show_progress=False,
    ),
  )
  return bpe


def load(path: str, revision: str = '') -> transformers.PreTrainedTokenizerBase:
  """Loads the tokenizer of a local directory or a hub id.

  A directory without tokenizer_config.json may not say which token begins a
  text, as the first publications of GPT-2 do not. The tokens then have the
  roles that `train` gives to tokens of their names.

  Raises:
    ValueError: the directory holds no tokenizer.
  """
  directory = hf.resolve(path, revision)
  held = set(os.listdir(directory))
  if not (_TOKENIZER in held or held >= _PARTS):
    raise ValueError(
      f'no tokenizer in {directory}: it needs {_TOKENIZER}, or all of '
      f'{sorted(_PARTS)}, and holds {sorted(held)}'
    )
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    directory, local_files_only=True
  )
  vocabulary = tokenizer.get_vocab()
  for roles in _ROLES.values():
    if tokenizer.bos_token is None and vocabulary.keys() >= {*roles.values()}:
      tokenizer.add_special_tokens(roles)
  return tokenizer


def save(
  tokenizer: transformers.PreTrainedTokenizerBase, directory: str
) -> None:
  """Writes what `load` reads into a directory, beside a checkpoint's files."""
  root = pathlib.Path(directory)
  root.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as whole:
    tokenizer.save_pretrained(whole)
    for path in pathlib.Path(whole).iterdir():
      files.write_if_changed(root / path.name, path.read_bytes())


def fingerprint(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
  """sha256 of the vocabulary, the rules and the roles of special tokens.

  How the last call cut or padded, which a tokenizer remembers, is left out.
  """
  rules = json.loads(tokenizer.backend_tokenizer.to_str())
  del rules['truncation'], rules['padding']
  roles = {k: str(token) for k, token in tokenizer.special_tokens_map.items()}
  text = json.dumps([rules, roles], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def encode(
  tokenizer: transformers.PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[list[int]]:
  """Token ids of each text: no special tokens added, nothing cut off."""
  if not texts:
    return []
  return tokenizer(
    list(texts),
    add_special_tokens=False,
    padding=False,
    truncation=False,
    return_attention_mask=False,
    return_token_type_ids=False,
    verbose=False,  # Windows are cut later: no warning about long texts.
  )['input_ids']


def decode(
  tokenizer: transformers.PreTrainedTokenizerBase, ids: Sequence[int]
) -> str:
  """The text of the ids, special tokens included, spaces left as they are."""
  return tokenizer.decode(
    ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
  )


def pieces(
  tokenizer: transformers.PreTrainedTokenizerBase,
  text: str,
  tokens: Sequence[int],
) -> tuple[str, list[int]]:
  """(text, where each token ends in it, in characters), the ends ascending.

  Of tokens that share a character the first has it, and the others are empty;
  as is a token behind the text, such as its end. Of tokens that are not those
  of the text, each is decoded by itself, and the text is what they make.
  """
  found = tokenizer(
    text,
    add_special_tokens=False,
    truncation=False,
    padding=False,
    return_offsets_mapping=True,
    verbose=False,
  )
  ids, offsets = found['input_ids'], found['offset_mapping']
  if ids != list(tokens[: len(ids)]) or len(tokens) > len(ids) + 1:
    parts = [decode(tokenizer, [token]) for token in tokens]
    return ''.join(parts), list(itertools.accumulate(map(len, parts)))
  ends = list(itertools.accumulate((end for _, end in offsets), max))
  if ends:
    ends[-1] = len(text)  # Of white space at the end that no token has.
  return text, ends + [len(text)] * (len(tokens) - len(ids))
