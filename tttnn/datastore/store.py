"""A datastore on disk: what was embedded, by what, and where everything is.

    STORE/manifest.json     written last: a store without it is not finished
          offsets/00.npy    int64 [rows + 1], line starts in the corpus file
          checks/00.npy     uint32 [rows], the lines' CRC-32
          text/             plain form of corpus files that are compressed
          vectors/00/       zarr3 array [rows, dim], uncompressed
          index/Flat/       an index over the rows whose vectors are finite:
                00.faiss    one file a shard, and
                index.json  written last

In a store of tokens, values/ and sequences/ stand for offsets/, checks/ and
text/, and a row is not a document but a token: see `tttnn.datastore.tokens`.

Indexes stand beside each other, one directory each. Where the vectors are not
kept they are read from the Flat index, which is nothing but them. Files that
were made elsewhere stay where they are: index.json says where.

A document's id is its global line number over the shards in manifest order.
Nothing in a store depends on the time, the machine or how often building was
interrupted: two builds of the same thing are the same bytes.

A corpus file that changes is noticed by its size and a digest of parts of it
when a store is opened, and by a line's checksum when a text is read.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.datastore import tokens as tokens_lib
from tttnn.datastore import vectors as vectors_lib

VERSION = 3
MANIFEST = 'manifest.json'
INDEX = 'index.json'
FLAT = 'Flat'
DOCUMENTS = 'documents'  # Kind of a store; the other is `tokens.KIND`.


@dataclasses.dataclass(frozen=True)
class Shard:
  """One corpus file in the manifest.

  Attributes:
    path: the file, relative to the store's directory.
    bytes: its size.
    digest: of parts of it, see `seekable.Stamp`; of pairs, of their contents.
    text: its plain form, relative to the store's directory; '' = itself.
    rows: its lines; of tokens, its entries.
    malformed: how many lines hold no document; they are among `left_out`, or
      have no entries.
    left_out: rows whose vectors hold NaN or infinity, or that have no text and
      so NaN for a vector; they are stored as they are, but not indexed, so that
      no search returns them.
    sequences: of tokens, its lines; else 0.
  """

  path: str
  bytes: int
  digest: str
  text: str
  rows: int
  malformed: int
  left_out: tuple[int, ...]
  sequences: int = 0

  @property
  def searchable(self) -> int:
    return self.rows - len(self.left_out)

  @functools.cached_property
  def _skips(self) -> np.ndarray:
    left_out = np.array(self.left_out, np.int64)
    return left_out - np.arange(len(left_out))

  def searchable_row(self, numbers: np.ndarray) -> np.ndarray:
    """The rows of those that can be found, counted among themselves."""
    # The i-th row left out comes before position left_out[i] - i.
    return numbers + np.searchsorted(self._skips, numbers, side='right')


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a store was built from and how.

  Attributes:
    version: of this layout.
    embedder: fingerprint of whatever made the vectors.
    dim: width of a vector.
    metric: see `tttnn.datastore.metric`.
    dtype: of the stored vectors, 'float32' or 'float16'.
    block: rows of a chunk of the vectors, embedded together.
    seed: of the training and self-check samples.
    keep_vectors: whether vectors/ stays once there is a Flat index.
    imported: whether the Flat index was made elsewhere, of all rows, those left
      out too.
    shards: the corpus files, in id order.
    kind: DOCUMENTS, or `tokens.KIND`.
    keys: of tokens, the kind of `model.Model.keys`; else ''.
    computed: of tokens, the dtype that the model computed in; else ''.
    window: of tokens, those of the windows that they were read in; 0: the
      model's context.
    stride: between these, see `scoring.rolling`; 0: they do not overlap.
    pairs: of tokens, whether they are those of the outputs of pairs, which the
      model predicted from the inputs too; a shard is a file of pairs, a
      sequence the output of one.
  """

  version: int
  embedder: str
  dim: int
  metric: str
  dtype: str
  block: int
  seed: int
  keep_vectors: bool
  imported: bool
  shards: tuple[Shard, ...]
  kind: str = DOCUMENTS
  keys: str = ''
  computed: str = ''
  window: int = 0
  stride: int = 0
  pairs: bool = False

  @property
  def rows(self) -> int:
    return sum(shard.rows for shard in self.shards)

  @property
  def searchable(self) -> int:
    return sum(shard.searchable for shard in self.shards)

  @property
  def malformed(self) -> int:
    return sum(shard.malformed for shard in self.shards)

  @property
  def sequences(self) -> int:
    return sum(shard.sequences for shard in self.shards)

  def to_json(self) -> bytes:
    fields = dataclasses.asdict(self)
    if self.kind == DOCUMENTS:  # Which had none of these, and has not now.
      for name in ('kind', 'keys', 'computed'):
        del fields[name]
      for shard in fields['shards']:
        del shard['sequences']
    # Which are not there where they are as ever.
    for name in ('window', 'stride', 'pairs'):
      if not fields[name]:
        del fields[name]
    return to_json(fields)

  @classmethod
  def from_fields(cls, fields: dict[str, Any]) -> 'Manifest':
    shards = (
      Shard(**shard | {'left_out': tuple(shard['left_out'])})
      for shard in fields['shards']
    )
    return cls(**fields | {'shards': tuple(shards)})


@dataclasses.dataclass(frozen=True)
class Index:
  """An index over the vectors of a store.

  Attributes:
    spec: faiss factory string, then parameters of searches after a ';'.
    files: of each shard, relative to the store; '' = nothing to index.
    bytes: size of each.
    self_check: what the check after building found, see `index.self_check`.
  """

  spec: str
  files: tuple[str, ...]
  bytes: tuple[int, ...]
  self_check: Mapping[str, float]

  @property
  def is_flat(self) -> bool:
    return self.spec.partition(';')[0] == FLAT

  def to_json(self) -> bytes:
    return to_json(dataclasses.asdict(self))

  @classmethod
  def from_fields(cls, fields: dict[str, Any]) -> 'Index':
    files, sizes = tuple(fields['files']), tuple(fields['bytes'])
    return cls(**fields | {'files': files, 'bytes': sizes})


@dataclasses.dataclass(frozen=True)
class Store:
  """A store's manifest and what its ids stand for; where its other parts are.

  Attributes:
    directory: resolved.
    manifest: of all shards.
    corpus: the texts of the shards that are here; None in a store of tokens.
    index: the one that is searched; None while there is none.
    here: numbers of the shards that were opened.
    tokens: the entries of the shards that are here; None in one of documents.
  """

  directory: pathlib.Path
  manifest: Manifest
  corpus: jsonl.Corpus | None
  index: Index | None
  here: tuple[int, ...]
  tokens: tokens_lib.Tokens | None = None

  def vectors(
    self, shard: int
  ) -> vectors_lib.Vectors | vectors_lib.FlatVectors:
    """Those of a shard.

    Raises:
      ValueError: they were not kept, and there is no Flat index.
    """
    m = self.manifest
    path = vectors_path(self.directory, shard)
    if path.exists() or not m.shards[shard].rows:
      return vectors_lib.Vectors(
        path, m.shards[shard].rows, m.dim, m.dtype, m.block
      )
    flat = self.index
    if not flat or not flat.is_flat:
      flat = read_index(self.directory, FLAT)
    return self._flat_vectors(shard, flat)

  def _flat_vectors(self, shard: int, flat: 'Index') -> vectors_lib.FlatVectors:
    m = self.manifest
    path = pathlib.Path(os.path.normpath(self.directory / flat.files[shard]))
    if flat.files[shard]:
      vectors_lib.check_size(path, flat.bytes[shard])
    # One that was made elsewhere holds all rows.
    left_out = () if m.imported else m.shards[shard].left_out
    return vectors_lib.FlatVectors(
      path, m.shards[shard].rows, left_out, m.dim, m.block
    )

  def mapped_vectors(
    self, shard: int
  ) -> vectors_lib.Vectors | vectors_lib.FlatVectors:
    """Those of a shard, from the Flat index where there is one.

    That is one file, where vectors/ are many.
    """
    if not (index_dir(self.directory, FLAT) / INDEX).exists():
      return self.vectors(shard)
    return self._flat_vectors(shard, read_index(self.directory, FLAT))

  def gather(self, ids: Sequence[int]) -> np.ndarray:
    """The stored vectors of some ids: float32 [len(ids), D], any order.

    Raises:
      ValueError: as `vectors`.
    """
    ids = np.asarray(ids, np.int64)
    ends = np.cumsum([shard.rows for shard in self.manifest.shards])
    shards = np.searchsorted(ends, ids, side='right')
    result = np.empty((len(ids), self.manifest.dim), np.float32)
    for shard in np.unique(shards).tolist():
      here = shards == shard
      rows = ids[here] - (ends[shard] - self.manifest.shards[shard].rows)
      result[here] = self._mapped(shard).gather(rows)
    return result

  @functools.cached_property
  def _mapped(self):
    """`mapped_vectors`, which stay mapped from one `gather` to the next."""
    return functools.cache(self.mapped_vectors)

  def info(self) -> dict[str, Any]:
    """What a search says of the store that it searches."""
    m = self.manifest
    return {
      'store': str(self.directory),
      'dim': m.dim,
      'rows': m.rows,
      'searchable': m.searchable,
      'kind': m.kind,
      'embedder': m.embedder,
      'keys': m.keys,
      'manifest': self.fingerprint(),
      'index': self.index.spec,
      'metric': m.metric,
    }

  def index_path(self, shard: int) -> pathlib.Path:
    """The index file of a shard."""
    return pathlib.Path(
      os.path.normpath(self.directory / self.index.files[shard])
    )

  def fingerprint(self) -> str:
    """SHA-256 of manifest and index, hexadecimal."""
    both = self.manifest.to_json() + self.index.to_json()
    return hashlib.sha256(both).hexdigest()


def open(
  directory: str | os.PathLike,
  index: str = '',
  shards: Collection[int] | None = None,
  kind: str = '',
) -> Store:
  """Opens a finished store and checks that its files are those it was built of.

  Args:
    directory: of the store.
    index: the one to search: its factory string, with or without parameters
      after a ';', which replace those it was built with. '': Flat, or where
      there is none, the only one.
    shards: numbers of those whose files are here; None: all.
    kind: that it must be of, see `Manifest`; '': any.

  Raises:
    ValueError: no manifest, another layout version or kind, no such index, a
      file of the store that is missing or not as long as it was, or a corpus
      file that has changed or is missing, but for one whose plain form is there
      or whose tokens are.
  """
  directory = pathlib.Path(os.path.realpath(directory))
  manifest = read_manifest(directory)
  count = len(manifest.shards)
  here = tuple(range(count) if shards is None else sorted(shards))
  if here and not 0 <= here[0] <= here[-1] < count:
    raise ValueError(f'shards {here} of a store with {count}: {directory}')
  if kind and manifest.kind != kind:
    raise ValueError(
      f'{directory} is a store of {manifest.kind}, where one of {kind} is '
      'needed'
    )
  chosen = _choose(directory, index)
  store = assemble(directory, manifest, chosen, here)
  for i in here:
    if chosen.files[i]:
      vectors_lib.check_size(store.index_path(i), chosen.bytes[i])
  return store


def assemble(
  directory: pathlib.Path,
  manifest: Manifest,
  index: Index | None,
  here: tuple[int, ...],
) -> Store:
  """A store with what its ids stand for; errors as of `open`."""
  if manifest.kind == DOCUMENTS:
    texts = corpus(directory, manifest, here)
    return Store(directory, manifest, texts, index, here)
  counts = [(shard.rows, shard.sequences) for shard in manifest.shards]
  tokens = tokens_lib.open(directory, counts, here)
  return Store(directory, manifest, None, index, here, tokens)


def check_embedder(
  info: Mapping[str, Any], fingerprint: str, dim: int, keys: str = ''
) -> None:
  """Raises `ValueError` unless an embedder is the one of a store.

  Args:
    info: of the store, see `Store.info`.
    fingerprint: of the embedder; of a store of tokens, of the language model.
    dim: of its embeddings or keys.
    keys: of tokens, their kind, see `Manifest`.
  """
  if bool(info['keys']) != bool(keys):
    needed = tokens_lib.KIND if keys else DOCUMENTS
    raise ValueError(
      f'{info["store"]} is a store of {info["kind"]}, where one of {needed} is '
      'needed'
    )
  there = info['embedder'], info['dim']
  if there != (fingerprint, dim):
    what = 'model' if keys else 'embedder'
    raise ValueError(
      f'{info["store"]} was built with {what} {there[0]} of dim {there[1]}, '
      f'but the queries come from {fingerprint} of dim {dim}'
    )
  if info['keys'] != keys:
    raise ValueError(
      f'{info["store"]} holds keys {info["keys"]!r}, but the queries are '
      f'{keys!r}'
    )


def corpus(
  directory: pathlib.Path, manifest: Manifest, here: Collection[int]
) -> jsonl.Corpus:
  """The texts of those shards that are here; errors as of `open`."""
  lines = [
    _open_shard(directory, i, shard) if i in here else None
    for i, shard in enumerate(manifest.shards)
  ]
  return jsonl.Corpus(lines, [shard.rows for shard in manifest.shards])


def read_manifest(directory: pathlib.Path) -> Manifest:
  """The manifest alone; `ValueError` for none, or one of another version."""
  path = directory / MANIFEST
  if not path.exists():
    raise ValueError(f'no finished store in {directory}: no {MANIFEST} there')
  fields = read_json(path)
  if fields.get('version') != VERSION:
    raise ValueError(
      f'{path} has version {fields.get("version")}, this program {VERSION}: '
      'build it again'
    )
  return Manifest.from_fields(fields)


def indexes(directory: pathlib.Path) -> list[str]:
  """The specs of the finished indexes of a store."""
  paths = sorted((directory / 'index').glob(f'*/{INDEX}'))
  return [read_json(path)['spec'] for path in paths]


def index_dir(directory: pathlib.Path, spec: str) -> pathlib.Path:
  """Where an index lies; parameters of searches do not count."""
  factory = spec.partition(';')[0]
  return directory / 'index' / re.sub(r'[^A-Za-z0-9]+', '_', factory).strip('_')


def read_index(directory: pathlib.Path, spec: str) -> Index:
  """A finished index; `ValueError` names those there are."""
  path = index_dir(directory, spec) / INDEX
  found = Index.from_fields(read_json(path)) if path.exists() else None
  factory, _, parameters = spec.partition(';')
  if found is None or found.spec.partition(';')[0] != factory:
    there = ', '.join(map(repr, indexes(directory))) or 'none'
    raise ValueError(
      f'{directory} has no finished index {factory!r}; there is {there}: '
      'build with this store.index'
    )
  return dataclasses.replace(found, spec=spec) if parameters else found


def _choose(directory: pathlib.Path, spec: str) -> Index:
  if not spec:
    there = indexes(directory)
    spec = there[0] if len(there) == 1 else FLAT
  return read_index(directory, spec)


def _open_shard(
  directory: pathlib.Path, number: int, shard: Shard
) -> jsonl.Shard:
  path = data = os.path.normpath(directory / shard.path)
  if shard.text:
    data = os.path.normpath(directory / shard.text)
    if not os.path.exists(data):
      raise ValueError(f'{data} is missing: `build` makes it again from {path}')
  # A compressed file has done its part once there is a plain one.
  if not shard.text or os.path.exists(path):
    seekable.check(path, seekable.Stamp(shard.bytes, shard.digest))
  offsets = load_offsets(directory, number)
  checks = load_checks(directory, number)
  for part_path, rows in (
    (offsets_path(directory, number), len(offsets) - 1),
    (checks_path(directory, number), len(checks)),
  ):
    if rows != shard.rows:
      raise ValueError(
        f'{part_path} has {rows} rows, {directory / MANIFEST} {shard.rows}'
      )
  return jsonl.Shard(path, offsets, checks, data)


def offsets_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'offsets' / f'{shard:02}.npy'


def checks_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'checks' / f'{shard:02}.npy'


def vectors_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'vectors' / f'{shard:02}'


def load_offsets(directory: pathlib.Path, shard: int) -> np.ndarray:
  """Memory-mapped int64 [rows + 1]; `ValueError` names a damaged file."""
  return _load(offsets_path(directory, shard))


def load_checks(directory: pathlib.Path, shard: int) -> np.ndarray:
  """Memory-mapped uint32 [rows]; `ValueError` names a damaged file."""
  return _load(checks_path(directory, shard))


def _load(path: pathlib.Path) -> np.ndarray:
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except (OSError, EOFError, ValueError) as e:
    raise ValueError(f'{path} cannot be read: {e}') from e


def read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_bytes())
  except ValueError as e:
    raise ValueError(f'{path} is not JSON: {e}') from e


def to_json(fields: Mapping[str, Any]) -> bytes:
  """JSON as a store holds it: indented, with a newline at the end."""
  return (json.dumps(fields, indent=2) + '\n').encode()
