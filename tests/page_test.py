"""The page as a parser sees it: text stays text, and nothing is fetched."""

import base64
import hashlib
from html import parser
import json
import math
import re

from tests.details_test import unpack
from tttnn.reporting import listing
from tttnn.reporting import page
from tttnn.scoring import metrics

EVIL = '</td><script>alert("1")</script><img src=x onerror=alert(2)>&amp;\'"'


class _Parser(parser.HTMLParser):
  """Collects the tags with their attributes, and the text outside scripts."""

  def __init__(self, html):
    super().__init__()
    self.tags, self.texts, self.open = [], [], ''
    self.feed(html)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.open = tag

  def handle_data(self, data):
    if self.open not in ('script', 'style') and data.strip():
      self.texts.append(data.strip())

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def _row(doc_id, *, task='code', at=(0, 5), bits=(2.0, 1.0), **fields):
  return {
    'doc_id': doc_id,
    'task': task,
    'method': 'ttt',
    'protocol': 'split',
    'num_bytes': 1000,
    'num_words': 100,
    'at': list(at),
    'log_likelihood': [-b * 1000 * math.log(2) for b in bits],
    'neighbors': [{'id': 7, 'distance': 2.5}, {'id': 9, 'distance': 3.0}],
    'missing_neighbors': 0,
    'seconds': {'retrieve': 0.25, 'select': 0.0, 'adapt': 1.0, 'score': 0.5},
  } | fields


def _run(*rows, name='run', progress='', origin=None):
  return page.Run(
    name=name,
    progress=progress,
    rows=rows,
    table=metrics.aggregate(rows),
    before_after=page.Figure('bars.png', f'Bars {EVIL}', b'\x89PNG bars' * 4),
    curves=None,
    origin=origin or {},
  )


def test_data_is_shown_as_text():
  run = _run(
    _row(EVIL, task=EVIL), name=EVIL, progress=EVIL, origin={'key': EVIL}
  )
  lines = [('methods', EVIL, [['run'], [EVIL]])]
  html = page.render(EVIL, [run, run], lines)
  parsed = _Parser(html)
  kinds = [attributes.get('type') for attributes in parsed.all('script')]
  assert kinds == ['application/json', None]  # The documents, and its own.
  assert len(parsed.all('img')) == 2
  assert not any('onerror' in attributes for _, attributes in parsed.tags)
  assert all(a['alt'] == f'Bars {EVIL}' for a in parsed.all('img'))
  # Title, h1, and a table's name and line. Then twice: a tab, the heading, the
  # progress, the document, its domain, and the domain.
  assert parsed.texts.count(EVIL) == 4 + 2 * 6
  assert html.count('alert("1")') == 0


def test_nothing_is_fetched():
  html = page.render('t', [_run(_row(0))])
  parsed = _Parser(html)
  (image,) = parsed.all('img')
  kind, data = image['src'].split(',')
  assert kind == 'data:image/png;base64'
  assert base64.b64decode(data) == b'\x89PNG bars' * 4
  for _, attributes in parsed.tags:
    assert attributes.get('href', '#').startswith('#')
    assert attributes.get('src', 'data:').startswith('data:')
  assert not re.search(r'https?:|//[a-z]|@import|url\(', html)
  policy = next(a for a in parsed.all('meta') if 'http-equiv' in a)
  assert policy['content'].startswith("default-src 'none'")
  assert 'unsafe' not in policy['content']
  for tag in ('style', 'script'):  # As a browser makes the digest.
    text = re.search(f'<{tag}>(.*?)</{tag}>', html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}'" in policy['content']
  assert not any('style' in a or 'onclick' in a for _, a in parsed.tags)


def test_the_page_is_for_every_screen():
  html = page.render('t', [_run(_row(0))])
  names = {a.get('name'): a.get('content') for a in _Parser(html).all('meta')}
  assert names['viewport'] == 'width=device-width, initial-scale=1'
  assert 'prefers-color-scheme: dark' in html
  assert html.startswith('<!doctype html>')
  assert html == page.render('t', [_run(_row(0))])


def test_the_summary():
  run = _run(_row(0), _row(1, missing_neighbors=3))
  facts = dict(page.summary(run))
  assert facts['Method'] == 'ttt' and facts['Protocol'] == 'split'
  assert facts['Documents'] == '2'
  assert facts['Seconds per document'] == '1.75 (median)'
  assert facts['Byte perplexity'] == '2.000'
  assert facts['Word perplexity'] == '1,024.0'
  assert facts['Documents with too few neighbours'] == '1'
  assert 'Documents without a finite score' not in facts
  assert '2.0000 \u2192 1.0000 bits per byte (-50.0%)' in page.render('', [run])

  lost = _run(_row(0, log_likelihood=[-1.0, None]))
  assert dict(page.summary(lost))['Documents without a finite score'] == '1'
  assert 'are undefined.' in page.render('', [lost])

  base = _run(_row(0, at=[0], bits=[2.0], neighbors=[], method='base'))
  assert '2.0000 bits per byte</p>' in page.render('', [base])


def test_values_to_sort_by_are_numbers_or_nan():
  html = page.render('', [_run(_row(0), _row('x', num_bytes=0))])
  cells = [a for a in _Parser(html).all('td') if 'data-value' in a]
  assert len(cells) == 2 * 7
  assert sum(a['data-value'] == 'nan' for a in cells) == 3
  assert all(isinstance(float(a['data-value']), float) for a in cells)


def test_a_long_run_is_cut(monkeypatch):
  monkeypatch.setattr(listing, 'MOST', 3)
  rows = [_row(i, bits=(2.0, 2.0 - (i % 400 == 1))) for i in range(1203)]
  html = page.render('', [_run(*rows)])
  assert '1,200 more documents' in html
  heads = [a for a in _Parser(html).all('th') if 'data-value' in a]
  assert [a['data-value'] for a in heads] == ['1', '401', '801']


def test_documents_are_packed_into_the_page():
  evil = '</script><!--\u2028' + EVIL
  runs = [_run(_row(i, task=evil), _row(evil)) for i in range(2)]
  html = page.render('', runs)
  data = re.search('id="data">(.*?)</script>', html, re.DOTALL)[1]
  assert not set('<>&\u2028') & set(data)
  found = json.loads(data)
  assert [len(run['documents']) for run in found['runs']] == [2, 2]
  first, second = (unpack(text)[0] for text in found['runs'][1]['documents'])
  assert (first['id'], first['task'], second['id']) == ('1', evil, evil)
  texts = _Parser(html).texts
  assert texts.count('1 of 1 documents gained.') == 0
  assert texts.count('2 of 2 documents gained.') == 2


def test_several_runs_are_compared():
  dynamic = _row(0, method='dynamic_eval', bits=(2.0, 1.5))
  runs = [_run(_row(0), name='a'), _run(dynamic, name='b')]
  assert page.comparison(runs)[1:] == [
    ['a', '2.0000', '1.0000', '-50.0%', '1', 'ttt', 'split'],
    ['b', '2.0000', '1.5000', '-25.0%', '1', 'dynamic_eval', 'split'],
  ]
  title = page.comparison_title(runs)
  assert title == 'Bits per byte over all documents of each run.'
  lines = [('methods', title, page.comparison(runs))]
  texts = _Parser(page.render('both', runs, lines)).texts
  assert title in texts and '-25.0%' in texts
  assert 'Bits per byte at 0 passes and at each document\u2019s last.' in texts
