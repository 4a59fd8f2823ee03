"""Tables and figures of a sweep, on made-up figures."""

import math

import numpy as np
import pytest

from tests import figures
from tttnn.methods import knn_lm
from tttnn.methods import knn_tuning
from tttnn.reporting import knn_sweep


def make(lambdas, temperatures, ks):
  """Bits per byte that say where they stand: l.tk."""
  grid = knn_tuning.Grid(lambdas, temperatures, ks)
  shape = len(grid.lambdas), len(grid.temperatures), len(grid.ks)
  bits = sum(
    index / 10**place for place, index in enumerate(np.indices(shape) + 1.0)
  )
  return knn_sweep.Sweep(grid, bits, 2.5)


def test_tables_have_each_setting_in_its_place():
  sweep = make((0.1, 0.5), (1.0, 30.0), (4, 1024))
  best = knn_lm.Settings(1024, 0.1, 1.0)
  assert sweep.at(best) == 1.12
  sweep.bits_LxtxK[0, 0, 0] = math.nan
  (title, cells), (_, by_k) = knn_sweep.tables_of(sweep, best)
  assert cells == [
    ['lambda', 'T 1', 'T 30'],
    ['0.1', '1.1200', '1.2200'],
    ['0.5', '2.1200', '2.2200'],
  ]
  assert 'lambda 0.1, temperature 1, k 1,024' in title
  assert '2.5000' in title
  assert by_k == [
    ['k', 'lambda', 'temperature', 'bits per byte'],
    ['4', '0.1', '30', '1.2100'],
    ['1,024', '0.1', '1', '1.1200'],
  ]
  lines = knn_sweep.csv(sweep).splitlines()
  assert lines[1:3] == ['0.1,1.0,4,', '0.1,1.0,1024,1.12']
  assert lines[-1] == f'0.5,30.0,1024,{sweep.bits_LxtxK[1, 1, 1].item()!r}'


def test_bins_begin_where_the_last_one_ends():
  bins = knn_tuning.Bins(np.array([0.5, 2.0]), np.array([0.6, 0.3, 0.0]))
  assert knn_sweep.bins_table(bins) == [
    ['distance from', 'lambda'],
    ['-', '0.6'],
    ['0.5', '0.3'],
    ['2', '0'],
  ]


LAMBDAS = tuple(n / 20 for n in range(1, 20))


@pytest.mark.parametrize(
  ('values', 'panels', 'lines'),
  [
    ((LAMBDAS, (1.0, 3.0, 10.0), (4,)), 1, 3),
    ((LAMBDAS, (1.0, 3.0), (4, 8, 16, 32)), 4, 2),
    (((0.25, 0.5), tuple(2.0**n for n in range(12)), (4, 8)), 2, 2),
    (((0.25,), (1.0,), (4,)), 1, 1),
    ((LAMBDAS, tuple(2.0**n for n in range(12)), tuple(range(1, 20))), 7, 7),
  ],
)
def test_a_figure_has_a_panel_a_k(values, panels, lines):
  sweep = make(*values)
  grid = sweep.grid
  best = knn_lm.Settings(grid.ks[0], grid.lambdas[0], grid.temperatures[0])
  fig = knn_sweep.figure(sweep, best)
  figures.assert_nothing_is_cut_off(fig)
  assert len(fig.axes) == panels
  first = fig.axes[0].get_lines()
  assert len(first) == lines + 2  # The model alone, and what is chosen.
  by_lambda = len(grid.lambdas) >= len(grid.temperatures)
  bits_Lxt = sweep.bits_LxtxK[:, :, 0]
  expected = bits_Lxt[:, 0] if by_lambda else bits_Lxt[0]
  np.testing.assert_array_equal(first[0].get_ydata(), expected)
  x = grid.lambdas if by_lambda else grid.temperatures
  np.testing.assert_array_equal(first[0].get_xdata(), x)
  ring = first[-1]
  assert ring.get_label() == 'chosen'
  assert ring.get_xdata()[0] == x[0] and ring.get_ydata()[0] == bits_Lxt[0, 0]
  looks = {
    (line.get_color(), line.get_marker(), str(line.get_linestyle()))
    for line in first[:lines]
  }
  assert len(looks) == lines


def test_a_figure_without_numbers_is_drawn():
  sweep = make((0.1, 1.0), (1.0,), (4,))
  sweep.bits_LxtxK[1] = math.inf  # At lambda 1, a token that nobody has.
  best = knn_lm.Settings(4, 0.1, 1.0)
  low, high = knn_sweep.figure(sweep, best).axes[0].get_ylim()
  assert low < 1.11 < 2.5 < high < 4
  nothing = knn_sweep.Sweep(sweep.grid, sweep.bits_LxtxK * np.nan, math.nan)
  figures.assert_nothing_is_cut_off(knn_sweep.figure(nothing, best))
