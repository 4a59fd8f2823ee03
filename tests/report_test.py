"""The job on work directories made on the spot."""

import csv
import json
import math
import os
import re

import ml_collections
import numpy as np
import pytest

from tests import details_test
from tttnn.jobs import live
from tttnn.jobs import report
from tttnn.scoring import results
from tttnn.scoring import token_scores


def _config(inputs='', title='', **values):
  values = {'aggregation': 'all', 'published': ''} | values
  return ml_collections.ConfigDict(
    {'report': {'inputs': inputs, 'title': title} | values}
  )


def _row(doc_id, **fields):
  return {
    'doc_id': doc_id,
    'task': 'books' if doc_id % 2 else 'code',
    'method': 'ttt',
    'protocol': 'split',
    'num_bytes': 100,
    'num_words': 20,
    'at': [0, 5],
    'log_likelihood': [-200.0, -150.0],
    'train_loss': [3.0] * 5,
    'steps': [1] * 5,
    'neighbors': [{'id': i, 'distance': 1.0 + i} for i in range(5)],
    'missing_neighbors': 0,
    'seconds': {'retrieve': 0.1, 'select': 0.0, 'adapt': 1.0, 'score': 0.2},
    'adapt_seconds': [0.2] * 5,
    'score_seconds': [0.1, 0.1],
  } | fields


def _write(workdir, rows, summary=None, tail=''):
  workdir.mkdir(exist_ok=True)
  lines = [json.dumps(row) + '\n' for row in rows]
  (workdir / 'results.jsonl').write_text(''.join(lines) + tail)
  if summary:
    (workdir / 'summary.json').write_text(json.dumps(summary))
  return workdir


def test_a_finished_run(tmp_path, capsys):
  summary = {'documents': 2, 'versions': {'jax': '9.9'}, 'all': {'x': 1}}
  workdir = _write(tmp_path / 'mine', [_row(0), _row(1)], summary)
  report.run(_config(), workdir)
  folder = workdir / 'report'
  figures = ('before_after', 'cost', 'curves', 'distances', 'losses')
  figures += ('measures',)
  assert {path.name for path in folder.iterdir()} == {
    'index.html',
    'tables',
    'tables.md',
    *(f'{name}_1.{kind}' for name in figures for kind in ('pdf', 'png')),
  }
  names = ('before_after', 'by_count', 'cost', 'seconds')
  assert {path.name for path in (folder / 'tables').iterdir()} == {
    'scores.csv',
    *(f'{name}_1.{kind}' for name in names for kind in ('csv', 'tex')),
  }
  out = capsys.readouterr().out
  assert out.startswith('mine: finished.\n')
  assert 'all     2.8854  2.1640  -25.0%           5          2\n' in out
  assert out.endswith(f'Report: {folder / "index.html"}\n')
  html = (folder / 'index.html').read_text()
  assert '<title>mine</title>' in html
  assert '&#34;jax&#34;: &#34;9.9&#34;' in html and '&#34;x&#34;' not in html
  assert (
    '| all | 2.8854 | 2.1640 | -25.0% | -25.0% to -25.0% | 5 | 2 |\n'
    in (folder / 'tables.md').read_text()
  )
  with open(folder / 'tables' / 'scores.csv') as file:
    lines = list(csv.DictReader(file))
  (line,) = (
    line
    for line in lines
    if (line['task'], line['metric'], line['count'])
    == ('all', 'bits_per_byte', '5')
  )
  assert float(line['value']) == 300 / (200 * math.log(2))


def test_only_what_changed_is_written(tmp_path):
  workdir = _write(tmp_path, [_row(0), _row(1)], {'documents': 2})
  report.run(_config(), workdir)
  files = [p for p in (workdir / 'report').rglob('*') if p.is_file()]
  for path in files:
    os.utime(path, (0, 0))
  report.run(_config(), workdir)
  assert {path.stat().st_mtime for path in files} == {0}
  report.run(_config(title='Other'), workdir)
  changed = {path.name for path in files if path.stat().st_mtime}
  assert changed == {'index.html', 'tables.md'}


@pytest.mark.parametrize(
  'summary, words',
  [
    (None, 'Unfinished: 2 documents so far.'),
    ({'documents': 200}, 'Unfinished: 2 of 200 documents, 1%.'),
  ],
)
def test_an_unfinished_run(tmp_path, capsys, summary, words):
  torn = json.dumps(_row(2))[:-9]
  _write(tmp_path, [_row(0), _row(1)], summary, torn)
  report.run(_config(), tmp_path)
  assert words in capsys.readouterr().out
  assert words in (tmp_path / 'report' / 'index.html').read_text()
  assert words in (tmp_path / 'report' / 'tables.md').read_text()


def test_a_finished_run_that_was_made_longer(tmp_path, capsys):
  _write(tmp_path, [_row(0), _row(1)], {'documents': 1})
  live.announce(str(tmp_path), 8)
  report.run(_config(), tmp_path)
  assert 'Unfinished: 2 of 8 documents, 25%.' in capsys.readouterr().out
  live.announce(str(tmp_path), 2)  # All rows, but not its summary yet.
  report.run(_config(), tmp_path)
  assert 'Unfinished: no summary.json yet.' in capsys.readouterr().out


def test_several_runs(tmp_path, capsys):
  first = _write(tmp_path / 'first', [_row(0), _row(1)])
  base = _row(
    0,
    method='base',
    at=[0],
    log_likelihood=[-200.0],
    neighbors=[],
    train_loss=[],
    steps=[],
    adapt_seconds=[],
    score_seconds=[0.1],
  )
  second = _write(tmp_path / 'second', [base])
  report.run(_config(f'{first}, {second}', 'Two'), tmp_path / 'both')
  folder = tmp_path / 'both' / 'report'
  assert {path.name for path in folder.glob('*.png')} == {
    'before_after_1.png',
    'before_after_2.png',
    'compared.png',
    'cost_1.png',
    'counts.png',
    'curves_1.png',
    'distances_1.png',
    'frontier.png',
    'losses_1.png',
    'measures_1.png',
    'seconds.png',
  }
  out = capsys.readouterr().out
  assert 'first: ' in out and 'second: ' in out
  text = (folder / 'tables.md').read_text()
  assert text.startswith(
    '# Two\n\nBits per byte over the 1 document that all runs have.\n\n'
    '| run | before |'
  )
  assert '\n\n## second\n\n' in text
  assert not (first / 'report').exists()


def test_a_comparison_that_is_still_going(tmp_path):
  (tmp_path / 'runs').mkdir()
  _write(tmp_path / 'runs' / 'knn', [_row(0), _row(1)], {'documents': 2})
  _write(tmp_path / 'runs' / 'sift', [_row(0)], tail='{"doc')
  _write(tmp_path / 'runs' / 'random', [], tail='{"doc')
  report.run(_config(), tmp_path)
  html = (tmp_path / 'report' / 'index.html').read_text()
  assert '<title>knn, sift</title>' in html
  assert 'Bits per byte over the 1 document that all runs have.' in html
  assert 'Unfinished: 1 document' in html


def test_scores_of_tokens_are_on_the_page(tmp_path):
  tokens = token_scores.Tokens(
    text='ab',
    ends_T=np.array([1, 2]),
    at=[0, 5],
    scores_CxT=np.array([[-100, -100], [-75, -75]], np.float32),
    neighbors=['text of it'] * 5,
    neighbor_chars=[10] * 5,
  )
  to = results.Results(str(tmp_path), {}, tokens=True)
  to.append(_row(0) | {results.TOKENS: tokens})
  to.close()
  report.run(_config(), tmp_path)
  html = (tmp_path / 'report' / 'index.html').read_text()
  data = re.search('id="data">(.*?)</script>', html)[1]
  head, _ = details_test.unpack(json.loads(data)['runs'][0]['documents'][0])
  assert head['text'] == 'ab' and head['neighbors'][4]['text'] == 'text of it'
  # Of another run than the rows.
  rows = json.dumps(_row(0, log_likelihood=[-200.0, -140.0])) + '\n'
  (tmp_path / 'results.jsonl').write_text(rows)
  with pytest.raises(ValueError, match='-140 in its row, -150 by its token'):
    report.run(_config(), tmp_path)


def test_runs_are_compared_over_the_documents_that_all_have(tmp_path):
  others = [_row(i, log_likelihood=[-400.0, -100.0]) for i in (3, 2, 1)]
  first = _write(tmp_path / 'a', [_row(0), _row(1), _row(2)])
  second = _write(tmp_path / 'b', others)
  report.run(_config(f'{first},{second}'), tmp_path / 'both')
  wanted = 'Bits per byte over the 2 documents that all runs have.'
  text = (tmp_path / 'both' / 'report' / 'tables.md').read_text()
  assert wanted in text
  # 400, 300, 800 and 200 nats of 200 bytes.
  assert '| a | 2.8854 | 2.1640 | -25.0% | 2 | ttt | split |' in text
  assert '| b | 5.7708 | 1.4427 | -75.0% | 2 | ttt | split |' in text
  assert wanted in (tmp_path / 'both' / 'report' / 'index.html').read_text()


def test_runs_that_do_not_compare_are_refused(tmp_path):
  first = _write(tmp_path / 'first', [_row(0), _row(1)])

  def refused(rows, words, first_prefix=None, prefix=None):
    second = _write(tmp_path / 'second', rows)
    for path, value in ((first, first_prefix), (second, prefix)):
      known = {} if value is None else {'eval.split_prefix': value}
      (path / 'results.config.json').write_text(json.dumps(known))
    config = _config(f'{first},{second}')
    if not words:
      report.run(config, tmp_path / 'both')
      return
    with pytest.raises(ValueError, match=words):
      report.run(config, tmp_path / 'both')

  whole = [_row(0, protocol='whole')]
  refused(
    whole,
    r"first' has eval.protocol='split', .*second' has eval.protocol='whole'",
  )
  same = [_row(0)]
  refused(same, r"first' has eval.split_prefix=64, .*second' .*=128", 64, 128)
  refused(same, '', 64, 64)
  refused(same, '', 64, 0)  # The model's context may well be 64.
  refused(same, '', 64)
  refused(
    [_row(0, num_bytes=90)],
    "document 0: 'first' scored 100 bytes of it, 'second' 90",
  )
  refused([_row(5)], "no document is in all runs.*'first' 2 .*'second' 1")


def test_prefixes_of_whole_documents_mean_nothing(tmp_path):
  paths = [
    _write(tmp_path / name, [_row(0, protocol='whole')]) for name in 'ab'
  ]
  for path, prefix in zip(paths, (64, 128), strict=True):
    known = {'eval.split_prefix': prefix}
    (path / 'results.config.json').write_text(json.dumps(known))
  report.run(_config(','.join(map(str, paths))), tmp_path / 'both')
  assert (tmp_path / 'both' / 'report' / 'index.html').exists()


def test_missing_results_say_what_makes_them(tmp_path):
  with pytest.raises(ValueError, match=r'results\.jsonl.*job=evaluate'):
    report.run(_config(), tmp_path)
  _write(tmp_path, [], tail='{"doc_id": 0')
  with pytest.raises(ValueError, match='no document is finished'):
    report.run(_config(), tmp_path)


@pytest.mark.parametrize(
  'bad, words',
  [
    ('{"doc_id": 1', r'results\.jsonl:2: not JSON: Expecting'),
    ('[1]', 'results.jsonl:2: not an object but list'),
    ('{"doc_id": 1}', 'results.jsonl:2: no task, method'),
    (json.dumps(_row(1, at=[0])), '2: 2 log-likelihoods at 1 neighbour'),
    (json.dumps(_row(1, method='base')), r"2: .*'base', 'split'.*'ttt'"),
  ],
)
def test_malformed_rows_are_named(tmp_path, bad, words):
  _write(tmp_path, [_row(0)], tail=bad + '\n')
  with pytest.raises(ValueError, match=words):
    report.read_rows(tmp_path)


def test_files_of_runs_that_are_no_more_go(tmp_path):
  paths = [_write(tmp_path / name, [_row(0)]) for name in 'ab']
  report.run(_config(','.join(map(str, paths))), tmp_path / 'both')
  folder = tmp_path / 'both' / 'report'
  assert (folder / 'cost_2.pdf').exists()
  mine = folder / 'notes_of_mine.csv'
  mine.write_text('kept')
  report.run(_config(str(paths[0])), tmp_path / 'both')
  left = [path.name for path in folder.rglob('*_2.*')]
  assert not left and (folder / 'cost_1.pdf').exists() and mine.exists()


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
  paths = []
  for parent in 'ab':
    (tmp_path / parent).mkdir()
    paths.append(_write(tmp_path / parent / 'ttt', [_row(0)], {'documents': 1}))
  report.run(_config(','.join(map(str, paths))), tmp_path / 'both')
  out = capsys.readouterr().out
  assert all(f'{path}: finished.' in out for path in paths)


def test_a_run_of_two_processes_that_still_goes(tmp_path, capsys):
  for process in range(2):
    line = json.dumps(_row(process)) + '\n{"doc_id": '
    (tmp_path / f'results.{process}.jsonl').write_text(line)
  live.announce(str(tmp_path), 8)
  report.run(_config(), tmp_path)
  assert 'Unfinished: 2 of 8 documents, 25%.' in capsys.readouterr().out
