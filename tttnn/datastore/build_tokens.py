"""Builds a store of tokens: values and sequences, then keys, then an index.

As `build`, resumable at any point with the same bytes at the end. A block is a
number of entries, wherever texts begin and end: what the model reads of a text
that it cuts through is computed for both blocks, as far as each needs it, so
that a block depends on nothing but its number.
"""

import collections
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools
import os
import pathlib
from typing import Any
from typing import BinaryIO
from typing import Protocol

import numpy as np

from tttnn import files
from tttnn import prefetch
from tttnn.corpus import seekable
from tttnn.datastore import begun
from tttnn.datastore import build as build_lib
from tttnn.datastore import index_files
from tttnn.datastore import shards as shards_lib
from tttnn.datastore import store as store_lib
from tttnn.datastore import tokens as tokens_lib
from tttnn.datastore import vectors as vectors_lib

_TEXTS = 256  # Written at once.
DTYPE = 'float16'


class Piece(Protocol):
  """What is read at once for some tokens of a text.

  Attributes:
    places: where in the row of its keys those of the tokens are.
  """

  @property
  def places(self) -> slice: ...


class Model(Protocol):
  """What makes keys: `keys.Keys`, or `pair_keys.PairKeys`."""

  kind: str
  dim: int
  computed: str

  def fingerprint(self) -> str: ...

  def blocks(
    self, blocks: Iterable[Iterable[Piece]], rows: int
  ) -> Iterable[np.ndarray]: ...


class Source(Protocol):
  """What the tokens are of: `text_source.Texts` or `pair_source.Outputs`.

  A file of it is a shard. Errors are of what it holds, by file and line.

  Attributes:
    about: what the manifest says of it.
  """

  about: dict[str, Any]

  def stamp(self, path: str) -> seekable.Stamp:
    """What a file is recognised by."""

  def check(self, path: str, expected: seekable.Stamp) -> None:
    """Raises `ValueError` unless the file has this stamp."""

  def texts(self, path: str) -> Iterator[Sequence[int]]:
    """The tokens of each text of a file, in order."""

  def malformed(self, path: str, numbers: Collection[int]) -> int:
    """How many of some texts, which have no tokens, are malformed lines."""

  def pieces(
    self, path: str, number: int, tokens: Sequence[int], begin: int, end: int
  ) -> Iterable[Piece]:
    """What the model reads for tokens begin..end - 1 of a text."""

  def name(self, path: str, number: int) -> str:
    """Of a text, for errors."""


def build(
  store_dir: str | os.PathLike,
  paths: Sequence[str],
  source: Source,
  model: Model,
  *,
  options: build_lib.Options,
  rows: int = 0,
  part: begun.Part | None = None,
  filler: index_files.Filler = index_files.ON_HOST,
  progress: build_lib.Progress = lambda done, total: None,
) -> store_lib.Store | None:
  """Builds a store of tokens, or finishes one, as `build.build` does.

  Args:
    store_dir: made if missing.
    paths: files of the source, in id order.
    source: of the texts.
    model: makes the keys.
    options: what is made; `dtype` must be 'float16', a `block` is of entries,
      `cache` is not used.
    rows: as of the model's `blocks`.
    part: a whole shard, to be made alone.
    filler: trains and fills an index.
    progress: called with the tokens that have keys and all of them, which are
      an estimate until the last shard is tokenized.

  Returns:
    As `build.build`.

  Raises:
    ValueError: as `build.build`, and for a key that float16 cannot hold, by
      file, line and token.
  """
  if options.dtype != DTYPE or options.metric == 'cosine':
    raise ValueError(
      f'keys are {DTYPE} and as the model gives them, not {options.dtype} or '
      f'under the metric {options.metric}'
    )
  request = begun.request(
    store_dir,
    paths,
    model.dim,
    model.fingerprint(),
    options,
    False,
    source.stamp,
  )
  request |= {
    'kind': tokens_lib.KIND,
    'keys': model.kind,
    'computed': model.computed,
    **source.about,
  }
  directory = pathlib.Path(os.path.realpath(store_dir))
  work = _Work(directory, request, source, model, options, rows, progress)
  return build_lib.complete(directory, request, options, work, part, filler)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A shard whose values and sequences are there.

  Attributes:
    number: of the shard.
    path: of the corpus file.
    entries: those.
    vectors: its keys, as far as they are there.
  """

  number: int
  path: str
  entries: tokens_lib.Entries
  vectors: vectors_lib.Vectors


@dataclasses.dataclass(frozen=True)
class _Block:
  """Entries of a shard that are computed together and are one chunk on disk.

  Attributes:
    shard: that they are of.
    number: of the block.
    done: entries up to its end, of all shards that are being made.
  """

  shard: _Shard
  number: int
  done: int

  @property
  def rows(self) -> range:
    vectors = self.shard.vectors
    begin = self.number * vectors.block
    return range(begin, min(begin + vectors.block, vectors.rows))

  def pieces(self, source: Source) -> Iterator[Piece]:
    """Those whose tokens are its entries, one after another."""
    entries, rows = self.shard.entries, self.rows
    first, last = entries.line(np.array([rows.start, rows.stop - 1])).tolist()
    borders = entries.sequences[first : last + 2].tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(borders), first):
      if begin < end:
        yield from source.pieces(
          self.shard.path,
          number,
          entries.values[begin:end],
          max(rows.start - begin, 0),
          min(rows.stop, end) - begin,
        )

  def write(self, keys_NxD: np.ndarray, source: Source) -> None:
    rows, vectors = self.rows, self.shard.vectors
    expected = (len(rows), vectors.dim)
    if keys_NxD.shape != expected or keys_NxD.dtype != DTYPE:
      raise ValueError(
        f'the model gave keys {keys_NxD.dtype} {list(keys_NxD.shape)}, not '
        f'{DTYPE} {list(expected)}'
      )
    wrong = np.flatnonzero(~np.isfinite(keys_NxD).all(axis=1))
    if wrong.size:
      entries, entry = self.shard.entries, rows.start + int(wrong[0])
      line = int(entries.line(entry))
      raise ValueError(
        f'{source.name(self.shard.path, line)}: the key of token '
        f'{entry - entries.sequences[line]} is not finite, or holds 65504 or '
        f'more, where {DTYPE} ends'
      )
    array = shards_lib.open_array(vectors)
    array[rows.start : rows.stop].write(keys_NxD).result()


@dataclasses.dataclass(frozen=True)
class _Work:
  """Makes the keys of tokens: a `build.Work`."""

  directory: pathlib.Path
  request: dict[str, Any]
  source: Source
  model: Model
  options: build_lib.Options
  rows: int
  progress: build_lib.Progress

  def make(self) -> store_lib.Store:
    numbers = range(len(self.request['shards']))
    self._make(numbers)
    shards = []
    for number, fields in zip(numbers, self.request['shards'], strict=True):
      shard = self._shard(number)
      empty = np.flatnonzero(np.diff(shard.entries.sequences) == 0)
      shards.append(
        store_lib.Shard(
          **fields,
          text='',
          rows=len(shard.entries),
          malformed=self.source.malformed(shard.path, empty.tolist()),
          left_out=(),
          sequences=shard.entries.lines,
        )
      )
    manifest = store_lib.Manifest(**self.request | {'shards': tuple(shards)})
    if not manifest.rows:
      raise ValueError(
        f'the corpus has no tokens: {manifest.sequences} lines in '
        f'{len(shards)} files'
      )
    return store_lib.assemble(self.directory, manifest, None, tuple(numbers))

  def make_part(self, part: begun.Part, claim: begun.Claim) -> None:
    count = len(self.request['shards'])
    if not 0 <= part.shard < count or part.begin or part.end:
      raise ValueError(
        f'{part}: a part of a store of tokens is one of its {count} files'
      )
    claim(part.shard, range(begun.MAX_ROWS))
    self._make([part.shard])

  def index(
    self, store: store_lib.Store, filler: index_files.Filler
  ) -> store_lib.Store:
    return index_files.write(
      store, self.options.index, self.options.threads, filler
    )

  def _make(self, numbers: Sequence[int]) -> None:
    """Makes what is not there of some shards, in order."""
    sizes = [self.request['shards'][number]['bytes'] for number in numbers]
    entries = []  # Of each shard, as far as they are tokenized.
    # Blocks whose pieces the model has read, which it may do ahead.
    read = collections.deque()

    def pieces() -> Iterator[Iterator[Piece]]:
      shards = (self._shard(number) for number in numbers)
      # One is tokenized while the one before is computed.
      for shard in prefetch.prefetch(shards, 1):
        before = sum(entries)
        entries.append(len(shard.entries))
        for block in _blocks(shard, before):
          if not shard.vectors.chunk_path(block.number).exists():
            read.append(block)
            yield block.pieces(self.source)

    def total() -> int:
      known = sum(sizes[: len(entries)])
      return round(sum(entries) * sum(sizes) / max(1, known))

    for keys_NxD in self.model.blocks(pieces(), self.rows):
      block = read.popleft()
      block.write(keys_NxD, self.source)
      self.progress(block.done, max(total(), block.done))
    self.progress(total(), total())

  def _shard(self, number: int) -> _Shard:
    """Opens a shard, whose values and sequences are made if need be."""
    fields = self.request['shards'][number]
    path = os.path.normpath(self.directory / fields['path'])
    values = tokens_lib.values_path(self.directory, number)
    sequences = tokens_lib.sequences_path(self.directory, number)
    vectors = store_lib.vectors_path(self.directory, number)
    for made in (values, sequences, vectors):
      made.parent.mkdir(exist_ok=True)

    def write(file: BinaryIO) -> None:
      temporary = values.with_name(values.name + '.tmp')
      with open(temporary, 'wb') as out:
        borders = _write_values(self.source.texts(path), out)
      expected = seekable.Stamp(fields['bytes'], fields['digest'])
      self.source.check(path, expected)
      os.replace(temporary, values)
      np.save(file, borders, allow_pickle=False)

    # Sequences come last: where they are, values are too.
    files.write_once(os.fspath(sequences), write)
    entries = tokens_lib.load(self.directory, number)
    shape = (self.request[key] for key in ('dim', 'dtype', 'block'))
    keys = vectors_lib.Vectors(vectors, len(entries), *shape)
    return _Shard(number, path, entries, keys)


def _write_values(texts: Iterator[Sequence[int]], out: BinaryIO) -> np.ndarray:
  """Writes the tokens of the texts of a file; returns its sequences."""
  _write_header(out, 0)
  lengths = [0]
  while batch := list(itertools.islice(texts, _TEXTS)):
    lengths += map(len, batch)
    out.write(np.fromiter(itertools.chain(*batch), '<i4').tobytes())
  borders = np.cumsum(lengths, dtype=np.int64)
  out.seek(0)
  _write_header(out, int(borders[-1]))
  out.flush()
  os.fsync(out.fileno())
  return borders


def _blocks(shard: _Shard, before: int) -> Iterator[_Block]:
  """Those of a shard; makes the array that they are chunks of."""
  vectors = shard.vectors
  if vectors.rows:
    shards_lib.open_array(vectors)
  for number in range(-(-vectors.rows // vectors.block)):
    end = min((number + 1) * vectors.block, vectors.rows)
    yield _Block(shard, number, before + end)


def _write_header(out: BinaryIO, entries: int) -> None:
  """That of `np.save`, which leaves room for any number of them."""
  fields = {'descr': '<i4', 'fortran_order': False, 'shape': (entries,)}
  np.lib.format.write_array_header_1_0(out, fields)
