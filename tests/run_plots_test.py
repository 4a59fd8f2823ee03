"""What the further figures of runs draw, and that nothing is cut off."""

import math

import numpy as np
import pytest

from tests import figures
from tttnn.reporting import costs
from tttnn.reporting import plots
from tttnn.reporting import run_plots
from tttnn.scoring import metrics

LONG = 'A corpus of a name so long that nobody would want to write it twice'


def row(doc_id, task, bits=(2.0, 1.5, 1.0), num_bytes=100, **fields):
  adapted = len(bits) - 1
  return {
    'doc_id': doc_id,
    'task': task,
    'num_bytes': num_bytes,
    'num_words': num_bytes // 5,
    'at': list(range(len(bits))),
    'log_likelihood': [-b * num_bytes * math.log(2) for b in bits],
    'train_loss': [3.0 + 0.1 * n + doc_id for n in range(adapted)],
    'steps': [2] * adapted,
    'adapt_seconds': [0.5 + doc_id] * adapted,
    'seconds': {'retrieve': 1.0, 'select': 0.5, 'adapt': 2.0, 'score': 0.5},
  } | fields


def test_the_largest_are_those_of_the_pile_by_weight_others_by_bytes():
  of_pile = [row(0, 'Enron Emails', num_bytes=900), row(1, 'Pile-CC')]
  assert run_plots.largest(of_pile) == ['Pile-CC', 'Enron Emails']
  rows = [row(0, 'x', num_bytes=60), row(1, 'y'), row(2, 'x', num_bytes=60)]
  assert run_plots.largest(rows) == ['x', 'y']
  assert len(run_plots.largest([row(i, f'{i}') for i in range(9)])) == 6


def test_totals_stay_those_of_all_domains():
  table = metrics.aggregate([row(0, 'x'), row(1, 'y', (3.0, 3.0, 3.0))])
  few = run_plots.only(table, ['x'])
  assert list(few.tasks) == ['x'] and few.all is table.all


def test_measures_are_the_scores():
  table = metrics.aggregate([row(0, 'x'), row(1, 'y', (3.0, 2.5, 2.0))])
  bits, of_bytes, of_words = run_plots.measures(table, ['y', 'x'], 'n').axes
  y, x = bits.lines
  assert list(y.get_ydata()) == pytest.approx([3.0, 2.5, 2.0])
  assert list(x.get_xdata()) == [0, 1, 2]
  assert list(of_bytes.lines[0].get_ydata()) == pytest.approx([8, 2**2.5, 4])
  assert of_words.lines[1].get_ydata()[2] == pytest.approx(2.0**5)
  looks = [(l.get_color(), l.get_marker(), l.get_linestyle()) for l in (x, y)]
  assert all(one != other for one, other in zip(*looks, strict=True))


def test_losses_are_means_over_documents_without_missing_ones():
  rows = [
    row(0, 'x'),
    row(1, 'x', train_loss=[None, 6.0]),
    row(2, 'y', train_loss=[None, None]),
  ]
  table = metrics.aggregate(rows)
  fig = run_plots.losses(rows, table, ['x', 'y'])
  left, right = fig.axes  # Of x; y has no loss.
  assert list(right.lines[0].get_ydata()) == pytest.approx([3.0, 4.55])
  assert list(left.lines[0].get_ydata()) == pytest.approx([2.0, 1.5, 1.0])
  none = [row(0, 'x', train_loss=[])]
  assert run_plots.losses(none, metrics.aggregate(none), ['x']) is None


def test_boxes_are_of_seconds_a_neighbour():
  rows = [row(i, 'slow' if i % 2 else 'fast') for i in range(8)]
  seconds = costs.per_neighbor(rows)
  assert seconds == {
    'fast': [0.5, 2.5, 4.5, 6.5],
    'slow': [1.5, 3.5, 5.5, 7.5],
  }
  (ax,) = run_plots.cost_boxes(seconds).axes
  assert [t.get_text() for t in ax.get_yticklabels()] == ['fast', 'slow']
  medians = [line for line in ax.lines if line.get_linewidth() == 1.6]
  assert [np.mean(line.get_xdata()) for line in medians] == [3.5, 4.5]


def test_boxes_of_nearly_equal_seconds_have_few_ticks():
  fig = run_plots.cost_boxes({'x': [0.0029], 'y': [0.0037]}, 'pass')
  (ax,) = fig.axes
  low, high = ax.get_xlim()
  assert low < 0.0029 and high > 0.0037 and high / low == pytest.approx(10)
  plots.png(fig)
  boxes = [t.get_window_extent() for t in ax.get_xticklabels()]
  boxes = sorted((b for b in boxes if b.width), key=lambda box: box.x0)
  assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
  assert 'a pass' in ax.get_xlabel()


def test_costs_as_tables():
  rows = [row(0, 'x'), row(1, 'x'), row(2, 'y')]
  cells = costs.cost_table(rows, 'neighbours')
  assert cells[1:] == [
    ['x', '1.000', '1.000', '1.400', '2.00', '2'],
    ['y', '2.500', '2.500', '2.500', '2.00', '1'],
    ['all', '1.500', '1.500', '2.300', '2.00', '3'],
  ]
  assert costs.seconds_table(rows)[1:] == [
    ['retrieve', '1.000', '1.000', '1.000', '25%'],
    ['select', '0.500', '0.500', '0.500', '12%'],
    ['adapt', '2.000', '2.000', '2.000', '50%'],
    ['score', '0.500', '0.500', '0.500', '12%'],
    ['total', '4.000', '4.000', '4.000', '100%'],
  ]


def test_compared_has_a_bar_a_run_and_a_tick_before():
  bars = {
    'one': run_plots.Bars({'x': 2.0, 'y': 3.0}, {'x': 1.0, 'y': 1.5}),
    'two': run_plots.Bars({}, {'x': 1.2}),
  }
  (ax,) = run_plots.compared(bars, ['x', 'y'], 'a note').axes
  widths = [[bar.get_width() for bar in group] for group in ax.containers]
  assert widths[0] == [1.0, 1.5]
  assert widths[1] == [1.2]
  # What is not there takes no room: the bar of y stands alone at its name.
  middles = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
  assert middles == pytest.approx([0, 2.8, 1])
  assert list(ax.get_yticks()) == pytest.approx([0.5, 2.8])
  (ticks,) = ax.collections
  assert [line[0][0] for line in ticks.get_segments()] == [2.0, 3.0]
  hatches = [group[0].get_hatch() for group in ax.containers]
  assert len(set(hatches)) == 2
  assert 'a note' in ax.get_xlabel()


def test_many_runs_have_bars_of_their_own_look():
  bars = {f'{n}': run_plots.Bars({}, {'x': 1.0}) for n in range(42)}
  (ax,) = run_plots.compared(bars, ['x']).axes
  assert len({(b.get_hatch(), b.get_facecolor()) for b in ax.patches}) == 42


def test_runs_over_counts_have_their_change_beside():
  lines = {'own': {0: 4.0, 1: 3.0}, 'published': {0: 1.0, 5: 0.8}, 'b': {2: 1}}
  left, right = run_plots.over_counts(lines, ['own'], 'a note').axes
  assert list(left.lines[0].get_ydata()) == [4, 3]
  assert list(right.lines[0].get_ydata()) == pytest.approx([0, -25])
  assert list(right.lines[1].get_ydata()) == pytest.approx([0, -20])
  assert math.isnan(right.lines[2].get_ydata()[0])
  assert left.lines[0].get_linewidth() > left.lines[1].get_linewidth()


@pytest.mark.parametrize('number', [1, 7])
def test_nothing_is_cut_off(number):
  tasks = [f'{LONG} {i}' for i in range(number)]
  rows = [row(i, task) for i, task in enumerate(tasks)]
  table = metrics.aggregate(rows)
  shown = run_plots.largest(rows)
  bars = {task: run_plots.Bars({}, {'all': 1.0}) for task in tasks}
  lines = {task: {0: 2.0, 5: 1.0} for task in tasks}
  for fig in (
    run_plots.measures(table, shown, 'neighbours'),
    run_plots.losses(rows, table, shown),
    run_plots.cost_boxes(costs.per_neighbor(rows)),
    run_plots.compared(bars, ['all'], 'not all of it is of the Pile'),
    run_plots.over_counts(lines, tasks[:1], 'not all of it is of the Pile'),
  ):
    figures.assert_nothing_is_cut_off(fig)
  assert plots.pdf(fig) == plots.pdf(fig)
