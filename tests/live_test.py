"""What a run says of itself while it goes."""

import io
import math
import re
import sys

import pytest

from tests import events
from tttnn.jobs import live


def row(doc_id, before=2.0, after=1.0, num_bytes=100):
  return {
    'doc_id': doc_id,
    'num_bytes': num_bytes,
    'num_tokens': num_bytes,
    'log_likelihood': [
      -bits * num_bytes * math.log(2) for bits in (before, after)
    ],
  }


class Terminal(io.StringIO):
  """One that says it is watched."""

  def isatty(self):
    return True


def test_lines_where_nobody_watches(capsys, monkeypatch):
  now = iter([0.0, 4.0, 40.0, 44.0, 45.0])
  monkeypatch.setattr(live.time, 'monotonic', lambda: next(now))
  rows = [row(0, 4.0, 4.0, 300), row(1), row(2), row(3)]
  with live.Live('ttt', rows[:1], 4) as shown:
    for one in rows[1:]:
      shown.add(one)
  lines = capsys.readouterr().err.splitlines()
  # The first row came after 4 seconds, the second after 40, the last after 44.
  assert lines == [
    'evaluate ttt: 3 of 4 documents, bits/byte 3.200 -> 2.800, 20 s each, '
    '00:20 left',
    'evaluate ttt: 4 of 4 documents, bits/byte 3.000 -> 2.500, 14.7 s each, '
    '00:00 left',
  ]


def test_a_bar_on_a_terminal(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with live.Live('ttt', [row(0)], 4) as shown:
    for number in range(1, 4):
      shown.add(row(number))
  last = terminal.getvalue().split('\r')[-1]
  assert re.search(r'evaluate ttt: 100%.* 4/4 \[', last)
  assert 'bits/byte 2.000 -> 1.000' in last and 's each' in last


def test_a_document_without_a_score_does_not_hide_the_others():
  lost = row(1) | {'log_likelihood': [None, None]}
  nan = row(2) | {'log_likelihood': [-1.0, math.nan]}
  with live.Live('ttt', [row(0), lost], 3) as shown:
    shown.add(nan)
    assert shown.scores == pytest.approx((2.0, 1.0))


def test_pairs_are_scored_a_token():
  with live.Live('base', [row(0)], 2, unit='pairs') as shown:
    assert shown.scores == pytest.approx((2 * math.log(2), math.log(2)))


def test_nothing_is_known_before_the_first_row():
  with live.Live('base', [], 2) as shown:
    assert all(map(math.isnan, shown.scores))


def test_tensorboard_has_the_running_scores_by_documents(tmp_path):
  rows = [row(0), row(1, 4.0, 2.0), row(2, 6.0, 3.0)]
  board = str(tmp_path / 'tensorboard')
  with live.Live('ttt', [], 3, board=board) as shown:
    for one in rows[:2]:
      shown.add(one)
  # Killed after the second, it goes on with the third.
  with live.Live('ttt', rows[:2], 3, board=board) as shown:
    shown.add(rows[2])
  found = events.scalars(tmp_path / 'tensorboard')
  bits = {k: v for k, v in found.items() if k[0] != _SECONDS}
  assert bits == pytest.approx(
    {
      ('evaluate/before', 1): 2.0,
      ('evaluate/before', 2): 3.0,
      ('evaluate/before', 3): 4.0,
      ('evaluate/after', 1): 1.0,
      ('evaluate/after', 2): 1.5,
      ('evaluate/after', 3): 2.0,
    }
  )
  assert {step for name, step in found if name == _SECONDS} == {1, 2, 3}


_SECONDS = 'evaluate/seconds_per_document'


def test_without_its_writer_tensorboard_is_an_error(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(ValueError, match=r'eval\.tensorboard=True.*tensorboard'):
    live.Live('ttt', [], 1, board='anywhere')
