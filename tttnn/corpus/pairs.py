"""Pairs of texts, input and output, as token ids in one Arrow file.

From JSONL {"input", "output", "id"?}, compressed or Parquet too. The file is
written block by block and mapped from there, so that neither writing nor
reading holds it in memory.

What stands behind the texts, for the two kinds of model:

  seq2seq  the end token (T5: `</s>`) behind both.
  causal   nothing behind the input, which the output goes on from; the end
           token (<|endoftext|>) behind the output.

Limits count these tokens. What exceeds them is cut off where it is farthest
from the output's beginning, and counted: of a seq2seq input the last tokens
(the end token stays), of a causal one the first; of an output the last, its end
token first of all, for a text that is cut off does not end there.
"""

import builtins
import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import itertools
import json
import os
from typing import Any

import numpy as np
import pyarrow

from tttnn import files
from tttnn.corpus import formats
from tttnn.corpus import jsonl
from tttnn.corpus import tokenizer as tokenizer_lib

KINDS = ('seq2seq', 'causal')
_VERSION = 1
_ROWS = 512  # Pairs of a record batch.
_PERCENTILES = (50, 90, 95, 99)
_SCHEMA = pyarrow.schema(
  {
    'id': pyarrow.string(),  # In JSON, for it may be a number.
    'input': pyarrow.string(),
    'output': pyarrow.string(),
    'input_ids': pyarrow.list_(pyarrow.int32()),
    'output_ids': pyarrow.list_(pyarrow.int32()),
  }
)
_ABOUT = b'tttnn.pairs'


class Pairs(Sequence):
  """The pairs of a file that `write` made, mapped.

  `pairs[i]` is (input ids, output ids), special tokens included.

  Attributes:
    path: of the file.
    kind: 'seq2seq' or 'causal'.
    limits: {'max_input', 'max_output'}, tokens of the longest texts there can
      be.
    tokenizer: fingerprint of the tokenizer, as of `tttnn.corpus.tokenizer`.
    sources: (name, bytes, time of change in ns) of each file it was made of.
    on_error: what became of malformed lines.
    counts: what `write` returned.
    digest: sha256 of the contents; equal pairs have equal ones.
  """

  def __init__(self, path: str):
    """Opens `path`.

    Raises:
      ValueError: it is not there, or `write` did not make it.
    """
    if not os.path.isfile(path):
      raise ValueError(f'no such file of pairs: {path!r}')
    try:
      reader = pyarrow.ipc.open_file(pyarrow.memory_map(path))
    except pyarrow.ArrowInvalid as e:
      raise ValueError(f'{path} is no Arrow file: {e}') from e
    about = json.loads((reader.schema.metadata or {}).get(_ABOUT, b'{}'))
    if about.get('version') != _VERSION:
      raise ValueError(
        f'{path} holds version {about.get("version")} of tokenized pairs, '
        f'{_VERSION} is needed: make it by job=tokenize'
      )
    self.path = path
    self.kind = about['kind']
    self.limits = about['limits']
    self.tokenizer = about['tokenizer']
    self.sources = about['sources']
    self.on_error = about['on_error']
    self.counts = about['counts']
    self.digest = about['digest']
    # No copies: arrays that point into the map.
    self._batches = [
      reader.get_batch(i) for i in range(reader.num_record_batches)
    ]

  def __len__(self) -> int:
    return self.counts['pairs']

  def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
    batch, row = self._locate(i)
    return tuple(
      batch.column(name)[row].values.to_numpy().tolist()
      for name in ('input_ids', 'output_ids')
    )

  def texts(self, i: int) -> tuple[str, str]:
    """Input and output, nothing cut off."""
    batch, row = self._locate(i)
    return tuple(
      batch.column(name)[row].as_py() for name in ('input', 'output')
    )

  def id(self, i: int) -> str | int:
    """As given, else the 0-based line number over all files."""
    batch, row = self._locate(i)
    return json.loads(batch.column('id')[row].as_py())

  def check(self, tokenizer) -> None:
    """Raises `ValueError` unless the pairs are those of `tokenizer`."""
    found = tokenizer_lib.fingerprint(tokenizer)
    if found != self.tokenizer:
      raise ValueError(
        f'{self.path} was made with another tokenizer (fingerprint '
        f'{self.tokenizer[:12]} there, {found[:12]} of the model)'
      )

  def _locate(self, i: int):
    if not 0 <= i < len(self):
      # An IndexError, as sequences have it: iterating ends by one.
      raise IndexError(f'pair {i} of {self.path}, which has {len(self)} pairs')
    number, row = divmod(i, _ROWS)
    return self._batches[number], row


def open(path: str) -> Pairs:
  """The pairs of a file; errors as of `Pairs`."""
  return Pairs(path)


def settings(
  paths: Sequence[str],
  tokenizer,
  *,
  kind: str,
  max_input: int,
  max_output: int,
  on_error: str = 'error',
) -> dict[str, Any]:
  """What a file of pairs is made of; arguments and errors as of `write`.

  `written` says the same of a file that is there.
  """
  jsonl.check_on_error(on_error)
  if kind not in KINDS:
    raise ValueError(f'pairs of kind {kind!r}, which is not one of {KINDS}')
  limits = {'max_input': max_input, 'max_output': max_output}
  for name, limit in limits.items():
    if limit < 1:
      raise ValueError(f'tokenize.{name}={limit}: a text needs a token')
  if tokenizer.eos_token_id is None:
    raise ValueError('the tokenizer has no end token (eos_token)')
  return {
    'kind': kind,
    'limits': limits,
    'tokenizer': tokenizer_lib.fingerprint(tokenizer),
    'sources': [[os.path.basename(p), *_stamp(p)] for p in paths],
    'on_error': on_error,
  }


def written(path: str) -> dict[str, Any]:
  """The `settings` that a file was made with; errors as of `Pairs`."""
  pairs = open(path)
  names = ('kind', 'limits', 'tokenizer', 'sources', 'on_error')
  return {name: getattr(pairs, name) for name in names}


def write(
  path: str,
  paths: Sequence[str],
  tokenizer,
  *,
  kind: str,
  max_input: int,
  max_output: int,
  on_error: str = 'error',
  progress: Callable[[int], None] = lambda pairs: None,
) -> dict[str, Any]:
  """Makes a file of pairs; it is whole or not there.

  Args:
    path: of the file; one that is there is replaced.
    paths: of the JSONL, in order.
    tokenizer: as `tttnn.corpus.tokenizer.load` gives it.
    kind: 'seq2seq' or 'causal', as above.
    max_input: tokens of an input at most.
    max_output: tokens of an output at most.
    on_error: of a malformed line: 'error', or 'skip', which leaves it out.
    progress: told how many more pairs are done.

  Returns:
    {'pairs', 'malformed', 'input': lengths, 'output': lengths}, lengths being
    {'mean', 'max', 'percentiles': {'50', '90', '95', '99'}} of the texts before
    anything is cut off, in tokens with the special ones, and how many were
    cut, 'truncated'.

  Raises:
    jsonl.MalformedLine: with file and line, for a line that is no pair: what
      `jsonl.parse` refuses, an empty output, an empty input of a causal LM, or
      an id that is neither a string nor an integer.
    ValueError: no pair at all, a limit below 1, an unknown kind, a tokenizer
      without an end token.
  """
  about = settings(
    paths,
    tokenizer,
    kind=kind,
    max_input=max_input,
    max_output=max_output,
    on_error=on_error,
  )
  limits = {'input': max_input, 'output': max_output}
  lengths = {side: collections.Counter() for side in limits}
  malformed = []
  total = hashlib.sha256(json.dumps([kind, *limits.values()]).encode())
  body = f'{path}.{os.getpid()}.body.tmp'
  try:
    # The schema stands in front and holds what is known only at the end: so the
    # batches are written once without it, and copied behind it.
    with pyarrow.ipc.new_file(body, _SCHEMA) as out:
      lines = _lines(paths, kind, on_error, malformed.append)
      while some := list(itertools.islice(lines, _ROWS)):
        columns = dict(
          zip(('id', 'input', 'output'), zip(*some, strict=True), strict=True)
        )
        for side, limit in limits.items():
          tokens = _encode(tokenizer, columns[side], kind, side)
          lengths[side].update(map(len, tokens))
          ids = [_cut(row, limit, kind, side) for row in tokens]
          columns[f'{side}_ids'] = ids
        total.update(json.dumps(columns).encode())
        out.write_batch(pyarrow.RecordBatch.from_pydict(columns, _SCHEMA))
        progress(len(some))
    counts = {
      'pairs': lengths['output'].total(),
      'malformed': len(malformed),
      **{side: _describe(lengths[side], limits[side]) for side in limits},
    }
    if not counts['pairs']:
      raise ValueError(f'there is no pair in {", ".join(paths)}')
    about |= {
      'version': _VERSION,
      'counts': counts,
      'digest': total.hexdigest(),
    }
    _copy(body, path, about)
  finally:
    if os.path.exists(body):
      os.unlink(body)
  return counts


def _lines(
  paths: Sequence[str],
  kind: str,
  on_error: str,
  skipped: Callable[[str], None],
) -> Iterator[tuple[str, str, str]]:
  """(id in JSON, input, output) of each line; `skipped` is told of others."""
  number = 0
  for path in paths:
    with builtins.open(path, 'rb') as file:
      for row, line in enumerate(jsonl.lines(file, formats.PAIR)):
        try:
          yield _pair(line, path, row + 1, kind, number)
        except jsonl.MalformedLine as e:
          if on_error == 'error':
            raise
          skipped(str(e))
        number += 1


def _pair(
  line: bytes, path: str, row: int, kind: str, number: int
) -> tuple[str, str, str]:
  record = jsonl.parse(line, path, row, formats.PAIR)
  id_ = record.get('id', number)
  if isinstance(id_, bool) or not isinstance(id_, (str, int)):
    raise jsonl.MalformedLine(
      f'{path}:{row}: id {id_!r} is neither a string nor an integer'
    )
  if not record['output']:
    raise jsonl.MalformedLine(f'{path}:{row}: "output" is empty')
  if kind == 'causal' and not record['input']:
    raise jsonl.MalformedLine(
      f'{path}:{row}: "input" is empty, and a causal LM has nothing to predict '
      'the first token of the output from'
    )
  return json.dumps(id_), record['input'], record['output']


def _encode(
  tokenizer, texts: Sequence[str], kind: str, side: str
) -> list[list[int]]:
  """The tokens of each text with the end token where one belongs."""
  rows = tokenizer_lib.encode(tokenizer, texts)
  if kind == 'causal' and side == 'input':
    return rows
  return [[*row, tokenizer.eos_token_id] for row in rows]


def _cut(row: list[int], limit: int, kind: str, side: str) -> list[int]:
  """The tokens that stay, see above."""
  if len(row) <= limit:
    return row
  if side == 'output':
    return row[:limit]
  return row[-limit:] if kind == 'causal' else [*row[: limit - 1], row[-1]]


def _describe(lengths: collections.Counter, limit: int) -> dict[str, Any]:
  """Mean, longest, percentiles and how many exceed `limit`."""
  values = np.array(sorted(lengths), np.int64)
  texts = np.array([lengths[value] for value in values], np.int64)
  if not len(values):
    return {}
  # The length that so many percent of the texts do not exceed.
  reached = np.cumsum(texts) / texts.sum()
  return {
    'mean': float(values @ texts / texts.sum()),
    'max': int(values[-1]),
    'percentiles': {
      str(percent): int(values[np.searchsorted(reached, percent / 100)])
      for percent in _PERCENTILES
    },
    'truncated': int(texts[values > limit].sum()),
  }


def _copy(body: str, path: str, about: dict[str, Any]) -> None:
  """Makes `path` of the batches in `body`, with `about` in the schema."""
  schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about).encode()})
  with files.atomic(path) as file, pyarrow.memory_map(body) as source:
    reader = pyarrow.ipc.open_file(source)
    with pyarrow.ipc.new_file(file, schema) as out:
      for number in range(reader.num_record_batches):
        out.write_batch(reader.get_batch(number))


def _stamp(path: str) -> tuple[int, int]:
  stat = os.stat(path)
  return stat.st_size, stat.st_mtime_ns
