"""Training rows from a corpus: one packed stream of tokens, cut in blocks.

Documents are tokenized once into a flat file, each followed by a separator,
and mapped from there. Which rows a step trains on is a function of the seed
and the step alone, so the step is the whole data position.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os

import numpy as np
import tqdm

from tttnn import files
from tttnn.corpus import formats
from tttnn.corpus import jsonl
from tttnn.corpus import tokenizer as tokenizer_lib

_DOCUMENTS = 256  # Tokenized at once.


@dataclasses.dataclass(frozen=True)
class Stream:
  """Tokens of a corpus in file order.

  Attributes:
    tokens: int32 [n], memory-mapped.
    documents: how many there are.
    digest: of the tokens; a resumed run compares it.
  """

  tokens: np.ndarray
  documents: int
  digest: str


def pack(
  tokenizer, separator: int, spec: str, path: str, *, on_error: str = 'error'
) -> Stream:
  """The tokens of the files `spec`, kept at `path`.tokens for the next time.

  Args:
    tokenizer: as `tttnn.corpus.tokenizer.load` gives it.
    separator: token id after each document.
    spec: comma-separated paths or globs.
    path: of the files to keep, less their suffix.
    on_error: of malformed lines, see `jsonl.records`.

  Raises:
    ValueError: for what `jsonl` refuses, or a corpus without tokens.
  """
  shards = jsonl.expand(spec)
  sources = [[os.path.basename(p), *_stamp(p)] for p in shards]
  key = {
    'sources': sources,
    'tokenizer': tokenizer_lib.fingerprint(tokenizer),
    'separator': separator,
    'on_error': on_error,
  }
  about = _read(path + '.json')
  if about is None or about['key'] != key:
    count, documents, digest = _write(
      tokenizer, separator, shards, path, on_error
    )
    about = {
      'key': key,
      'tokens': count,
      'documents': documents,
      'digest': digest,
    }
    files.write_atomic(path + '.json', json.dumps(about, indent=2))
  tokens = np.memmap(path + '.tokens', np.int32, 'r', shape=(about['tokens'],))
  return Stream(tokens, about['documents'], about['digest'])


def batch(
  stream: Stream, step: int, *, rows: int, length: int, overlap: int, seed: int
) -> np.ndarray:
  """The rows of step `step`: int32 [rows, length + overlap].

  The stream is cut into blocks of `length` tokens, and each epoch visits all
  of them in an order of its own. `overlap` tokens of the next block follow
  (1 where the row's last token is only a target).

  Raises:
    ValueError: if the stream is shorter than one row.
  """
  blocks = (len(stream.tokens) - overlap) // length
  if blocks < 1:
    raise ValueError(
      f'the corpus has {len(stream.tokens)} tokens, a row needs '
      f'{length + overlap}: take a smaller train.sequence_length or more text'
    )
  out = np.empty((rows, length + overlap), np.int32)
  for row, position in enumerate(range(step * rows, (step + 1) * rows)):
    epoch, index = divmod(position, blocks)
    block = order(seed, epoch, blocks)[index]
    out[row] = stream.tokens[block * length : (block + 1) * length + overlap]
  return out


@functools.lru_cache(maxsize=2)  # A batch may span two epochs.
def order(seed: int, epoch: int, blocks: int) -> np.ndarray:
  """The order in which an epoch visits what there is of `blocks`."""
  return np.random.default_rng([seed, epoch]).permutation(blocks)


def _stamp(path: str) -> tuple[int, int]:
  stat = os.stat(path)
  return stat.st_size, stat.st_mtime_ns


def _read(path: str) -> dict | None:
  if not os.path.exists(path):
    return None
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def _write(
  tokenizer, separator: int, shards: list[str], path: str, on_error: str
) -> tuple[int, int, str]:
  """Writes `path`.tokens; returns its tokens, documents and digest."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  digest = hashlib.sha256()
  count = documents = 0
  # Only to show how far it is: what is compressed is not read for that.
  total = None
  if all(map(formats.is_plain, shards)):
    total = len(jsonl.read(shards))
  bar = tqdm.tqdm(
    desc=f'tokenize {os.path.basename(path)}', total=total, unit=' documents'
  )
  texts = (
    record['text']
    for shard in shards
    for _, record in jsonl.records(shard, on_error)
  )
  with files.atomic(path + '.tokens') as out, bar:
    while batch := list(itertools.islice(texts, _DOCUMENTS)):
      rows = tokenizer_lib.encode(tokenizer, batch)
      flat = np.array([t for row in rows for t in (*row, separator)], np.int32)
      out.write(flat.tobytes())
      digest.update(flat.tobytes())
      count += len(flat)
      documents += len(batch)
      bar.update(len(batch))
    if not documents:
      raise ValueError(f'the corpus is empty: {", ".join(shards)}')
  return count, documents, digest.hexdigest()
