"""Lines of documents, and those that are to be looked at."""

import math

import pytest

from tttnn.reporting import listing


def _row(doc_id, *, at=(0, 5), bits=(2.0, 1.0), **fields):
  return {
    'doc_id': doc_id,
    'task': 'code',
    'num_bytes': 1000,
    'at': list(at),
    'log_likelihood': [-b * 1000 * math.log(2) for b in bits],
    'neighbors': [{'id': 7, 'distance': 2.5}, {'id': 9, 'distance': 3.0}],
    'seconds': {'retrieve': 0.25, 'select': 0.0, 'adapt': 1.0, 'score': 0.5},
  } | fields


def test_cells():
  rows = [
    _row('b'),
    _row(10, at=(0, 3), bits=(1.0, 1.1)),
    _row(9, num_bytes=0, log_likelihood=[0.0, 0.0], neighbors=[]),
    _row(8, at=[1], bits=[1.0], neighbors=[{'id': None, 'distance': None}]),
  ]
  lines = listing.lines(rows, 'r2', 0.5)
  cells = [line.cells for line in lines]
  assert [line[0] for line in cells] == [
    ('8', 8),
    ('9', 9),
    ('10', 10),
    ('b', None),
  ]
  assert [line.anchor for line in lines] == ['r2d0', 'r2d1', 'r2d2', 'r2d3']
  assert len(listing.head('passes')) == len(cells[3])
  assert ' '.join(text for text, _ in cells[3]) == (
    'b code 2.0000 1.0000 -50.0% 5 2.500 1,000 1.75'
  )
  assert [text for text, _ in cells[1]][2:5] == ['-', '-', '-']
  assert [text for text, _ in cells[0]][2:7] == ['-', '1.0000', '-', '1', '-']
  assert cells[2][4][1] == pytest.approx(0.1)


def test_who_gained_and_who_lost_and_why():
  rows = [_row(i, bits=(2.0, 2.0 - 0.1 * i)) for i in range(-6, 7)]
  near = [{'id': 1, 'distance': 0.00001, 'overlap': 0.62}]
  rows.append(
    _row('x', at=(0, 1, 2, 5), bits=(2.0, 1.9, 0.5, 0.4), neighbors=near)
  )
  lines = listing.lines(rows, 'r0', 0.5)
  gained, lost = listing.extremes(lines, 'neighbours')
  assert [one.name for one in gained] == [
    'x \u00b7 code',
    *(f'{i} \u00b7 code' for i in (6, 5, 4, 3)),
  ]
  assert gained[0].change == '-80.0%'
  assert gained[0].why == (
    '2.0000 \u2192 0.4000, 1,000 bytes, most by neighbour 2 (-1.4000), nearest '
    'at 0.000, one neighbour shares 62% of its word runs, has a near-duplicate'
  )
  assert [one.name[:2] for one in lost] == ['-6', '-5', '-4', '-3', '-2']
  assert lines[-1].near and not lines[0].near
  rows = [_row(0, at=(0, 1, 5), bits=(2.0, 2.1, 2.5))]
  none, (one,) = listing.extremes(listing.lines(rows, 'r0', 0.5), 'passes')
  assert not none
  assert 'most by passes 2 to 5 (+0.4000)' in one.why


def test_there_is_nobody_where_nothing_changes():
  rows = [_row(0, at=[0], bits=[2.0]), _row(1, log_likelihood=[-1.0, None])]
  lines = listing.lines(rows, 'r0', 0.5)
  assert listing.extremes(lines, '') == ([], [])
  rows = [_row(i, bits=(2.0, 1.9 - 0.1 * i)) for i in range(7)]
  best, worst = listing.extremes(listing.lines(rows, 'r0', 0.5), '')
  assert [one.name[0] for one in best + worst] == [*'65432', *'01']
