"""Builds a datastore: line offsets, then vectors, then an index.

Every file appears whole, by renaming, and is made of what is on disk before
it: killed at any point, a build that is run again skips what is there and ends
with the same bytes. (HNSW is the exception: its links depend on which thread
inserts first.) What the embedder sees are fixed blocks of consecutive documents
of one shard, so that its results do not depend on where a build was resumed, or
on how many processes did it: each may embed a part, and one finishes the store.
Another index is built from the vectors that are there.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
import pathlib
import shutil
from typing import Any
from typing import Protocol

import numpy as np

from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.datastore import begun
from tttnn.datastore import check
from tttnn.datastore import index_files
from tttnn.datastore import metric as metric_lib
from tttnn.datastore import shards as shards_lib
from tttnn.datastore import store as store_lib
from tttnn.datastore import vectors as vectors_lib

Progress = Callable[[int, int], None]


class Work(Protocol):
  """Makes the vectors of a store, and what they stand for."""

  def make(self) -> store_lib.Store:
    """All that is not there yet; the store has no index then."""

  def make_part(self, part: begun.Part, claim: begun.Claim) -> None:
    """A part alone."""

  def index(
    self, store: store_lib.Store, filler: index_files.Filler
  ) -> store_lib.Store:
    """The store with its index, which is not checked yet."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What a build makes, beside the embeddings.

  Attributes:
    index: faiss factory string, then parameters of searches after a ';'.
    metric: see `tttnn.datastore.metric`.
    dtype: of the stored vectors, 'float32' or 'float16'.
    block: documents embedded together, and rows of a chunk on disk.
    seed: of the samples for training and for the self-check.
    keep_vectors: whether the vectors stay beside a Flat index, which holds them
      as float32. Without them only what faiss itself stores can be made exact.
    min_recall: of the self-check, below which an index is refused.
    on_error: of malformed lines: 'error', or 'skip', which leaves them out of
      the index and counts them.
    cache: directory for the plain form of files that are not plain; '': in the
      store.
    threads: of training and searching; 0 = every core.
  """

  index: str = 'Flat'
  metric: str = 'l2'
  dtype: str = 'float32'
  block: int = 1024
  seed: int = 0
  keep_vectors: bool = True
  min_recall: float = 0.95
  on_error: str = 'error'
  cache: str = ''
  threads: int = 0


def build(
  store_dir: str | os.PathLike,
  corpus_paths: Sequence[str],
  embed: shards_lib.Embed,
  *,
  dim: int,
  fingerprint: str,
  options: Options = Options(),
  part: begun.Part | None = None,
  imported: Sequence[str] = (),
  filler: index_files.Filler = index_files.ON_HOST,
  progress: Progress = lambda done, total: None,
) -> store_lib.Store | None:
  """Builds a store, or finishes one, or adds an index, or opens what is there.

  Args:
    store_dir: made if missing; one process at a time builds there, or as many
      as there are parts that do not overlap.
    corpus_paths: JSONL files, or of another format of `formats`, in id order.
    embed: an iterator over blocks of texts to float32 [texts, dim] of each, in
      order. It is called once, and may read texts ahead, by another thread. An
      empty text is given as ' '. Rows with NaN or infinity are stored, but left
      out of the index.
    dim: width of the embeddings.
    fingerprint: of the embedder; searches are checked against it.
    options: what is made.
    part: embed this part only and leave it to a build without a part to finish.
    imported: Flat index files over the same corpus files, in their order, to
      take in place of embedding; they stay where they are.
    filler: trains and fills an index.
    progress: called with the documents embedded so far and all of them.

  Returns:
    The store with the index of `options`; None while only parts are there.

  Raises:
    ValueError: arguments that differ from those of the store that is there; a
      malformed line of the corpus, by file and line, unless they are skipped; a
      corpus that is empty, damaged, or changes meanwhile; embeddings of another
      shape or beyond the range of `dtype`; a part without documents, or that
      another process is at; an index that faiss cannot make, that fails the
      self-check, or that is of other documents.
  """
  jsonl.check_on_error(options.on_error)
  request = begun.request(
    store_dir, corpus_paths, dim, fingerprint, options, bool(imported)
  )
  directory = pathlib.Path(os.path.realpath(store_dir))
  work = _Work(directory, request, embed, options, imported, progress)
  return complete(directory, request, options, work, part, filler)


def complete(
  directory: pathlib.Path,
  request: dict[str, Any],
  options: Options,
  work: Work,
  part: begun.Part | None,
  filler: index_files.Filler,
) -> store_lib.Store | None:
  """Does what is left to do of a build, whatever its vectors are of.

  Args:
    directory: of the store, resolved.
    request: of `begun.request`.
    options: as of `build`, like `part` and `filler`.
    work: makes the vectors.
    part: to be made alone, or None.
    filler: trains and fills an index.

  Returns:
    As `build`. Errors are also as of `build`.
  """
  if not _finished(directory, request, options):
    with begun.lock(directory, whole=part is None) as claim:
      if not _finished(directory, request, options):
        begun.begin(directory, request)
        if part is not None:
          work.make_part(part, claim)
          return None
        _build(directory, request, options, work, filler)
  for path in (
    index_files.trained_path(directory, options.index),
    *(directory / name for name in begun.FILES),
  ):
    if path.exists():
      path.unlink(missing_ok=True)
  _unpack_again(directory)
  store = store_lib.open(directory, options.index)
  flat = store_lib.index_dir(directory, store_lib.FLAT) / store_lib.INDEX
  if not options.keep_vectors and flat.exists():
    shutil.rmtree(directory / 'vectors', ignore_errors=True)
  return store


def _finished(directory, request, options: Options) -> bool:
  """Whether store and index are there; `ValueError` for those of others."""
  path = directory / store_lib.MANIFEST
  if not path.exists():
    return False
  manifest = store_lib.read_manifest(directory)
  fields = dataclasses.asdict(manifest)
  found = {key: fields.get(key) for key in request}
  found['shards'] = [
    {key: shard[key] for key in ('path', 'bytes', 'digest')}
    for shard in fields['shards']
  ]
  found['kind'] = manifest.kind
  begun.compare(path, found, {'kind': store_lib.DOCUMENTS} | request)
  if manifest.malformed and options.on_error == 'error':
    raise ValueError(
      f'{path}: {manifest.malformed} malformed lines were left out, which '
      "on_error='error' does not allow"
    )
  path = store_lib.index_dir(directory, options.index) / store_lib.INDEX
  if not path.exists():
    return False
  index = store_lib.Index.from_fields(store_lib.read_json(path))
  if index.spec != options.index:  # Other parameters: it is checked again.
    return False
  check.require(path, index.self_check, options.min_recall)
  return True


@dataclasses.dataclass(frozen=True)
class _Work:
  """Embeds documents, or takes vectors that were made elsewhere: a `Work`."""

  directory: pathlib.Path
  request: dict[str, Any]
  embed_texts: shards_lib.Embed
  options: Options
  imported: Sequence[str]
  progress: Progress

  def make(self) -> store_lib.Store:
    store = _import(self) if self.imported else _embed(self)
    if not store.manifest.searchable:
      raise ValueError(
        f'not one of {store.manifest.rows} embeddings is finite: '
        f'{self.directory}'
      )
    return store

  def make_part(self, part: begun.Part, claim: begun.Claim) -> None:
    count = len(self.request['shards'])
    parts = part.rows(count, lambda shard: self.lines(shard)[0])
    for shard, _, rows in parts:
      claim(shard, rows)
    self.embed(parts)

  def index(
    self, store: store_lib.Store, filler: index_files.Filler
  ) -> store_lib.Store:
    options = self.options
    if not self.imported or options.index != store_lib.FLAT:
      return index_files.write(store, options.index, options.threads, filler)
    store = index_files.adopt(store, self.imported)
    index_files.check_texts(store, self.embed_texts, options.threads)
    return store

  def lines(self, shard: int) -> tuple[jsonl.Shard, str]:
    fields = self.request['shards'][shard]
    return shards_lib.lines(self.directory, shard, fields, self.options.cache)

  def vectors(self, shard: int, rows: int) -> vectors_lib.Vectors:
    return vectors_lib.Vectors(
      store_lib.vectors_path(self.directory, shard),
      rows,
      *(self.request[key] for key in ('dim', 'dtype', 'block')),
    )

  def embed(self, parts: Sequence[tuple[int, jsonl.Shard, range]]) -> None:
    """Embeds these rows of these shards."""
    done, total = 0, sum(len(rows) for _, _, rows in parts)

    def progress(rows: int) -> None:
      nonlocal done
      done += rows
      self.progress(min(done, total), total)

    (self.directory / 'vectors').mkdir(exist_ok=True)
    blocks = []
    for shard, lines, rows in parts:
      vectors = self.vectors(shard, len(lines))
      blocks += shards_lib.blocks(vectors, lines, rows)
    shards_lib.embed(
      blocks, self._embed_prepared, self.options.on_error, progress
    )

  def _embed_prepared(
    self, blocks: Iterable[list[str]]
  ) -> Iterator[np.ndarray]:
    for vectors_NxD in self.embed_texts(blocks):
      if self.options.metric == 'cosine':
        vectors_NxD = metric_lib.prepared(self.options.metric, vectors_NxD)
      yield vectors_NxD


def _build(
  directory: pathlib.Path,
  request: dict[str, Any],
  options: Options,
  work: Work,
  filler: index_files.Filler,
) -> None:
  flat = options.index == store_lib.FLAT
  manifest_path = directory / store_lib.MANIFEST
  if manifest_path.exists():
    manifest = store_lib.read_manifest(directory)
    here = tuple(range(len(manifest.shards)))
    store = store_lib.assemble(directory, manifest, None, here)
  else:
    if not flat and (request['imported'] or not options.keep_vectors):
      raise ValueError(
        f'store.index is {options.index!r}, but vectors that are imported, or '
        'not kept, lie in the Flat index: build that first'
      )
    store = work.make()
  store = work.index(store, filler)
  found = check.self_check(
    store, threads=options.threads, seed=store.manifest.seed
  )
  path = store_lib.index_dir(directory, options.index) / store_lib.INDEX
  check.require(path.parent, found, options.min_recall)
  if not manifest_path.exists():
    begun.write(manifest_path, store.manifest.to_json())
  index = dataclasses.replace(store.index, self_check=found)
  begun.write(path, index.to_json())


def _import(work: _Work) -> store_lib.Store:
  """The store of index files that were made elsewhere, still without them."""
  imported = work.imported
  opened = [work.lines(i) for i in range(len(work.request['shards']))]
  if len(imported) != len(opened):
    raise ValueError(
      f'{len(imported)} index files to import, {list(imported)[:3]}..., for '
      f'{len(opened)} corpus files: one each, in the same order'
    )
  left_out = [
    index_files.not_finite(
      path, len(lines), work.request['dim'], work.options.metric
    )
    for path, (lines, _) in zip(imported, opened, strict=True)
  ]
  return _store(work, opened, left_out, [0] * len(opened))


def _embed(work: _Work) -> store_lib.Store:
  """The store as it is with all its vectors, and without an index."""
  opened = [work.lines(i) for i in range(len(work.request['shards']))]
  shards = [lines for lines, _ in opened]
  jsonl.Corpus(shards)  # Refuses an empty one, before anything is embedded.
  work.embed([(i, x, range(len(x))) for i, x in enumerate(shards)])
  found = [
    shards_lib.left_out(
      work.vectors(i, len(lines)), lines, work.options.on_error
    )
    for i, lines in enumerate(shards)
  ]
  return _store(work, opened, *zip(*found, strict=True))


def _store(work: _Work, opened, left_out, malformed) -> store_lib.Store:
  shards = tuple(
    store_lib.Shard(
      **shard,
      text=text,
      rows=len(lines),
      malformed=malformed[i],
      left_out=left_out[i],
    )
    for i, (shard, (lines, text)) in enumerate(
      zip(work.request['shards'], opened, strict=True)
    )
  )
  manifest = store_lib.Manifest(**work.request | {'shards': shards})
  corpus = jsonl.Corpus([lines for lines, _ in opened])
  here = tuple(range(len(shards)))
  return store_lib.Store(work.directory, manifest, corpus, None, here)


def _unpack_again(directory: pathlib.Path) -> None:
  """Makes the plain files of a finished store that have been deleted since."""
  manifest = store_lib.read_json(directory / store_lib.MANIFEST)
  for shard in manifest['shards']:
    text = os.path.normpath(directory / shard['text'])
    if shard['text'] and not os.path.exists(text):
      path = os.path.normpath(directory / shard['path'])
      stamp = seekable.Stamp(shard['bytes'], shard['digest'])
      seekable.unpack(path, stamp, os.path.dirname(text))
