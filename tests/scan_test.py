from concurrent import futures

import numpy as np
import pytest

from tttnn.datastore import scan as scan_lib


def make(rng, rows, dim=5):
  return rng.normal(size=(rows, dim)).astype(np.float32)


def make_scan(vectors, squares=True, threads=1):
  pool = futures.ThreadPoolExecutor(threads)
  return scan_lib.Scan(vectors, squares, threads, pool)


def expected(vectors, queries, squares):
  products = queries.astype(np.float64) @ vectors.astype(np.float64).T
  halves = np.square(vectors.astype(np.float64)).sum(axis=1) / 2
  return halves - products if squares else -products


@pytest.mark.parametrize('squares', [True, False])
@pytest.mark.parametrize('rows, queries', [(1, 1), (70, 3), (3000, 300)])
@pytest.mark.parametrize('threads', [1, 3])
def test_the_lowest_scores_of_many_blocks(
  monkeypatch, squares, rows, queries, threads
):
  monkeypatch.setattr(scan_lib, '_MOST_ROWS', 64)
  rng = np.random.default_rng(0)
  vectors, asked = make(rng, rows), make(rng, queries)
  scan = make_scan(vectors, squares, threads)
  scores = expected(vectors, asked, squares)
  for width in (1, min(17, rows), rows):
    found_scores, found_rows = scan.nearest(asked, width)
    for q in range(queries):
      best = set(np.argsort(scores[q])[:width].tolist())
      assert set(found_rows[q].tolist()) == best
    np.testing.assert_allclose(
      found_scores, np.take_along_axis(scores, found_rows, 1), atol=1e-5
    )


def test_rows_in_the_worst_order_do_not_pile_up(monkeypatch):
  monkeypatch.setattr(scan_lib, '_MOST_ROWS', 16)
  monkeypatch.setattr(scan_lib, '_LEAST_HITS', 32)
  vectors = np.linspace(1, 0, 1000, dtype=np.float32)[:, None]
  scan = make_scan(vectors)
  _, rows = scan.nearest(np.zeros((1, 1), np.float32), 3)
  assert sorted(rows[0].tolist()) == [997, 998, 999]


def test_rows_that_are_not_finite_are_never_found():
  vectors = make(np.random.default_rng(0), 20)
  vectors[3, 1], vectors[7, 0] = np.nan, np.inf
  scan = make_scan(vectors)
  scores, rows = scan.nearest(vectors[:2], 20)
  assert not {3, 7} & set(rows.ravel().tolist())
  assert (np.isinf(scores) == (rows < 0)).all() and (rows < 0).sum() == 4
  assert not {3, 7} & set(scan.within(vectors[0], 1e9).tolist())


def test_all_rows_within_a_limit():
  rng = np.random.default_rng(0)
  vectors, query = make(rng, 100), make(rng, 1)
  scan = make_scan(vectors)
  scores = expected(vectors, query, True)[0]
  limit = float(np.sort(scores)[30:32].mean())
  found = scan.within(query[0], limit)
  assert found.tolist() == np.flatnonzero(scores <= limit).tolist()
