"""Aggregation against hand-computed sums and published averages."""

import json
import math

import numpy as np
import pytest

from tttnn.scoring import metrics

# GPT-2's bits per byte at 0 and 50 neighbours in the results that Hardt & Sun
# released; their weighted averages are 1.20788 and 0.99222.
PUBLISHED = {
  'ArXiv': (1.31690, 1.11321),
  'BookCorpus2': (1.06786, 1.08391),
  'Books3': (1.17613, 1.12981),
  'DM Mathematics': (1.54656, 1.07634),
  'Enron Emails': (1.51166, 0.90845),
  'EuroParl': (2.35023, 1.38054),
  'FreeLaw': (1.04005, 0.86058),
  'Github': (1.91839, 0.69068),
  'Gutenberg (PG-19)': (1.40448, 1.26811),
  'HackerNews': (1.42619, 1.23294),
  'NIH ExPorter': (0.89561, 0.80632),
  'OpenSubtitles': (1.26853, 1.03923),
  'OpenWebText2': (1.10889, 1.04060),
  'PhilPapers': (1.41063, 1.22592),
  'Pile-CC': (1.08310, 1.02183),
  'PubMed Abstracts': (0.96017, 0.87387),
  'PubMed Central': (1.04181, 0.89324),
  'StackExchange': (1.29942, 1.04129),
  'Ubuntu IRC': (1.39598, 1.22253),
  'USPTO Backgrounds': (0.86468, 0.73718),
  'Wikipedia (en)': (1.12658, 0.95630),
  'YoutubeSubtitles': (1.79846, 1.57631),
}


def _row(log_likelihood, num_bytes, *, at=(0,), task='A', num_words=1):
  return {
    'doc_id': 0,
    'task': task,
    'num_bytes': num_bytes,
    'num_words': num_words,
    'at': list(at),
    'log_likelihood': list(log_likelihood),
  }


def _published_rows():
  return [
    _row(
      [-bits * 1000 * math.log(2) for bits in pair], 1000, at=(0, 50), task=task
    )
    for task, pair in PUBLISHED.items()
  ]


def test_averages_are_micro():
  score = metrics.aggregate(
    [_row([-20.0], 10, num_words=3), _row([-60.0], 50, num_words=5)]
  ).all.by_count[0]
  assert score.bits_per_byte == pytest.approx(1.9236, abs=5e-5)  # Not 2.3083.
  assert score.byte_perplexity == pytest.approx(math.exp(80 / 60), rel=1e-12)
  assert score.word_perplexity == pytest.approx(math.exp(10), rel=1e-12)
  assert score.bits_per_byte == pytest.approx(
    math.log2(score.byte_perplexity), rel=1e-12
  )


def test_documents_count_only_where_they_were_scored():
  full = _row([-30.0, -20.0, -10.0], 10, at=(0, 1, 5))
  short = _row([-90.0, -80.0], 30, at=(0, 1))
  curve = metrics.aggregate([full, short]).tasks['A']
  assert [s.documents for s in curve.by_count.values()] == [2, 2, 1]
  # The base is that of the same document, not that of both.
  at_5 = curve.by_count[5]
  assert at_5.base_bits_per_byte == pytest.approx(3 / math.log(2))
  assert at_5.change == pytest.approx(-2 / 3)
  # Each document at its own last count: none is lost.
  assert curve.last_counts == (1, 5)
  assert curve.last.documents == 2
  assert curve.last.change == pytest.approx((10 + 80) / (30 + 90) - 1)


def test_matches_a_plain_loop_whatever_the_order():
  rng = np.random.default_rng(0)
  rows = [
    _row(
      rng.uniform(-1e4, -1, 3).tolist(),
      int(rng.integers(1, 5000)),
      at=(0, 2, 9),
      task=str(rng.choice(['x', 'y', 'z'])),
      num_words=int(rng.integers(1, 800)),
    )
    for _ in range(60)
  ]
  table = metrics.aggregate(rows)
  for task in ('x', 'y', 'z'):
    for i, count in enumerate((0, 2, 9)):
      nats = num_bytes = num_words = 0
      for row in rows:
        if row['task'] == task:
          nats -= row['log_likelihood'][i]
          num_bytes += row['num_bytes']
          num_words += row['num_words']
      score = table.tasks[task].by_count[count]
      assert score.bits_per_byte == pytest.approx(
        nats / num_bytes / math.log(2), rel=1e-12
      )
      assert score.word_perplexity == pytest.approx(
        math.exp(nats / num_words), rel=1e-12
      )
  assert metrics.aggregate(rows[::-1]) == table


def test_undefined_values_are_nan_and_written_null():
  table = metrics.aggregate(
    [
      _row([0.0], 0, task='empty'),
      _row([None], 9, task='lost'),
      _row([-1e6], 9, task='huge'),
      _row([-1.0, -0.5], 9, at=(1, 2), task='no base'),
    ]
  )
  for task in ('empty', 'lost'):
    assert math.isnan(table.tasks[task].last.bits_per_byte)
    assert math.isnan(table.tasks[task].last.change)
  assert table.tasks['huge'].last.word_perplexity == math.inf
  assert math.isnan(table.tasks['no base'].last.base_bits_per_byte)
  assert math.isnan(table.all.last.bits_per_byte)  # A lost sum stays lost.

  written = json.loads(json.dumps(metrics.to_json(table), allow_nan=False))
  assert written['tasks']['empty']['last']['bits_per_byte'] is None
  assert written['tasks']['huge']['last']['word_perplexity'] is None
  no_base = written['tasks']['no base']
  assert no_base['last']['at'] == [2, 2]
  assert [s['at'] for s in no_base['by_count']] == [1, 2]
  assert no_base['by_count'][1]['bits_per_byte'] == pytest.approx(
    0.5 / 9 / math.log(2)
  )
  assert written['pile_all'] is None


def test_an_empty_document_changes_nothing():
  rows = [_row([-20.0], 10)]
  alone = metrics.aggregate(rows).all.last
  both = metrics.aggregate([*rows, _row([0.0], 0)]).all.last
  assert both.bits_per_byte == alone.bits_per_byte


def test_pile_all_is_the_published_average():
  assert sum(metrics.PILE_WEIGHTS.values()) == pytest.approx(100)
  pile_all = metrics.aggregate(_published_rows()).pile_all
  assert pile_all.by_count[0].bits_per_byte == pytest.approx(1.20788, abs=1e-5)
  assert pile_all.by_count[50].bits_per_byte == pytest.approx(0.99222, abs=1e-5)
  assert pile_all.last == pile_all.by_count[50]
  assert pile_all.last.base_bits_per_byte == pile_all.by_count[0].bits_per_byte
  assert math.isnan(pile_all.last.word_perplexity)


def test_pile_all_wants_exactly_the_piles_domains_and_shared_counts():
  rows = _published_rows()
  assert metrics.aggregate(rows[1:]).pile_all is None
  assert metrics.aggregate([*rows, _row([-1.0], 1)]).pile_all is None
  rows[3] = _row([-9.0, -7.0], 9, at=(0, 20), task=rows[3]['task'])
  pile_all = metrics.aggregate(rows).pile_all
  assert list(pile_all.by_count) == [0]
  assert pile_all.last_counts == (20, 50)


def test_lines_leave_out_a_total_of_one():
  assert [n for n, _ in metrics.aggregate([_row([-1.0], 1)]).lines()] == ['A']
  names = [n for n, _ in metrics.aggregate(_published_rows()).lines()]
  assert names == [*sorted(PUBLISHED), 'all', 'pile_all']


def test_bad_rows_are_refused():
  with pytest.raises(ValueError, match='no rows'):
    metrics.aggregate([])
  with pytest.raises(ValueError, match='2 log-likelihoods at 1 neighbour'):
    metrics.aggregate([_row([-1.0, -2.0], 5)])
  with pytest.raises(ValueError, match='0 log-likelihoods at 0'):
    metrics.aggregate([_row([], 5, at=())])
