"""The original's rules of aggregation, on rows that can be reckoned by hand."""

import math

import pytest

from tttnn.scoring import faithful
from tttnn.scoring import metrics


def row(doc_id, task, bits, num_bytes=100):
  """Scored at 0, 1, 2, ... with so many bits per byte."""
  return {
    'doc_id': doc_id,
    'task': task,
    'num_bytes': num_bytes,
    'num_words': 10,
    'at': list(range(len(bits))),
    'log_likelihood': [-b * num_bytes * math.log(2) for b in bits],
  }


def test_documents_with_another_number_of_scores_are_left_out():
  rows = [
    row(0, 'a', [2.0, 1.0]),
    row(1, 'a', [9.0]),
    row(2, 'a', [4.0, 3.0], 300),
    row(3, 'b', [5.0]),
  ]
  kept = faithful.kept(rows)
  assert [r['doc_id'] for r in kept] == [0, 2, 3]
  table = faithful.aggregate(kept)
  assert table.tasks['a'].last.bits_per_byte == pytest.approx(10 / 4)
  assert metrics.aggregate(rows).tasks['a'].last.documents == 3
  assert table.pile_all is None


def test_a_median_between_two_numbers_keeps_none():
  rows = [row(0, 'a', [2.0, 1.0]), row(1, 'a', [2.0]), row(2, 'b', [1.0])]
  assert [r['doc_id'] for r in faithful.kept(rows)] == [2]
  with pytest.raises(ValueError, match=r"none: \{'a': 1.5\}"):
    faithful.kept(rows[:2])


def test_weights_of_tasks_that_do_not_count_are_not_made_up_for():
  rows = [
    row(0, 'ArXiv', [2.0, 1.0]),
    row(1, 'Github', [4.0, 1.5]),
    row(2, 'Books3', [3.0]),  # One score, where the median task has two.
  ]
  assert metrics.aggregate(rows).pile_all is None
  total = faithful.aggregate(rows).pile_all
  weights = metrics.PILE_WEIGHTS
  expected = (weights['ArXiv'] * 1.0 + weights['Github'] * 1.5) / 100
  assert total.last.bits_per_byte == pytest.approx(expected)
  assert list(total.by_count) == [0, 1]
