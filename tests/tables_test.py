"""Tables against values worked out by hand."""

import csv
import io
import math

from tttnn.reporting import tables
from tttnn.scoring import intervals
from tttnn.scoring import metrics


def _table(*documents):
  """A table of (task, at, bits per byte) documents of 100 bytes each."""
  return metrics.aggregate(
    {
      'task': task,
      'num_bytes': 100,
      'num_words': 10,
      'at': at,
      'log_likelihood': [-b * 100 * math.log(2) for b in bits],
    }
    for task, at, bits in documents
  )


def test_before_after():
  table = _table(
    ('code', [0, 5], [2.0, 1.0]),
    ('code', [0, 3], [1.0, 0.5]),
    ('books', [0, 5], [1.0, 1.25]),
  )
  assert tables.before_after(table) == [
    ['domain', 'before', 'after', 'change', 'neighbours', 'documents'],
    ['books', '1.0000', '1.2500', '+25.0%', '5', '1'],
    ['code', '1.5000', '0.7500', '-50.0%', '3-5', '2'],
    ['all', '1.3333', '0.9167', '-31.2%', '3-5', '3'],
  ]


def test_a_base_only_run_has_one_figure():
  cells = tables.before_after(_table(('code', [0], [2.0])))
  assert cells == [
    ['domain', 'bits per byte', 'documents'],
    ['code', '2.0000', '1'],
  ]
  assert tables.markdown(_table(('code', [0], [2.0]))) == (
    'Bits per byte.\n\n'
    '| domain | bits per byte | documents |\n'
    '| --- | ---: | ---: |\n'
    '| code | 2.0000 | 1 |\n'
  )


def test_by_count_tells_how_many_documents_got_that_far():
  table = _table(
    ('code', [0, 5], [2.0, 1.0]),
    ('code', [0, 3], [1.0, 0.5]),
    ('books', [0, 5], [1.0, 1.25]),
  )
  assert tables.by_count(table) == [
    ['domain', '0', '3', '5'],
    ['books', '1.0000', '-', '1.2500'],
    ['code', '1.5000', '0.5000 (1)', '1.0000 (1)'],
    ['all', '1.3333', '0.5000 (1)', '1.1250 (2)'],
  ]
  assert 'In brackets' in tables.by_count_title(table)
  even = _table(('code', [0, 5], [2.0, 1.0]))
  assert 'In brackets' not in tables.by_count_title(even)


def test_many_counts_are_thinned_with_both_ends():
  counts = list(range(51))
  head = tables.by_count(_table(('code', counts, [1.0] * 51)))[0]
  shown = [int(c) for c in head[1:]]
  assert shown[0] == 0 and shown[-1] == 50
  assert len(shown) <= 8 and shown == sorted(set(shown))


def test_missing_values_are_dashes():
  assert tables.number(math.nan) == tables.percent(math.inf) == '-'
  assert tables.number(-0.0) == '0.0000'
  assert tables.percent(-1e-9) == '+0.0%'
  assert tables.number(1234.5, 1) == '1,234.5'


def test_text_is_aligned():
  table = _table(('a', [0, 5], [2.0, 1.0]), ('much longer', [0, 5], [2.0, 1.0]))
  head, rule, *rows = tables.text(table).splitlines()
  assert {len(line) for line in (head, rule, *rows)} == {len(head)}
  assert rows[0].startswith('a  ') and rows[0].endswith(' 5          1')


def test_names_from_data_cannot_break_a_table():
  name = 'a|b\n<script>*x*</script>\x1b[31m'
  table = _table((name, [0, 5], [2.0, 1.0]))
  row = tables.markdown(table).splitlines()[4]
  assert row.startswith(
    '| a\\|b \\<script\\>\\*x\\*\\</script\\>\ufffd\\[31m | 2.0000 |'
  )
  assert '\x1b' not in tables.text(table)
  assert len(tables.text(table).splitlines()) == 3


def test_markdown_names_the_unit():
  page = tables.markdown(_table(('a', [0, 2], [2.0, 1.0])), 'passes')
  assert 'Bits per byte by number of passes.' in page
  assert '| domain | before | after | change | passes | documents |' in page
  assert '| --- | ---: | ---: | ---: | ---: | ---: |' in page
  assert '| a | 2.0000 | 1.0000 | -50.0% | 2 | 1 |' in page
  assert '| a | 2.0000 | 1.0000 |' in page


CELLS = [['run', 'bits'], ['a_b & 50% of {x}^2 \\ #1, ~', '-1,234.5']]


def test_csv_is_read_back_without_separators_of_thousands():
  (head, line) = csv.reader(io.StringIO(tables.render_csv(CELLS)))
  assert head == ['run', 'bits']
  assert line == ['a_b & 50% of {x}^2 \\ #1, ~', '-1234.5']
  grouped = tables.render_csv([['n'], ['1,234,567 (1,000)'], ['1, 2, 3']])
  assert list(csv.reader(io.StringIO(grouped))) == [
    ['n'],
    ['1234567 (1000)'],
    ['1, 2, 3'],
  ]


def test_latex_shows_text_as_it_is():
  latex = tables.render_latex(CELLS, 'Of 10 % & more')
  assert (
    r'a\_b \& 50\% of \{x\}\textasciicircum{}2 \textbackslash{} \#1, '
    r'\textasciitilde{} & $-$1,234.5 \\' in latex
  )
  assert r'\caption{Of 10 \% \& more}' in latex
  assert r'\begin{tabular}{lr}' in latex
  # Balanced, and nothing of the data opens or closes a group.
  for name in ('table', 'tabular'):
    assert latex.count(rf'\begin{{{name}}}') == 1
    assert latex.count(rf'\end{{{name}}}') == 1
  bare = latex.replace(r'\{', '').replace(r'\}', '')
  assert bare.count('{') == bare.count('}')


def test_intervals_stand_beside_changes():
  table = _table(('code', [0, 5], [2.0, 1.0]))
  known = {
    'code': intervals.Intervals((1.9, 2.1), (0.9, 1.1), (-0.55, math.nan))
  }
  head, line = tables.before_after(table, known=known)
  assert head.index('interval') == head.index('change') + 1
  assert line[head.index('interval')] == '-'
  known = {'code': intervals.Intervals((1, 2), (1, 2), (-0.55, 0.004))}
  line = tables.before_after(table, known=known)[1]
  assert line[head.index('interval')] == '-55.0% to +0.4%'
