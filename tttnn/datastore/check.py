"""Whether an index finds what is near: searches against brute force."""

from collections.abc import Mapping

import numpy as np

from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib

MAX_DISTANCE_ERROR = 1e-3


def sample_rows(
  store: store_lib.Store, count: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """At most `count` different searchable rows, of each shard, ascending."""
  shards = store.manifest.shards
  total = store.manifest.searchable
  picked = np.sort(rng.choice(total, min(count, total), replace=False))
  ends = np.cumsum([shard.searchable for shard in shards])
  parts = np.split(picked, np.searchsorted(picked, ends[:-1]))
  begins = np.concatenate([[0], ends[:-1]])
  return [
    shard.searchable_row(part - begin)
    for shard, part, begin in zip(shards, parts, begins, strict=True)
  ]


def sample(
  store: store_lib.Store, count: int, rng: np.random.Generator
) -> np.ndarray:
  """At most `count` different searchable vectors, in id order, as float32."""
  vectors = [
    store.vectors(i).gather(rows)
    for i, rows in enumerate(sample_rows(store, count, rng))
    if len(rows)
  ]
  return np.concatenate(vectors).astype(np.float32)


def self_check(
  store: store_lib.Store,
  *,
  threads: int,
  queries: int = 100,
  k: int = 10,
  seed: int = 0,
) -> Mapping[str, float]:
  """Compares searches for stored vectors with brute force over the vectors.

  Returns:
    'queries' and 'k' as used; 'recall', the part of the answers that are as
    near as the true k-th neighbour; 'recall_at_1', the part of first answers
    that are as near as the nearest; 'max_distance_error', the largest
    difference between the distance in an answer and that between the query and
    the stored vector of the answer's id (not small where files are mixed up or
    ids are shifted), over |q| + |q - x| for L2 and |q| |x| for products.
  """
  metric = store.manifest.metric
  queries_QxD = sample(store, queries, np.random.default_rng(seed))
  k = min(k, store.manifest.searchable)
  engine = engine_lib.Engine(store, threads=threads)
  distances_Qxk, ids_Qxk = engine.search(queries_QxD, k)
  queries_QxD = queries_QxD.astype(np.float64)
  norms_Q = np.linalg.norm(queries_QxD, axis=1)
  actual_Qxk = np.empty((len(queries_QxD), k))
  scale_Qxk = np.empty(actual_Qxk.shape)
  nearest_Qxk = np.full(actual_Qxk.shape, np.inf)
  first_id, largest = 0, 0.0
  for i, shard in enumerate(store.manifest.shards):
    vectors = store.vectors(i)
    here_Qxk = (first_id <= ids_Qxk) & (ids_Qxk < first_id + shard.rows)
    if here_Qxk.any():
      answers = vectors.gather(ids_Qxk[here_Qxk] - first_id).astype(np.float64)
      asked = np.nonzero(here_Qxk)[0]
      if metric == 'l2':
        apart = np.linalg.norm(queries_QxD[asked] - answers, axis=1)
        scale = norms_Q[asked] + apart
      else:
        apart = (metric == 'cosine') - (queries_QxD[asked] * answers).sum(1)
        scale = norms_Q[asked] * np.linalg.norm(answers, axis=1)
      actual_Qxk[here_Qxk], scale_Qxk[here_Qxk] = apart, scale
    for _, block_BxD in vectors.blocks():
      block_BxD = block_BxD[np.isfinite(block_BxD).all(axis=1)]
      block_BxD = block_BxD.astype(np.float64)
      largest = max(largest, np.linalg.norm(block_BxD, axis=1).max(initial=0))
      near_QxB = _pairwise(metric, queries_QxD, block_BxD)
      nearest_Qxk = np.concatenate([nearest_Qxk, near_QxB], axis=1)
      nearest_Qxk = np.partition(nearest_Qxk, k - 1, axis=1)[:, :k]
    first_id += shard.rows
  slack_Q = 1e-6 * norms_Q * (1 if metric == 'l2' else largest)
  reached_Qxk = (
    actual_Qxk <= nearest_Qxk.max(axis=1)[:, None] + slack_Q[:, None]
  )
  error_Qxk = np.abs(distances_Qxk - actual_Qxk)
  return {
    'queries': len(queries_QxD),
    'k': k,
    'recall': float(np.mean(reached_Qxk)),
    'recall_at_1': float(
      np.mean(actual_Qxk[:, 0] <= nearest_Qxk.min(axis=1) + slack_Q)
    ),
    'max_distance_error': float(
      np.max(error_Qxk / (scale_Qxk + np.finfo(np.float64).tiny))
    ),
  }


def require(where, found: Mapping[str, float], min_recall: float) -> None:
  """Raises `ValueError`, with the numbers, if a check has found too little."""
  error = found['max_distance_error']
  if found['recall'] < min_recall or not error <= MAX_DISTANCE_ERROR:
    raise ValueError(
      f'{where}: the index fails its self-check: recall@{found["k"]} '
      f'{found["recall"]:.4f} (at least {min_recall}), largest distance error '
      f'{error:.2g} (at most {MAX_DISTANCE_ERROR})'
    )


def _pairwise(
  metric: str, queries_QxD: np.ndarray, vectors_BxD: np.ndarray
) -> np.ndarray:
  """Distances [Q, B] by a product; float64 in and out."""
  products_QxB = queries_QxD @ vectors_BxD.T
  if metric != 'l2':
    return (metric == 'cosine') - products_QxB
  squares_QxB = (
    np.square(queries_QxD).sum(axis=1)[:, None]
    + np.square(vectors_BxD).sum(axis=1)
    - 2 * products_QxB
  )
  return np.sqrt(np.maximum(squares_QxB, 0))
