"""Runs beside each other and beside published figures, by hand."""

import csv
import math

import ml_collections
import numpy as np
import pytest

from tttnn.jobs import report
from tttnn.reporting import compared
from tttnn.reporting import page
from tttnn.scoring import faithful
from tttnn.scoring import metrics


def _row(doc_id, task, bits, method='ttt'):
  """Of 100 bytes, scored at 0 and 5 with so many bits per byte."""
  adapted = method == 'ttt'
  return {
    'doc_id': doc_id,
    'task': task,
    'method': method,
    'protocol': 'whole',
    'num_bytes': 100,
    'num_words': 10,
    'at': [0, 5],
    'log_likelihood': [-b * 100 * math.log(2) for b in bits],
    'neighbors': [{'id': i, 'distance': 1.0} for i in range(5)],
    'missing_neighbors': 0,
    'train_loss': [1.0] * 5 * adapted,
    'steps': [1] * 5 * adapted,
    'adapt_seconds': [0.1] * 5 * adapted,
    'score_seconds': [0.1, 0.1],
    'seconds': {'retrieve': 0.1, 'select': 0.0, 'adapt': 0.5, 'score': 0.2},
  }


def _run(name, rows):
  return page.Run(name, '', rows, metrics.aggregate(rows), None, None, {})


def _tables(found):
  return {name: cells for name, _, cells in found}


def test_differences_are_paired_and_from_the_first_ttt():
  # What is left of each document differs much, what the two differ by little.
  bits = np.linspace(1, 3, 30)
  gain = 0.01 * np.cos(np.arange(30))
  runs = [
    _run(
      name,
      [_row(i, 'x', (bits[i], bits[i] - less[i]), method) for i in range(30)],
    )
    for name, method, less in (
      ('context', 'in_context', gain),
      ('ours', 'ttt', gain + 0.3),
      ('other', 'ttt', gain + 0.2),
    )
  ]
  found, drawn = compared.of_runs(runs, {run.name: [run.rows] for run in runs})
  head, first, second = _tables(found)['differences']
  assert head[:4] == ['method', 'N', 'reference', 'its N']
  assert first[:5] == ['context', '5', 'ours', '5', '+0.3000']
  assert second[:5] == ['other', '5', 'ours', '5', '+0.1000']
  # Of equal draws the interval is as narrow as what differs, not the bits.
  assert second[5] == '+0.1000 to +0.1000'
  assert [figure.name for figure in drawn][:2] == [
    'compared.png',
    'frontier.png',
  ]


def test_without_ttt_there_is_nothing_to_differ_from():
  rows = [_row(i, 'x', (2.0, 1.9), 'in_context') for i in range(3)]
  runs = [_run('a', rows), _run('b', rows)]
  found, _ = compared.of_runs(runs, {run.name: [run.rows] for run in runs})
  assert 'differences' not in _tables(found)


def test_own_figures_of_the_pile_stand_beside_published_ones():
  domains = sorted(metrics.PILE_WEIGHTS)
  rows = [_row(i, domain, (2.0, 1.5)) for i, domain in enumerate(domains)]
  found, _ = compared.with_published('hardt_sun_2024', [_run('mine', rows)])
  cells = _tables(found)['published_by_domain']
  assert cells[0][1] == 'mine at 5'
  large = next(i for i, name in enumerate(cells[0]) if 'GPT-2-large' in name)
  lines = {line[0]: line for line in cells[1:]}
  assert len(lines) == 1 + 22 and list(lines)[:2] == ['pile_all', 'Pile-CC']
  assert (lines['pile_all'][1], lines['pile_all'][large]) == (
    '1.5000',
    '0.8537',
  )
  assert lines['Github'][large] == '0.5065'
  assert not any(compared.NOT_THE_PILE in title for _, title, _ in found)


def test_other_data_say_so_and_have_no_column():
  rows = [_row(i, 'mails', (4.0, 3.0)) for i in range(3)]
  found, drawn = compared.with_published('hardt_sun_2024', [_run('m', rows)])
  assert not any(
    'm at' in name for name in _tables(found)['published_by_domain'][0]
  )
  said = [title for name, title, _ in found if name != 'published_by_count']
  said += [figure.description for figure in drawn]
  assert all(compared.NOT_THE_PILE in text for text in said)


def test_published_figures_are_among_the_scores(tmp_path):
  config = ml_collections.ConfigDict(
    {
      'report': {
        'inputs': '',
        'title': '',
        'aggregation': 'all',
        'published': 'hardt_sun_2024',
      }
    }
  )
  report.run(config, tmp_path)
  with open(tmp_path / 'report' / 'tables' / 'scores.csv') as file:
    values = {
      (line['run'], line['task'], line['metric'], line['count']): line['value']
      for line in csv.DictReader(file)
    }
  bits = 'bits_per_byte'
  for run, total in (
    ('gpt2-large-in-context', 1.0643),
    ('gptneo-1.3B-in-context', 0.7403),
    ('gpt2-large-interpolation', 0.9926),
  ):
    value = float(values[f'{run} (published)', 'pile_all', bits, '20'])
    assert value == pytest.approx(total, abs=5.01e-5)
  value = float(values['gpt2 (published)', 'ArXiv', bits, '0'])
  assert value == pytest.approx(1.3168999200634568, rel=1e-11)


def test_some_domains_of_the_pile_are_not_the_pile():
  rows = [_row(0, 'ArXiv', (2.0, 1.0)), _row(1, 'Github', (3.0, 1.5))]
  table = faithful.aggregate(rows)
  assert table.pile_all is not None  # As the original's rules have it.
  run = page.Run('ours', '', rows, table, None, None, {})
  found, figures = compared.with_published('hardt_sun_2024', [run])
  assert compared.NOT_THE_PILE in found[0][1]
  cells = _tables(found)
  assert cells['published'][1] == [
    *('ours', '2.5000', '1.2500', '-50.0%', '5', 'other data', 'here')
  ]
  (line,) = (c for c in cells['published_by_domain'] if c[0] == 'pile_all')
  assert line[1] == '-'
  assert 'not of the Pile' in cells['published_by_count'][1][0]
