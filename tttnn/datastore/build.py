"""Builds a datastore: line offsets, then vectors, then indexes, then manifest.

Every file appears whole, by renaming, and is made of what is on disk before
it: killed at any point, a build that is run again skips what is there and ends
with the same bytes. (HNSW is the exception: its links depend on which thread
inserts first.) What the embedder sees are fixed blocks of consecutive documents
of one shard, so that its results do not depend on where a build was resumed.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import io
import os
import pathlib
import shutil
from typing import Any

import faiss
import numpy as np
import tensorstore

from tttnn.corpus import jsonl
from tttnn.datastore import index as index_lib
from tttnn.datastore import store as store_lib

Embed = Callable[[list[str]], np.ndarray]
Progress = Callable[[int, int], None]

_REQUEST = 'building.json'
_LOCK = 'building.lock'
_TRAINED = 'index/trained.faiss'
_TRAIN_ROWS_A_LIST = 64
_MAX_DISTANCE_ERROR = 1e-3


def build(
  store_dir: str | os.PathLike,
  corpus_paths: Sequence[str],
  embed: Embed,
  *,
  dim: int,
  fingerprint: str,
  index: str = 'Flat',
  dtype: str = 'float32',
  block: int = 1024,
  min_recall: float = 0.95,
  seed: int = 0,
  threads: int = 0,
  progress: Progress = lambda done, total: None,
) -> store_lib.Store:
  """Builds a store, or finishes one, or opens the finished one.

  Args:
    store_dir: made if missing; only one process at a time builds there.
    corpus_paths: JSONL files, in id order.
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
    progress: called with the documents embedded so far and all of them.

  Raises:
    ValueError: arguments that differ from those of the store that is there; a
      broken line of the corpus, by file and line; an empty corpus; embeddings
      of another shape or beyond the range of `dtype`; an index that faiss
      cannot make, or that fails the self-check.
  """
  request = _request(
    store_dir, corpus_paths, dim, fingerprint, index, dtype, block, seed
  )
  directory = pathlib.Path(os.path.realpath(store_dir))
  if not _finished(directory, request, min_recall):
    with _lock(directory):
      if not _finished(directory, request, min_recall):
        _begin(directory, request)
        _build(directory, request, embed, min_recall, threads, progress)
  for name in (_TRAINED, _REQUEST, _LOCK):
    if (directory / name).exists():
      (directory / name).unlink(missing_ok=True)
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
) -> bool:
  """Whether `build` with these arguments would return without embedding.

  Raises:
    ValueError: a finished store of other arguments is there.
  """
  request = _request(
    store_dir, corpus_paths, dim, fingerprint, index, dtype, block, seed
  )
  directory = pathlib.Path(os.path.realpath(store_dir))
  return _finished(directory, request, min_recall)


def _request(
  store_dir, corpus_paths, dim, fingerprint, index, dtype, block, seed
) -> dict[str, Any]:
  """The arguments that decide a store's bytes, under the manifest's names."""
  if dtype not in ('float32', 'float16'):
    raise ValueError(f"dtype {dtype!r} is neither 'float32' nor 'float16'")
  if dim < 1 or block < 1:
    raise ValueError(f'dim {dim} and block {block} must be positive')
  index_lib.create(dim, index)
  directory = os.path.realpath(store_dir)
  shards = []
  for path in corpus_paths:
    # The file may be a link, whose own name is what the user knows.
    parent, name = os.path.split(os.path.abspath(path))
    path = os.path.join(os.path.realpath(parent), name)
    shards.append(
      {
        'path': os.path.relpath(path, directory),
        'bytes': os.path.getsize(path),
      }
    )
  return {
    'version': store_lib.VERSION,
    'embedder': fingerprint,
    'dim': dim,
    'metric': 'l2',
    'dtype': dtype,
    'block': block,
    'index': index,
    'seed': seed,
    'shards': shards,
  }


def _finished(directory, request, min_recall: float) -> bool:
  path = directory / store_lib.MANIFEST
  if not path.exists():
    return False
  manifest = store_lib.read_json(path)
  found = {key: manifest.get(key) for key in request}
  found['shards'] = [
    {key: shard[key] for key in ('path', 'bytes')}
    for shard in manifest['shards']
  ]
  _compare(path, found, request)
  _check_recall(path, manifest['self_check'], min_recall)
  return True


def _compare(path, found: dict[str, Any], request: dict[str, Any]) -> None:
  different = [
    f'{key} is {found.get(key)!r} there, {request[key]!r} now'
    for key in request
    if found.get(key) != request[key]
  ]
  if different:
    raise ValueError(
      f'{path} is of another build: {"; ".join(different)}. Name another store '
      'directory, or delete this one'
    )


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other builders out; the kernel lets go when this process dies."""
  directory.mkdir(parents=True, exist_ok=True)
  ours = {_LOCK, _REQUEST + '.tmp'}
  strange = {path.name for path in directory.iterdir()} - ours
  if strange and not (directory / _REQUEST).exists():
    raise ValueError(
      f'{directory} holds {sorted(strange)[0]} but no store, finished or begun'
    )
  with open(directory / _LOCK, 'wb') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise ValueError(f'another process is building {directory}') from e
    yield


def _begin(directory: pathlib.Path, request: dict[str, Any]) -> None:
  """Notes what is being built; a begun build may change only its index."""
  path = directory / _REQUEST
  if path.exists():
    begun = store_lib.read_json(path)
    _compare(path, begun | {k: request[k] for k in ('index', 'seed')}, request)
    if begun == request:
      return
    if (directory / 'index').exists():
      shutil.rmtree(directory / 'index')
  _write(path, store_lib.to_json(request))


def _build(directory, request, embed, min_recall, threads, progress) -> None:
  for name in ('offsets', 'vectors', 'index'):
    (directory / name).mkdir(exist_ok=True)
  store = _scan(directory, request)
  _embed(store, embed, progress)
  store = _with_shards(
    store,
    [
      dataclasses.replace(shard, left_out=_left_out(store.vectors(i)))
      for i, shard in enumerate(store.manifest.shards)
    ],
  )
  if not store.manifest.searchable:
    raise ValueError(
      f'not one of {store.manifest.rows} embeddings is finite: {directory}'
    )
  store = _index(store, threads)
  seed = store.manifest.seed
  found = index_lib.self_check(store, threads=threads, seed=seed)
  _check_recall(directory, found, min_recall)
  manifest = dataclasses.replace(store.manifest, self_check=found)
  _write(directory / store_lib.MANIFEST, manifest.to_json())


def _scan(directory: pathlib.Path, request: dict[str, Any]) -> store_lib.Store:
  """Finds the lines of every shard."""
  shards = []
  lines = []
  for i, fields in enumerate(request['shards']):
    path = os.path.normpath(directory / fields['path'])
    offsets_path = store_lib.offsets_path(directory, i)
    if not offsets_path.exists():
      data = io.BytesIO()
      np.save(data, jsonl.scan(path), allow_pickle=False)
      _write(offsets_path, data.getvalue())
    lines.append(jsonl.Shard(path, store_lib.load_offsets(directory, i)))
    shards.append(
      store_lib.Shard(**fields, rows=len(lines[-1]), left_out=(), index_bytes=0)
    )
  manifest = store_lib.Manifest(
    **request | {'shards': tuple(shards)}, self_check={}
  )
  return store_lib.Store(directory, manifest, jsonl.Corpus(lines))


def _embed(store, embed: Embed, progress: Progress) -> None:
  """Writes the chunks of vectors that are not there yet."""
  done = 0
  for i, lines in enumerate(store.corpus.shards):
    vectors = store.vectors(i)
    array = _open_array(vectors)
    for begin in range(0, len(lines), vectors.block):
      end = min(begin + vectors.block, len(lines))
      if not vectors.chunk_path(begin // vectors.block).exists():
        texts = [lines.text(row) or ' ' for row in range(begin, end)]
        where = f'{lines.path}:{begin + 1}-{end}'
        block_BxD = _embed_block(embed, texts, store.manifest, where)
        array[begin:end].write(block_BxD).result()
      progress(done + end, len(store.corpus))
    done += len(lines)


def _open_array(vectors: store_lib.Vectors) -> tensorstore.TensorStore:
  chunk_shape = [vectors.block, vectors.dim]
  spec = {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': f'{vectors.path}/'},
    'metadata': {
      'shape': [vectors.rows, vectors.dim],
      'data_type': vectors.dtype,
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': chunk_shape},
      },
      'codecs': [{'name': 'bytes', 'configuration': {'endian': 'little'}}],
    },
    # A chunk of zeros is a file as any other: files say what is done.
    'store_data_equal_to_fill_value': True,
  }
  return tensorstore.open(spec, open=True, create=True).result()


def _embed_block(embed, texts, manifest, where: str) -> np.ndarray:
  block_BxD = np.asarray(embed(texts))
  expected = (len(texts), manifest.dim)
  if block_BxD.shape != expected or block_BxD.dtype != np.float32:
    raise ValueError(
      f'{where}: the embedder gave {block_BxD.dtype} {list(block_BxD.shape)}, '
      f'not float32 {list(expected)}'
    )
  largest = np.abs(block_BxD[np.isfinite(block_BxD)]).max(initial=0)
  if largest > np.finfo(manifest.dtype).max:
    raise ValueError(
      f'{where}: {largest} in an embedding, but {manifest.dtype} ends at '
      f'{np.finfo(manifest.dtype).max}'
    )
  with np.errstate(invalid='ignore'):
    return block_BxD.astype(manifest.dtype)


def _left_out(vectors: store_lib.Vectors) -> tuple[int, ...]:
  return tuple(
    int(begin + row)
    for begin, block_BxD in vectors.blocks()
    for row in np.flatnonzero(~np.isfinite(block_BxD).all(axis=1))
  )


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


def _write(path: pathlib.Path, data: bytes) -> None:
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_bytes(data)
  os.replace(temporary, path)
