"""Points, differences and their tables against plain loops and hand counts."""

import math
import statistics

import numpy as np
import pytest

from tttnn.reporting import frontier
from tttnn.scoring import metrics


def _row(doc_id, at=(0, 1, 3), bits=(2.0, 1.8, 1.5), **fields):
  """A document of 100 bytes; seconds that tell what was summed."""
  method = fields.get('method', 'ttt')
  trains = method in ('ttt', 'dynamic_eval')
  return {
    'doc_id': doc_id,
    'task': 'code',
    'method': method,
    'protocol': 'split',
    'num_bytes': 100,
    'num_words': 10,
    'at': list(at),
    'log_likelihood': [-b * 100 * math.log(2) for b in bits],
    'seconds': {'retrieve': 0.5, 'select': 0.25, 'adapt': 99, 'score': 99},
    'adapt_seconds': [10.0**i for i in range(at[-1])] if trains else [],
    'score_seconds': [0.125 * (i + 1) for i in range(len(at))],
  } | fields


def _random(seed, documents=40, gain=0.1, **fields):
  """Rows whose documents are hard or easy alike in every run."""
  hard = np.random.default_rng(0)
  rng = np.random.default_rng(seed)
  rows = []
  for doc_id in range(documents):
    bits = hard.gamma(9, 0.1)
    after = bits * (1 - gain + 0.05 * rng.normal(size=2))
    rows.append(
      _row(
        doc_id,
        bits=(bits, *after),
        **{'num_bytes': int(hard.integers(50, 5000))} | fields,
      )
    )
    rows[-1]['log_likelihood'] = [
      value * rows[-1]['num_bytes'] / 100
      for value in rows[-1]['log_likelihood']
    ]
  rng.shuffle(rows)
  return rows


def test_points_of_hand_made_rows():
  one, three = frontier.points('x', [_row(1), _row(0, bits=(1.0, 1.0, 0.5))])
  assert (one.count, three.count) == (1, 3)
  assert one.bits_per_byte == pytest.approx(1.4)
  assert three.bits_per_byte == pytest.approx(1.0)
  assert one.base_bits_per_byte == three.base_bits_per_byte
  assert three.base_bits_per_byte == pytest.approx(1.5)
  assert three.change == pytest.approx(1 / 1.5 - 1)
  assert dict(one.seconds) == pytest.approx(
    {'retrieve': 0.5, 'select': 0.25, 'adapt': 1, 'score': 0.25}
  )
  assert dict(three.seconds) == pytest.approx(
    {'retrieve': 0.5, 'select': 0.25, 'adapt': 111, 'score': 0.375}
  )
  assert three.total_seconds == pytest.approx(112.125)
  assert (three.documents, three.reached) == (2, 2)


def test_a_document_with_fewer_neighbours_stays_at_its_last():
  rows = [_row(0), _row(1, (0, 1), (1.0, 0.9)), _row(2, (0,), (3.0,))]
  one, three = frontier.points('x', rows)
  assert [one.reached, three.reached] == [2, 1]
  assert one.documents == three.documents == 3
  assert one.bits_per_byte == pytest.approx((1.8 + 0.9 + 3) / 3)
  assert three.bits_per_byte == pytest.approx((1.5 + 0.9 + 3) / 3)
  assert three.seconds['adapt'] == pytest.approx((111 + 1 + 0) / 3)
  assert three.seconds['score'] == pytest.approx((0.375 + 0.25 + 0.125) / 3)


def test_methods_that_do_not_train():
  (base,) = frontier.points('base', [_row(0, (0,), (2.0,), method='base')])
  assert (base.count, base.change, base.interval) == (0, 0, (0, 0))
  (shown,) = frontier.points(
    'in context', [_row(0, (0, 20), (2.0, 1.9), method='in_context')]
  )
  assert shown.count == 20 and shown.seconds['adapt'] == 0
  assert shown.seconds['score'] == 0.25


def test_intervals_are_those_of_a_plain_loop():
  rows = _random(1)
  found = frontier.points('x', rows, seed=3)
  rows = sorted(rows, key=lambda row: row['doc_id'])
  rng = np.random.default_rng([3, 0])
  changes = []
  for _ in range(1000):
    drawn = [rows[i]['log_likelihood'] for i in rng.integers(40, size=40)]
    base, *after = (sum(values) for values in zip(*drawn, strict=True))
    changes.append([value / base - 1 for value in after])
  for point, values in zip(found, zip(*changes, strict=True), strict=True):
    cuts = statistics.quantiles(values, n=20, method='inclusive')
    assert point.interval == pytest.approx((cuts[0], cuts[-1]), rel=1e-9)
    assert cuts[0] < point.change < cuts[-1]


def test_weights_give_pile_all():
  rows = []
  for number, task in enumerate(metrics.PILE_WEIGHTS):
    for i in range(3):
      bits = 1 + number / 20 + i / 7
      rows.append(
        _row(3 * number + i, bits=(bits, 0.9 * bits + i / 30, bits / 2 + i / 9))
      )
      rows[-1] |= {'task': task, 'num_bytes': 100 + 30 * number}
  wanted = metrics.aggregate(rows).pile_all
  for point in frontier.points('x', rows, metrics.PILE_WEIGHTS):
    score = wanted.by_count[point.count]
    assert point.bits_per_byte == pytest.approx(score.bits_per_byte)
    assert point.base_bits_per_byte == pytest.approx(score.base_bits_per_byte)
    assert point.interval[0] < point.change < point.interval[1]
  with pytest.raises(ValueError, match="weights of .*, documents of .*'code'"):
    frontier.points('x', [_row(0)], metrics.PILE_WEIGHTS)


def test_what_is_not_finite_is_a_dash():
  rows = [_row(0), _row(1)]
  rows[1]['log_likelihood'][2] = None
  one, three = frontier.points('x', rows)
  assert math.isfinite(one.interval[0])
  assert math.isnan(three.bits_per_byte) and math.isnan(three.interval[0])
  assert frontier.table([three])[1][2:5] == ['-', '-', '-']


@pytest.mark.parametrize(
  'row, words',
  [
    (_row(7, (1, 3), (1.0, 1.0)), r"'x': document 7 .* \[1, 3\]"),
    (_row(7, score_seconds=[1.0]), "'x': document 7 has 1 score_seconds"),
    (_row(7, adapt_seconds=[1.0]), '3 score_seconds and 1 adapt_seconds'),
    (
      {k: v for k, v in _row(7).items() if k != 'adapt_seconds'},
      'document 7 has no adapt_seconds',
    ),
  ],
)
def test_rows_that_lack_something_are_named(row, words):
  with pytest.raises(ValueError, match=words):
    frontier.points('x', [_row(1), row])


@pytest.mark.parametrize(
  'rows, words',
  [
    (
      [_row(0, protocol='whole'), _row(1, protocol='whole')],
      "'a' has eval.protocol='split', 'b' has eval.protocol='whole'",
    ),
    (
      [_row(0, stride=64), _row(1, stride=64)],
      "'a' has eval.stride=0, 'b' has eval.stride=64",
    ),
    ([_row(0)], "'b' lacks 1 of the documents of 'a', such as 1"),
    ([_row(0), _row(1), _row('z')], "'a' lacks 1 .* of 'b', such as 'z'"),
    ([_row(1), _row(0, num_bytes=90)], "0: 'a' scored 100 .* 'b' 90"),
    (
      [_row(0), _row(1, bits=(2.1, 1.0, 1.0))],
      "document 1: .* -138.629 in 'a', -145.561 in 'b'",
    ),
    ([_row(0), _row(1, log_likelihood=[None, 0, 0])], "nan in 'b'"),
  ],
)
def test_runs_that_do_not_compare_are_refused(rows, words):
  runs = {'a': [_row(0), _row(1)], 'b': rows}
  with pytest.raises(ValueError, match=words):
    frontier.check(runs)
  with pytest.raises(ValueError, match=words):
    frontier.against('a', runs)


def test_runs_that_compare_pass():
  near = _row(0, bits=(2.0005, 1.0, 1.0))  # Another batch rounds otherwise.
  frontier.check({'a': [_row(0), _row(1)], 'b': [_row(1), near]})
  lost = _row(0, log_likelihood=[None, -1.0, -1.0])
  frontier.check({'a': [lost], 'b': [lost]})


def test_differences_are_those_of_a_plain_loop():
  runs = {'a': _random(1), 'b': _random(2, gain=0.12)}
  found = frontier.against('a', runs, seed=4)
  assert [(d.label, d.count, d.reference_count) for d in found] == [
    ('b', 1, 1),
    ('b', 3, 3),
  ]
  theirs, ours = (
    sorted(rows, key=lambda row: row['doc_id']) for rows in runs.values()
  )

  def difference(chosen, place):
    nats = sum(
      theirs[i]['log_likelihood'][place] - ours[i]['log_likelihood'][place]
      for i in chosen
    )
    return nats / sum(ours[i]['num_bytes'] for i in chosen) / math.log(2)

  rng = np.random.default_rng([4, 0])
  draws = [rng.integers(40, size=40) for _ in range(1000)]
  for place, got in enumerate(found, 1):
    values = [difference(drawn, place) for drawn in draws]
    cuts = statistics.quantiles(values, n=20, method='inclusive')
    assert got.bits_per_byte == pytest.approx(difference(range(40), place))
    assert got.interval == pytest.approx((cuts[0], cuts[-1]), rel=1e-9)
    # Far narrower than the changes' own, since documents are shared.
    point = frontier.points('b', runs['b'])[place - 1]
    own = np.ptp(point.interval) * point.base_bits_per_byte
    assert np.ptp(got.interval) < 2 * own


def test_runs_without_a_count_in_common_are_compared_at_their_last():
  runs = {
    'knn': [_row(0)],
    'base': [_row(0, (0,), (2.0,), method='base')],
    'dynamic': [_row(0, bits=(2.0, 1.9, 1.7), method='dynamic_eval')],
    'other': [_row(0, (0, 1, 2), (2.0, 1.7, 1.6))],
  }
  found = frontier.against('knn', runs)
  assert [
    (d.label, d.count, d.reference_count, round(d.bits_per_byte, 6))
    for d in found
  ] == [
    ('base', 0, 3, 0.5),
    ('dynamic', 3, 3, 0.2),
    ('other', 1, 1, -0.1),
  ]
  with pytest.raises(ValueError, match=r"'sift' among \['base', 'dynamic'"):
    frontier.against('sift', runs)


def test_the_order_of_rows_does_not_matter():
  rows = _random(1)
  back = rows[::-1]
  assert frontier.points('x', rows) == frontier.points('x', back)
  other = _random(2)
  assert frontier.against('a', {'a': rows, 'b': other}) == frontier.against(
    'a', {'a': back, 'b': other}
  )


def _point(label, count, unit='neighbours', reached=84, **fields):
  return frontier.Point(
    **{
      'label': label,
      'count': count,
      'unit': unit,
      'documents': 84,
      'reached': reached,
      'bits_per_byte': 0.75,
      'base_bits_per_byte': 1.0,
      'interval': (-0.3, -0.2),
      'seconds': dict(zip(frontier.STAGES, (0.5, 0, 2, 0.25), strict=True)),
    }
    | fields
  )


def test_the_table_goes_run_by_run():
  points = [_point('b', 5), _point('a', 1, bits_per_byte=1.1), _point('b', 1)]
  head, *lines = frontier.table(points)
  assert ' '.join(head) == (
    'method N bits per byte change 90 % interval retrieve s select s adapt s '
    'score s total s'
  )
  assert [line[:2] for line in lines] == [['b', '1'], ['b', '5'], ['a', '1']]
  assert lines[1] == [
    *('b', '5', '0.7500', '-25.0%', '-30.0% to -20.0%'),
    *('0.500', '0.000', '2.000', '0.250', '2.750'),
  ]
  assert lines[2][3] == '+10.0%'


def test_the_title_says_what_is_counted_and_who_fell_short():
  plain = frontier.title([_point('a', 1)])
  assert 'over 84 documents, and their change from 1.0000' in plain
  assert plain.endswith('N counts neighbours.')
  mixed = frontier.title(
    [_point('a', 1, reached=80), _point('d', 1, 'passes')], {'code': 100}
  )
  assert 'documents, domains weighted, and' in mixed
  assert 'N counts neighbours; passes for d.' in mixed
  assert 'stays at its last (at most 4 do).' in mixed


def test_the_table_of_differences():
  found = [frontier.Difference('b', 5, 'a', 10, -0.01234, (-0.02, 0.001))]
  assert frontier.differences_table(found)[1] == [
    *('b', '5', 'a', '10', '-0.0123', '-0.0200 to +0.0010')
  ]
  assert 'less those of a' in frontier.differences_title(found)
