"""Distances of neighbours as they are drawn."""

import numpy as np
import pytest

from tests import figures
from tttnn.reporting import neighbor_plots


def _row(*distances):
  return {'neighbors': [{'id': 0, 'distance': d} for d in distances]}


def test_documents_may_have_fewer_neighbours_or_none():
  got = neighbor_plots.distances([_row(1.0, 2.0), _row(), _row(3.0)])
  np.testing.assert_array_equal(got, [[1, 2], [3, np.nan]])
  assert not neighbor_plots.distances([_row()]).size


def test_the_mean_is_of_the_documents_that_have_the_neighbour():
  rows = [_row(1.0, 4.0), _row(0.0), _row(5.0, 2.0)]
  fig = neighbor_plots.draw(neighbor_plots.distances(rows))
  left, right = fig.axes
  assert list(left.lines[0].get_ydata()) == pytest.approx([2, 3])
  (bars,) = left.collections
  ends = [segment[:, 1] for segment in bars.get_segments()]
  std = np.std([1, 0, 5])
  np.testing.assert_allclose(ends, [[2 - std, 2 + std], [2, 4]])
  # The nearest of the third is its second: 1, 0 and 2.
  assert sum(bar.get_height() for bar in right.patches) == 3
  assert right.patches[-1].get_x() < 2 <= right.patches[-1].get_x() + 0.06
  assert '1 of 3' in right.get_title('left')
  figures.assert_nothing_is_cut_off(fig)


@pytest.mark.parametrize('distances', [(0.0,), (2.0,) * 60])
def test_one_document_can_be_drawn(distances):
  fig = neighbor_plots.draw(neighbor_plots.distances([_row(*distances)]))
  figures.assert_nothing_is_cut_off(fig)
