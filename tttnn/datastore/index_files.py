"""Index files of a store: trained once, filled a shard at a time, or adopted.

Indexes with the same codebooks can be merged later, so one training serves all
shards.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Protocol

import faiss
import numpy as np

from tttnn.datastore import check
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import index as index_lib
from tttnn.datastore import shards as shards_lib
from tttnn.datastore import store as store_lib

_TRAIN_ROWS_A_LIST = 64
_CHECKED_TEXTS = 16  # Of an index that is adopted.
_BLOCK_ROWS = 1 << 14
_UNIT = 1e-3  # How far from 1 the length of a vector may be for cosine.


class Filler(Protocol):
  """Trains an index, and fills it with blocks of consecutive vectors."""

  def train(self, index: faiss.Index, sample_NxD: np.ndarray) -> None: ...

  def fill(self, index: faiss.Index, blocks: Iterable[np.ndarray]) -> None: ...


class OnHost:
  """By faiss, on this host."""

  def train(self, index: faiss.Index, sample_NxD: np.ndarray) -> None:
    index.train(sample_NxD)

  def fill(self, index: faiss.Index, blocks: Iterable[np.ndarray]) -> None:
    for block_BxD in blocks:
      index.add(block_BxD)


ON_HOST = OnHost()


def trained_path(directory: pathlib.Path, spec: str) -> pathlib.Path:
  """Of the empty index that all shards of an unfinished one begin with."""
  return store_lib.index_dir(directory, spec) / 'trained.faiss'


def write(
  store: store_lib.Store, spec: str, threads: int, filler: Filler
) -> store_lib.Store:
  """Writes the files of an index that are not there yet.

  Returns:
    The store with that index, which is not checked yet.

  Raises:
    ValueError: faiss cannot train it on so few vectors.
  """
  index_lib.set_threads(threads)
  directory = store_lib.index_dir(store.directory, spec)
  directory.mkdir(parents=True, exist_ok=True)
  trained = trained_path(store.directory, spec)
  names, sizes = [], []
  for i, shard in enumerate(store.manifest.shards):
    path = directory / f'{i:02}.faiss'
    if shard.searchable and not path.exists():
      if not trained.exists():
        _write(trained, _train(store, spec, filler))
      index = faiss.read_index(str(trained))
      filler.fill(index, _finite_blocks(store.vectors(i)))
      if faiss.try_extract_index_ivf(index):
        index_lib.verify(index, np.arange(shard.searchable))
      _write(path, index)
    found = path if shard.searchable else None
    names.append(os.path.relpath(found, store.directory) if found else '')
    sizes.append(found.stat().st_size if found else 0)
  index = store_lib.Index(spec, tuple(names), tuple(sizes), {})
  return dataclasses.replace(store, index=index)


def adopt(store: store_lib.Store, paths: Sequence[str]) -> store_lib.Store:
  """The store with Flat files that stay where they are as its index."""
  names = tuple(
    os.path.relpath(os.path.realpath(path), store.directory)
    if shard.searchable
    else ''
    for path, shard in zip(paths, store.manifest.shards, strict=True)
  )
  sizes = tuple(
    os.path.getsize(path) if name else 0
    for path, name in zip(paths, names, strict=True)
  )
  directory = store_lib.index_dir(store.directory, store_lib.FLAT)
  directory.mkdir(parents=True, exist_ok=True)
  index = store_lib.Index(store_lib.FLAT, names, sizes, {})
  return dataclasses.replace(store, index=index)


def not_finite(path: str, rows: int, dim: int, metric: str) -> tuple[int, ...]:
  """The rows of a Flat file whose vectors are not finite.

  Raises:
    ValueError: it is no Flat file, or does not hold that many vectors of that
      width under that metric, of length 1 for cosine.
  """
  index = index_lib.load(path, store_lib.FLAT)
  if not isinstance(index, faiss.IndexFlat):
    raise ValueError(
      f'{path} is a {type(index).__name__}: only Flat files can be imported, '
      'as others do not hold the vectors'
    )
  wanted = rows, dim, index_lib.METRICS[metric]
  found = index.ntotal, index.d, index.metric_type
  if found != wanted:
    raise ValueError(
      f'{path} holds {found[0]} vectors of dim {found[1]}, faiss metric '
      f'{found[2]}; its corpus file has {rows} lines, the embedder dim {dim}, '
      f'and {metric} is {wanted[2]}'
    )
  flat_NxD = index_lib.flat_vectors(index)
  found = []
  for begin in range(0, rows, _BLOCK_ROWS):
    block_BxD = flat_NxD[begin : begin + _BLOCK_ROWS]
    finite_B = np.isfinite(block_BxD).all(axis=1)
    found += (begin + np.flatnonzero(~finite_B)).tolist()
    if metric == 'cosine':
      norms_B = np.linalg.norm(block_BxD, axis=1)
      wrong = np.flatnonzero(finite_B & (abs(norms_B - 1) > _UNIT))
      if wrong.size:
        raise ValueError(
          f'{path}: vector {begin + wrong[0]} has length '
          f'{norms_B[wrong[0]]:.4g}; for store.metric=cosine all have length 1'
        )
  return tuple(found)


def check_texts(
  store: store_lib.Store, embed: shards_lib.Embed, threads: int
) -> None:
  """Embeds some texts of the corpus, which must find themselves.

  Raises:
    ValueError: one finds another text before its own.
  """
  rng = np.random.default_rng(store.manifest.seed)
  rows = check.sample_rows(store, _CHECKED_TEXTS, rng)
  places = [(i, int(row)) for i, some in enumerate(rows) for row in some]
  texts = [store.corpus.shards[i].text(row) for i, row in places]
  engine = engine_lib.Engine(store, threads=threads)
  queries_QxD = next(iter(embed([[text or ' ' for text in texts]])))
  distances_Qxk, ids_Qxk = engine.search(queries_QxD, 1)
  for (i, row), text, (distance,), (id_,) in zip(
    places, texts, distances_Qxk, ids_Qxk, strict=True
  ):
    if store.corpus.text(int(id_)) != text:
      raise ValueError(
        f'{store.index_path(i)}: the text of line {row + 1} finds document '
        f'{id_}, at distance {distance:.4g}, before itself: the index is of '
        'other texts, or of another embedder'
      )


def _finite_blocks(vectors) -> Iterator[np.ndarray]:
  for _, block_BxD in vectors.blocks():
    finite_B = np.isfinite(block_BxD).all(axis=1)
    yield block_BxD[finite_B].astype(np.float32)


def _train(store: store_lib.Store, spec: str, filler: Filler) -> faiss.Index:
  manifest = store.manifest
  # Without parameters of searches, so that files do not depend on them.
  factory = spec.partition(';')[0]
  index = index_lib.create(manifest.dim, factory, manifest.metric)
  if index.is_trained:
    return index
  ivf = faiss.try_extract_index_ivf(index)
  lists = max(ivf.nlist if ivf else 0, 1024)
  rng = np.random.default_rng(manifest.seed)
  sample_NxD = check.sample(store, _TRAIN_ROWS_A_LIST * lists, rng)
  try:
    filler.train(index, sample_NxD)
  except RuntimeError as e:
    raise ValueError(
      f'index {spec!r} cannot be trained on {len(sample_NxD)} vectors: {e}'
    ) from e
  return index


def _write(path: pathlib.Path, index: faiss.Index) -> None:
  temporary = path.with_name(path.name + '.tmp')
  faiss.write_index(index, str(temporary))
  os.replace(temporary, path)
