"""What the figures of methods draw, and that all of it can be read."""

import itertools
import math

import matplotlib
import numpy as np
import pytest

from tests import figures
from tttnn.reporting import frontier
from tttnn.reporting import frontier_plots
from tttnn.reporting import plots

COUNTS = (1, 5, 10, 20, 50)
LONG = 'A method of a name so long that nobody would want $to_write$ it WWWWW'
DRAW = [
  frontier_plots.over_seconds,
  frontier_plots.over_counts,
  frontier_plots.seconds,
]


def _points(runs=8, counts=COUNTS, name='ttt {}'):
  points = [_point('base', 0, 0)]
  for number in range(runs):
    gain = 0.05 + 0.02 * number
    points += [
      _point(name.format(number), count, gain * (1 - math.exp(-count / 8)))
      for count in counts
    ]
  return points


def _point(label, count, gain, seconds=0.35):
  spread = gain / 10
  return frontier.Point(
    label=label,
    count=count,
    unit='neighbours',
    documents=84,
    reached=84,
    bits_per_byte=0.9 * (1 - gain),
    base_bits_per_byte=0.9,
    interval=(-gain - spread, -gain + 2 * spread),
    seconds={
      'retrieve': 0.3 * (count > 0),
      'select': 0.1 if '1' in label else 0.0,
      'adapt': seconds * count,
      'score': 0.2,
    },
  )


def _segments(ax):
  """(x, low, high) of the vertical bars of every run."""
  return [
    [(*line[0], line[1][1]) for line in bars.get_segments()]
    for bars in ax.collections
  ]


def test_the_frontier_shows_the_points_and_their_intervals():
  points = _points(2)
  (ax,) = frontier_plots.over_seconds(points).axes
  lines = {line.get_label(): line for line in ax.lines}
  runs = frontier.ordered(points)
  for label, line in runs.items():
    assert list(lines[label].get_xdata()) == [p.total_seconds for p in line]
    assert list(lines[label].get_ydata()) == [p.bits_per_byte for p in line]
  for bars, line in zip(_segments(ax), runs.values(), strict=True):
    for (x, low, high), point in zip(bars, line, strict=True):
      assert x == pytest.approx(point.total_seconds)
      assert low == pytest.approx(0.9 * (1 + point.interval[0]))
      assert high == pytest.approx(0.9 * (1 + point.interval[1]))
  assert list(lines['not adapted'].get_ydata()) == [0.9, 0.9]
  assert ax.get_xscale() == 'log'


def test_runs_are_told_apart_in_grey():
  (ax,) = frontier_plots.over_seconds(_points(8)).axes
  runs = [line for line in ax.lines if line.get_marker() in 'os^DvPX*<']
  assert len(runs) == 9
  assert len({line.get_marker() for line in runs}) == 9
  looks = [(l.get_color(), l.get_linestyle(), l.get_marker()) for l in runs]
  assert len(set(looks)) == 9


def test_counts_stand_at_points_and_cover_nothing():
  # Two runs of the same times and scores that differ by less than a letter.
  points = [
    _point(label, count, gain * (1 - math.exp(-count / 8)))
    for label, gain in (('a', 0.2), ('b', 0.201))
    for count in COUNTS
  ]
  fig = frontier_plots.over_seconds(points)
  (ax,) = fig.axes
  plots.png(fig)
  assert sorted(int(t.get_text()) for t in ax.texts) == sorted(2 * COUNTS)
  boxes = [text.get_window_extent() for text in ax.texts]
  for one, other in itertools.combinations(boxes, 2):
    assert not one.overlaps(other)
  drawn = ax.transData.transform(
    [(p.total_seconds, p.bits_per_byte) for p in points]
  )
  for box, (x, y) in itertools.product(boxes, drawn):
    assert not box.contains(x, y)
  for text, box in zip(ax.texts, boxes, strict=True):
    here = ax.transData.transform(text.xy)
    assert np.hypot(*(here - (box.min + box.max) / 2)) < 20 * fig.dpi / 72


def test_many_counts_are_thinned():
  fig = frontier_plots.over_counts(_points(2, range(1, 51)))
  (ax,) = fig.axes
  plots.png(fig)
  ticks = [label for label in ax.get_xticklabels() if label.get_text()]
  assert ticks[0].get_text() == '1' and ticks[-1].get_text() == '50'
  boxes = [label.get_window_extent() for label in ticks]
  for one, other in itertools.combinations(boxes, 2):
    assert not one.overlaps(other)
  assert all(len(bars) <= 8 for bars in _segments(ax))
  assert max(len(line.get_xdata()) for line in ax.lines) == 50


def test_over_counts_keeps_runs_near_their_count():
  (ax,) = frontier_plots.over_counts(_points(3)).axes
  lines = [l for l in ax.lines if l.get_label().startswith('ttt')]
  assert len(lines) == 3  # The run at 0 is the dashed line.
  for line in lines:
    np.testing.assert_allclose(line.get_xdata(), COUNTS, rtol=0.1)
  assert len({line.get_xdata()[0] for line in lines}) == 3


@pytest.mark.parametrize('draw', DRAW[:2])
def test_a_run_that_diverges_leaves_room_for_the_others(draw):
  ordinary = _points(runs=3)
  (ax,) = draw(ordinary).axes
  assert not ax.get_title(loc='left')
  far = _point('diverged', 50, -2.0)
  (ax,) = draw([*ordinary, _point('diverged', 1, 0.01), far]).axes
  low, high = ax.get_ylim()
  assert high < far.bits_per_byte
  for point in ordinary:
    assert low < point.bits_per_byte < high
  assert ax.get_title(loc='left') == 'Above the edge: diverged at 50 (2.70)'


def test_the_bars_are_the_seconds_at_the_largest_count():
  (ax,) = frontier_plots.seconds(_points(2)).axes
  assert [label.get_text() for label in ax.get_yticklabels()] == [
    'base (0)',
    'ttt 0 (50)',
    'ttt 1 (50)',
  ]
  widths = [[bar.get_width() for bar in series] for series in ax.containers]
  assert widths[0] == [0, 0.3, 0.3]
  assert widths[2] == [0, 17.5, 17.5]
  ends = [bar.get_x() + bar.get_width() for bar in ax.containers[3]]
  totals = [
    line[-1].total_seconds for line in frontier.ordered(_points(2)).values()
  ]
  assert ends == pytest.approx(totals)
  assert [text.get_text() for text in ax.texts] == ['0.2', '18', '18.1']
  hatches = [series[0].get_hatch() for series in ax.containers]
  assert len(set(hatches)) == 4


@pytest.mark.parametrize('draw', DRAW)
@pytest.mark.parametrize(
  'points',
  [
    _points(8),
    _points(20, name=LONG + '{}'),
    _points(1, (10,)),
    [_point('base', 0, 0)],
    [_point('lost', 1, math.nan), _point('b', 1, 0.1)],
  ],
  ids=['8 runs', 'long names', 'one count', 'base', 'undefined'],
)
def test_no_text_is_cut_off(draw, points):
  fig = draw(points)
  figures.assert_nothing_is_cut_off(fig)
  (ax,) = fig.axes
  (legend,) = fig.legends
  assert not ax.bbox.overlaps(legend.get_window_extent())
  assert not any(text.get_parse_math() for text in legend.get_texts())


@pytest.mark.parametrize('draw', DRAW)
def test_the_bytes_are_always_the_same(draw):
  first = plots.png(draw(_points(3)))
  with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'red'}):
    assert plots.png(draw(_points(3))) == first
