"""Intervals of tables against a plain loop over draws."""

import math
import time

import numpy as np
import pytest

from tttnn.scoring import bootstrap
from tttnn.scoring import faithful
from tttnn.scoring import intervals
from tttnn.scoring import metrics


def rows_of(tasks, number, seed=0):
  rng = np.random.default_rng(seed)
  rows = []
  for i in range(number):
    num_bytes = int(rng.integers(100, 5000))
    before = rng.uniform(0.8, 2.0)
    after = before * rng.uniform(0.7, 1.02)
    rows.append(
      {
        'doc_id': i,
        'task': tasks[i % len(tasks)],
        'num_bytes': num_bytes,
        'num_words': num_bytes // 6,
        'at': [0, 5],
        'log_likelihood': [
          -bits * num_bytes * math.log(2) for bits in (before, after)
        ],
      }
    )
  return rows


def loop(rows, draw_rows, resamples):
  """Quantiles of before, after and change, a document at a time."""
  found = []
  for _ in range(resamples):
    nats, size = [0.0, 0.0], 0
    for place in draw_rows(len(rows)):
      size += rows[place]['num_bytes']
      for n in (0, 1):
        nats[n] += rows[place]['log_likelihood'][n]
    before, after = (-n / (size * math.log(2)) for n in nats)
    found.append((before, after, after / before - 1))
  return np.quantile(found, [0.1, 0.9], axis=0).T


def test_the_same_draws_give_what_a_loop_gives():
  rows = rows_of(['x'], 40)
  table = metrics.aggregate(rows)
  got = intervals.of_table(rows, table, resamples=200)['x']
  rng = np.random.default_rng([0, 0])
  expected = loop(rows, lambda n: rng.integers(n, size=n), 200)
  np.testing.assert_allclose(
    [got.before, got.after, got.change], expected, rtol=1e-9
  )


def test_every_line_has_an_interval_that_holds_its_value():
  rows = rows_of(sorted(metrics.PILE_WEIGHTS), 220)
  table = metrics.aggregate(rows)
  found = intervals.of_table(rows, table)
  assert found.keys() == {name for name, _ in table.lines()}
  for name in ('all', 'pile_all'):
    score = dict(table.lines())[name].last
    low, high = found[name].after
    assert low < score.bits_per_byte < high
    low, high = found[name].change
    assert low < score.change < high


def test_pile_all_as_published_is_the_mean_of_quantiles_and_wider():
  rows = rows_of(sorted(metrics.PILE_WEIGHTS), 220)
  table = faithful.aggregate(rows)
  clean = intervals.of_table(rows, table)
  theirs = intervals.of_table(rows, table, as_published=True)
  expected = sum(
    weight / 100 * np.array(theirs[task].after)
    for task, weight in metrics.PILE_WEIGHTS.items()
  )
  assert theirs['pile_all'].after == pytest.approx(expected)
  width = {
    name: np.ptp(found['pile_all'].after)
    for name, found in (('clean', clean), ('theirs', theirs))
  }
  assert width['theirs'] > 1.5 * width['clean']


def test_a_thousand_draws_of_50000_documents_are_quick():
  rng = np.random.default_rng(0)
  nats_Bx2 = -rng.random((50_000, 2)) * 1000
  bytes_B = rng.integers(1, 9999, 50_000)
  start = time.process_time()
  bootstrap.bits_per_byte(nats_Bx2, bytes_B, [(1.0, np.arange(50_000))])
  assert time.process_time() - start < 5
