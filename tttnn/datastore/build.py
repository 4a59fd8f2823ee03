"""Builds a datastore: line offsets, then vectors, then indexes, then manifest.

Every file appears whole, by renaming, and is made of what is on disk before
it: killed at any point, a build that is run again skips what is there and ends
with the same bytes. (HNSW is the exception: its links depend on which thread
inserts first.) What the embedder sees are fixed blocks of consecutive documents
of one shard, so that its results do not depend on where a build was resumed, or
on how many processes did it: each may embed a part, and one finishes the store.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

import faiss
import numpy as np

from tttnn.corpus import jsonl
from tttnn.corpus import seekable
from tttnn.datastore import begun
from tttnn.datastore import index as index_lib
from tttnn.datastore import shards as shards_lib
from tttnn.datastore import store as store_lib

Progress = Callable[[int, int], None]

_TRAINED = 'index/trained.faiss'
_TRAIN_ROWS_A_LIST = 64
_MAX_DISTANCE_ERROR = 1e-3


def build(
  store_dir: str | os.PathLike,
  corpus_paths: Sequence[str],
  embed: shards_lib.Embed,
  *,
  dim: int,
  fingerprint: str,
  index: str = 'Flat',
  dtype: str = 'float32',
  block: int = 1024,
  min_recall: float = 0.95,
  seed: int = 0,
  threads: int = 0,
  on_error: str = 'error',
  cache: str = '',
  part: begun.Part | None = None,
  progress: Progress = lambda done, total: None,
) -> store_lib.Store | None:
  """Builds a store, or finishes one, or opens the finished one.

  Args:
    store_dir: made if missing; one process at a time builds there, or as many
      as there are parts that do not overlap.
    corpus_paths: JSONL files, or of another format of `formats`, in id order.
    embed: texts to float32 [texts, dim]. An empty text is given as ' '. Rows
      with NaN or infinity are stored, but left out of the index.
    dim: width of the embeddings.
    fingerprint: of the embedder; searches are checked against it.
    index: faiss factory string, see `index.create`.
    dtype: of the stored vectors, 'float32' or 'float16'.
    block: documents embedded together, and rows of a chunk on disk.
    min_recall: of the self-check, below which the store is refused.
    seed: of the samples for training and for the self-check.
    threads: of training and searching; 0 = every core.
    on_error: of malformed lines: 'error', or 'skip', which leaves them out of
      the index and counts them.
    cache: directory for the plain form of files that are not plain; '': in the
      store.
    part: embed this part only and leave it to a build without a part to finish.
    progress: called with the documents embedded so far and all of them.

  Returns:
    The store; None while only parts of it are there.

  Raises:
    ValueError: arguments that differ from those of the store that is there; a
      malformed line of the corpus, by file and line, unless they are skipped; a
      corpus that is empty, damaged, or changes meanwhile; embeddings of another
      shape or beyond the range of `dtype`; a part without documents, or that
      another process is at; an index that faiss cannot make, or that fails the
      self-check.
  """
  jsonl.check_on_error(on_error)
  request = begun.request(
    store_dir, corpus_paths, dim, fingerprint, index, dtype, block, seed
  )
  directory = pathlib.Path(os.path.realpath(store_dir))
  if not _finished(directory, request, min_recall, on_error):
    with begun.lock(directory, whole=part is None) as claim:
      if not _finished(directory, request, min_recall, on_error):
        begun.begin(directory, request, index=part is None)
        work = _Work(directory, request, embed, on_error, cache, progress)
        if part is not None:
          _embed_part(work, part, claim)
          return None
        _build(work, min_recall, threads)
  for name in (_TRAINED, *begun.FILES):
    if (directory / name).exists():
      (directory / name).unlink(missing_ok=True)
  _unpack_again(directory)
  return store_lib.open(directory)


def is_done(
  store_dir: str | os.PathLike,
  corpus_paths: Sequence[str],
  *,
  dim: int,
  fingerprint: str,
  index: str = 'Flat',
  dtype: str = 'float32',
  block: int = 1024,
  min_recall: float = 0.95,
  seed: int = 0,
  on_error: str = 'error',
) -> bool:
  """Whether `build` with these arguments would return without embedding.

  Raises:
    ValueError: a finished store of other arguments is there.
  """
  request = begun.request(
    store_dir, corpus_paths, dim, fingerprint, index, dtype, block, seed
  )
  directory = pathlib.Path(os.path.realpath(store_dir))
  return _finished(directory, request, min_recall, on_error)


def _finished(directory, request, min_recall: float, on_error: str) -> bool:
  path = directory / store_lib.MANIFEST
  if not path.exists():
    return False
  fields = store_lib.read_json(path)
  found = {key: fields.get(key) for key in request}
  found['shards'] = [
    {key: shard.get(key) for key in ('path', 'bytes', 'digest')}
    for shard in fields['shards']
  ]
  begun.compare(path, found, request)
  manifest = store_lib.Manifest.from_fields(fields)
  _check_recall(path, manifest.self_check, min_recall)
  if manifest.malformed and on_error == 'error':
    raise ValueError(
      f'{path}: {manifest.malformed} malformed lines were left out, which '
      "on_error='error' does not allow"
    )
  return True


@dataclasses.dataclass(frozen=True)
class _Work:
  """What embedding the documents of a store needs."""

  directory: pathlib.Path
  request: dict[str, Any]
  embed_texts: shards_lib.Embed
  on_error: str
  cache: str
  progress: Progress

  def lines(self, shard: int) -> tuple[jsonl.Shard, str]:
    fields = self.request['shards'][shard]
    return shards_lib.lines(self.directory, shard, fields, self.cache)

  def embed(self, parts: Sequence[tuple[int, jsonl.Shard, range]]) -> None:
    """Embeds these rows of these shards."""
    done, total = 0, sum(len(rows) for _, _, rows in parts)

    def progress(rows: int) -> None:
      nonlocal done
      done += rows
      self.progress(min(done, total), total)

    (self.directory / 'vectors').mkdir(exist_ok=True)
    for shard, lines, rows in parts:
      vectors = store_lib.Vectors(
        store_lib.vectors_path(self.directory, shard),
        len(lines),
        *(self.request[key] for key in ('dim', 'dtype', 'block')),
      )
      shards_lib.embed(
        vectors, lines, rows, self.embed_texts, self.on_error, progress
      )


def _embed_part(work: _Work, part: begun.Part, claim: begun.Claim) -> None:
  count = len(work.request['shards'])
  parts = part.rows(count, lambda shard: work.lines(shard)[0])
  for shard, _, rows in parts:
    claim(shard, rows)
  work.embed(parts)


def _build(work: _Work, min_recall: float, threads: int) -> None:
  store = _embed(work)
  directory = store.directory
  if not store.manifest.searchable:
    raise ValueError(
      f'not one of {store.manifest.rows} embeddings is finite: {directory}'
    )
  (directory / 'index').mkdir(exist_ok=True)
  store = _index(store, threads)
  seed = store.manifest.seed
  found = index_lib.self_check(store, threads=threads, seed=seed)
  _check_recall(directory, found, min_recall)
  manifest = dataclasses.replace(store.manifest, self_check=found)
  begun.write(directory / store_lib.MANIFEST, manifest.to_json())


def _embed(work: _Work) -> store_lib.Store:
  """The store as it is with all its vectors, and without an index."""
  opened = [work.lines(i) for i in range(len(work.request['shards']))]
  corpus = jsonl.Corpus([lines for lines, _ in opened])
  work.embed([(i, x, range(len(x))) for i, x in enumerate(corpus.shards)])
  shards = tuple(
    store_lib.Shard(
      **fields,
      text=text,
      rows=len(lines),
      malformed=0,
      left_out=(),
      index_bytes=0,
    )
    for fields, (lines, text) in zip(
      work.request['shards'], opened, strict=True
    )
  )
  manifest = store_lib.Manifest(
    **work.request | {'shards': shards}, self_check={}
  )
  store = store_lib.Store(work.directory, manifest, corpus)
  shards = []
  for i, shard in enumerate(manifest.shards):
    left_out, malformed = shards_lib.left_out(
      store.vectors(i), corpus.shards[i], work.on_error
    )
    shards.append(
      dataclasses.replace(shard, left_out=left_out, malformed=malformed)
    )
  return _with_shards(store, shards)


def _unpack_again(directory: pathlib.Path) -> None:
  """Makes the plain files of a finished store that have been deleted since."""
  manifest = store_lib.read_json(directory / store_lib.MANIFEST)
  for shard in manifest['shards']:
    text = os.path.normpath(directory / shard['text'])
    if shard['text'] and not os.path.exists(text):
      path = os.path.normpath(directory / shard['path'])
      stamp = seekable.Stamp(shard['bytes'], shard['digest'])
      seekable.unpack(path, stamp, os.path.dirname(text))


def _index(store: store_lib.Store, threads: int) -> store_lib.Store:
  """Writes the index files that are not there yet, with one training for all.

  Indexes with the same codebooks can be merged later.
  """
  index_lib.set_threads(threads)
  trained_path = store.directory / _TRAINED
  shards = []
  for i, shard in enumerate(store.manifest.shards):
    path = store.index_path(i)
    if shard.searchable and not path.exists():
      if not trained_path.exists():
        _write_index(trained_path, _train(store))
      index = faiss.read_index(str(trained_path))
      for _, block_BxD in store.vectors(i).blocks():
        finite = np.isfinite(block_BxD).all(axis=1)
        index.add(block_BxD[finite].astype(np.float32))
      _write_index(path, index)
    size = path.stat().st_size if shard.searchable else 0
    shards.append(dataclasses.replace(shard, index_bytes=size))
  return _with_shards(store, shards)


def _train(store: store_lib.Store) -> faiss.Index:
  manifest = store.manifest
  index = index_lib.create(manifest.dim, manifest.index)
  if index.is_trained:
    return index
  ivf = faiss.try_extract_index_ivf(index)
  lists = max(ivf.nlist if ivf else 0, 1024)
  rng = np.random.default_rng(manifest.seed)
  sample_BxD = index_lib.sample(store, _TRAIN_ROWS_A_LIST * lists, rng)
  try:
    index.train(sample_BxD)
  except RuntimeError as e:
    raise ValueError(
      f'index {manifest.index!r} cannot be trained on {len(sample_BxD)} '
      f'vectors: {e}'
    ) from e
  return index


def _check_recall(where, found, min_recall: float) -> None:
  """Refuses, with the numbers, an index that does not find what is near."""
  error = found['max_distance_error']
  if found['recall'] < min_recall or error > _MAX_DISTANCE_ERROR:
    raise ValueError(
      f'{where}: the index fails its self-check: recall@{found["k"]} '
      f'{found["recall"]:.4f} (at least {min_recall}), largest distance error '
      f'{error:.2g} (at most {_MAX_DISTANCE_ERROR})'
    )


def _with_shards(store, shards) -> store_lib.Store:
  manifest = dataclasses.replace(store.manifest, shards=tuple(shards))
  return dataclasses.replace(store, manifest=manifest)


def _write_index(path: pathlib.Path, index: faiss.Index) -> None:
  temporary = path.with_name(path.name + '.tmp')
  faiss.write_index(index, str(temporary))
  os.replace(temporary, path)
