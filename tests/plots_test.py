"""What the figures draw, and that nothing in them is cut off."""

import math

import matplotlib
import pytest

from tests import figures
from tttnn.reporting import plots
from tttnn.scoring import metrics

LONG = 'A corpus of a name so long that nobody would want to write it twice'


def _table(*documents):
  """A table of (task, at, bits per byte) documents of 100 bytes each."""
  return metrics.aggregate(
    {
      'task': task,
      'num_bytes': 0 if bits is None else 100,
      'num_words': 10,
      'at': at,
      'log_likelihood': [-b * 100 * math.log(2) for b in bits or [0] * len(at)],
    }
    for task, at, bits in documents
  )


def _many(domains, at=(0, 5)):
  return _table(
    *(
      (f'{LONG} {i}', list(at), [1 + i / 50 + c / 40 * (i % 3 - 1) for c in at])
      for i in range(domains)
    )
  )


def _labels(ax):
  return [label.get_text() for label in ax.get_yticklabels()]


def _widths(ax):
  return [[bar.get_width() for bar in series] for series in ax.containers]


def test_bars_are_the_scores_with_the_largest_gain_first():
  table = _table(
    ('same', [0, 5], [1.0, 1.0]),
    ('worse', [0, 5], [1.0, 1.5]),
    ('better', [0, 5], [2.0, 1.0]),
  )
  ax = plots.before_after(table).axes[0]
  assert _labels(ax) == ['all', 'better', 'same', 'worse']
  before, after, worse = _widths(ax)
  assert before == pytest.approx([4 / 3, 2, 1, 1])
  assert after == pytest.approx([3.5 / 3, 1, 1])
  assert worse == pytest.approx([1.5])
  assert [t.get_text() for t in ax.texts] == [
    '-12.5%',
    '-50.0%',
    '+0.0%',
    '+50.0%',
  ]
  # Told apart without colour too.
  hatches = [series[0].get_hatch() for series in ax.containers]
  assert len(set(hatches)) == 3


def test_a_base_only_run_has_one_bar_a_domain():
  ax = plots.before_after(_table(('x', [0], [2.0]), ('y', [0], [1.0]))).axes[0]
  assert _widths(ax) == [pytest.approx([1.5, 2.0, 1.0])]
  assert not ax.texts and not ax.figure.legends


def test_curves_are_the_scores_and_the_base_of_the_same_documents():
  table = _table(('x', [0, 1, 5], [2.0, 1.5, 1.0]), ('x', [0, 1], [1.0, 0.9]))
  (ax,) = plots.curves(table).axes
  base, adapted = ax.lines
  assert list(adapted.get_xdata()) == [0, 1, 5]
  assert list(adapted.get_ydata()) == pytest.approx([1.5, 1.2, 1.0])
  assert list(base.get_ydata()) == pytest.approx([1.5, 1.5, 2.0])
  assert base.get_linestyle() != adapted.get_linestyle()


def test_noise_is_not_blown_up():
  (ax,) = plots.curves(_table(('x', [0, 1], [1.0, 1.0 + 1e-7]))).axes
  low, high = ax.get_ylim()
  assert high - low > 0.02
  assert low < 1 < high


@pytest.mark.parametrize('draw', [plots.before_after, plots.curves])
@pytest.mark.parametrize(
  'table',
  [_many(22), _many(1), _table(('x', [0, 5], None), ('y', [0, 5], [1, 2]))],
  ids=['22 domains', 'one domain', 'no bytes'],
)
def test_no_text_is_cut_off(draw, table):
  fig = draw(table)
  figures.assert_nothing_is_cut_off(fig)


def test_lines_leave_room_for_their_ticks():
  def line(*seconds):
    return plots.Line([1, 2, 4, 8], seconds, 0.002, seconds[-1] / 8)

  panels = {
    'neighbours of one window': {
      'tttnn': line(0.0055, 0.0065, 0.0098, 0.0203),
      'PyTorch': line(0.0192, 0.0383, 0.0668, 0.1385),
    },
    'windows of one neighbour': {
      'tttnn': line(0.0055, 0.0064, 0.0077, 0.0141),
      'PyTorch': line(0.0233, 0.0354, 0.0568, 0.1058),
    },
  }
  fig = plots.straight_lines(panels, 'seconds a document (mini)')
  figures.assert_nothing_is_cut_off(fig)


def test_names_are_shown_as_they_are():
  names = ['$x_1$ <b>', 'a\nb\x07', 'no' * 60]
  table = _table(*((name, [0, 1], [1.0, 0.5]) for name in names))
  ax = plots.before_after(table).axes[0]
  labels = _labels(ax)
  assert '$x_1$ <b>' in labels and 'a b\ufffd' in labels
  assert max(len(label) for label in labels) <= 2 * 28 + 1
  assert not any(label.get_parse_math() for label in ax.get_yticklabels())
  plots.png(ax.figure)


def test_too_many_domains_are_cut_to_the_largest():
  documents = [(f'd{i}', [0], [1.0]) for i in range(60)]
  table = _table(*documents, ('d59', [0], [1.0]))
  ax = plots.before_after(table).axes[0]
  assert len(_labels(ax)) == 1 + 40
  assert 'd59' in _labels(ax) and 'd58' not in _labels(ax)
  assert 'of 60' in ax.get_xlabel()


def test_the_bytes_are_always_the_same():
  table = _many(1)
  first = plots.png(plots.before_after(table))
  assert first.startswith(b'\x89PNG\r\n')
  with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'red'}):
    assert plots.png(plots.before_after(table)) == first
  assert plots.png(plots.curves(table)) == plots.png(plots.curves(table))
