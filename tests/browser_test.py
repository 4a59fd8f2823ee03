"""The page in a real browser: Chromium without a window.

TTTNN_SCREENSHOTS=DIRECTORY keeps pictures of it, to look at.
"""

import base64
import json
import math
import os
import shutil
import time

import numpy as np
import pytest

from tests import details_test
from tttnn.reporting import page
from tttnn.scoring import metrics

_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
_DRIVERS = ('chromedriver', 'chromium.chromedriver')
EVIL = '</script><script>document.title="ran"</script><b onclick="x">\u2028<!--'
IMAGE = '<img src=x onerror="document.title=\'ran\'">'
SHARED = 'six words that both have indeed'
PIXEL = base64.b64decode(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9'
  'awAAAABJRU5ErkJggg=='
)


def _found(names):
  return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope='module')
def browser():
  webdriver = pytest.importorskip(
    'selenium.webdriver',
    reason='selenium is not installed: pip install .[test]',
  )
  binary, driver = _found(_BROWSERS), _found(_DRIVERS)
  if not binary or not driver:
    pytest.skip(
      f'no browser: none of {_BROWSERS}, or of {_DRIVERS}, is on the PATH'
    )
  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for name in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage'):
    options.add_argument(f'--{name}')
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.ChromeService(executable_path=driver)
  opened = webdriver.Chrome(options=options, service=service)
  yield opened
  opened.quit()


def _run(name, shift):
  """Six documents that change by -2 .. 3 tenths of a bit a byte."""
  scores, rows = details_test.Scores(), []
  for number in range(6):
    text = f'Document {number} says: {SHARED}\n{EVIL}\n\U0001f389 fin'
    base = np.full(len(text), -2.0)
    step = (number - 2 + shift) / 10 * math.log(2)
    tokens = details_test.tokens_of(
      text,
      [base, base + step * 0.5, base + step * 0.25, base + step],
      query=IMAGE,
      neighbors=[f'before, {SHARED}; {IMAGE}', EVIL, 'plain'],
      neighbor_chars=[900, len(EVIL), 5],
    )
    row = details_test.row_of(
      tokens,
      EVIL if number == 5 else number,
      task=IMAGE if number % 2 else 'prose',
      protocol='split',
      num_words=9,
      seconds={'retrieve': 0.1, 'adapt': 1.0 + number},
    )
    row['neighbors'][0] |= {'id': EVIL, 'overlap': 0.9 * (number == 3)}
    rows.append(row)
    if number != 4:
      scores[row['doc_id']] = tokens
  return page.Run(
    name=name,
    progress='',
    rows=rows,
    table=metrics.aggregate(rows),
    before_after=page.Figure('x.png', IMAGE, PIXEL),
    curves=None,
    origin={'about': EVIL},
    scores=scores,
  )


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """Of a page of one run, and of one of two."""
  folder = tmp_path_factory.mktemp('pages')
  runs = [_run(EVIL, 0), _run('other', 1)]
  (folder / 'one.html').write_text(page.render(EVIL, runs[:1]), 'utf-8')
  (folder / 'two.html').write_text(page.render('Two', runs), 'utf-8')
  return folder


@pytest.fixture
def view(browser, paths):
  """Opens a page: (name, where in it, width, dark) -> the browser."""

  def view_(name='one', anchor='', width=1200, dark=False):
    browser.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride',
      {
        'width': width,
        'height': 800,
        'deviceScaleFactor': 1,
        'mobile': width < 600,
      },
    )
    scheme = 'dark' if dark else 'light'
    browser.execute_cdp_cmd(
      'Emulation.setEmulatedMedia',
      {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]},
    )
    browser.get('about:blank')
    browser.get(f'{(paths / name).as_uri()}.html{anchor}')
    if 'd' in anchor:
      until(browser, 'document.getElementById("document").open')
    return browser

  yield view_
  errors = [line for line in browser.get_log('browser')]
  assert not errors


def until(browser, condition):
  deadline = time.monotonic() + 10
  while not browser.execute_script(f'return {condition}'):
    assert time.monotonic() < deadline, condition
    time.sleep(0.02)


def script(browser, code):
  return browser.execute_script(code)


def text(browser, selector):
  return script(
    browser,
    f'return document.querySelector({json.dumps(selector)}).textContent',
  )


def names(browser):
  """The documents that the table shows, in its order."""
  return script(
    browser,
    "return [...document.querySelectorAll('#r0 .documents tbody tr')]"
    ".filter(r => !r.hidden).map(r => r.querySelector('a').textContent)",
  )


def press(browser, *keys):
  from selenium.webdriver.common import action_chains

  action_chains.ActionChains(browser).send_keys(*keys).perform()


def test_nothing_of_a_document_runs(view):
  for name, anchor in (('one', ''), ('two', ''), ('one', '#r0d5')):
    browser = view(name, anchor)
    assert browser.title == (EVIL if name == 'one' else 'Two')
    assert not script(
      browser,
      'return document.querySelectorAll("img[onerror], [onclick]").length',
    )
  assert text(browser, '#name').startswith(EVIL)
  assert EVIL in text(browser, '#text')
  assert text(browser, '.query') == IMAGE
  assert IMAGE in text(browser, '.neighbor .body')
  # What is injected after all does not run, by the page's policy.
  script(
    browser,
    'const s = document.createElement("script");'
    's.textContent = "document.title = \'ran\'"; document.body.append(s);'
    'document.body.insertAdjacentHTML("beforeend", arguments[0])'.replace(
      'arguments[0]', json.dumps(IMAGE)
    ),
  )
  time.sleep(0.2)
  assert browser.title == EVIL
  refused = browser.get_log('browser')
  assert refused and all('Content Security' in e['message'] for e in refused)


def test_the_table_sorts_and_filters(view):
  browser = view()
  ids = ['0', '1', '2', '3', '4', EVIL]
  assert names(browser) == ids
  heads = "document.querySelectorAll('#r0 .documents thead button')"
  script(browser, f'{heads}[4].click()')  # The change.
  by_change = names(browser)
  script(browser, f'{heads}[4].click()')
  assert names(browser) == by_change[::-1] and by_change[0] == EVIL
  press(browser, '/', 'prose')
  assert sorted(names(browser)) == ['0', '2', '4']
  assert text(browser, '.shown') == '3 of 6'
  press(browser, '\ue00c')  # Escape.
  assert len(names(browser)) == 6
  near = "document.querySelector('.near')"
  for value, left in (('only', ['3']), ('without', [*'0124', EVIL])):
    script(
      browser,
      f"{near}.value = '{value}'; {near}.dispatchEvent(new Event('input'))",
    )
    assert sorted(names(browser)) == sorted(left)


def test_keys_lead_through_table_and_documents(view):
  browser = view()
  press(browser, 'j', 'j', 'k', 'j', '\ue007')
  until(browser, 'document.getElementById("document").open')
  assert text(browser, '#name').startswith('1 ')
  assert script(browser, 'return location.hash') == '#r0d1'
  press(browser, 'j')
  until(browser, 'document.getElementById("name").textContent.startsWith("2")')
  press(browser, 'k', '\ue00c')  # Escape, before it is unpacked.
  until(browser, '!document.getElementById("document").open')
  until(browser, 'location.hash === "#r0"')
  assert script(browser, 'return document.activeElement.tagName') == 'A'
  assert not script(browser, 'return document.getElementById("document").open')
  press(browser, '\ue015', '\ue007')  # Down, Enter.
  until(browser, 'document.getElementById("document").open')
  browser.back()
  until(browser, '!document.getElementById("document").open')


def test_gained_and_lost_most_are_linked_at_the_top(view):
  browser = view()
  script(browser, 'document.querySelector(".gained a").click()')
  until(browser, 'document.getElementById("document").open')
  assert text(browser, '#name').startswith(EVIL)
  browser = view()
  script(browser, 'document.querySelector(".lost a").click()')
  until(browser, 'document.getElementById("document").open')
  assert text(browser, '#name').startswith('0')


def test_the_slider_colours_tokens(view):
  browser = view(anchor='#r0d5')  # 0.3 bits better in the end, each token.
  shades = (
    "return [...new Set([...document.querySelectorAll('#text span')]"
    '.map(s => s.className.split(" ")[0]))]'
  )
  assert script(browser, shades) == ['b1']
  assert text(browser, '#count') == '3'
  last = text(browser, '#score')
  press(browser, '\ue012')  # Left: at 2 neighbours, by 0.075 bits.
  assert text(browser, '#count') == '2'
  assert script(browser, shades) == [''] and text(browser, '#score') != last
  press(browser, '\ue012')  # At 1 neighbour by 0.15.
  assert script(browser, shades) == ['b1']
  since = "const s = document.getElementById('since'); s.value = 'step';"
  script(browser, since + "s.dispatchEvent(new Event('input'))")
  press(browser, '\ue014', '\ue014')  # From 2 to 3 by 0.225.
  assert text(browser, '#count') == '3' and script(browser, shades) == ['b1']
  press(browser, '\ue012')
  assert script(browser, shades) == ['']  # From 1 to 2 by -0.075.
  script(browser, "document.querySelectorAll('#text span')[2].click()")
  said = text(browser, '#token')
  assert said.startswith('"c"') and 'worse by 0.0' in said
  script(browser, "document.getElementById('text').focus()")
  press(browser, '\ue014')
  assert text(browser, '#token').startswith('"u"')
  assert text(browser, '#text') == script(
    browser,
    "return [...document.querySelectorAll('#text span')]"
    ".map(s => s.textContent).join('')",
  )


def test_neighbours_show_what_they_share_and_did(view):
  browser = view(anchor='#r0d3')
  cards = script(
    browser,
    "return [...document.querySelectorAll('.neighbor')]"
    '.map(c => c.textContent)',
  )
  assert len(cards) == 3 and EVIL in cards[0]
  assert 'near-duplicate' in cards[0] and 'near-duplicate' not in cards[1]
  assert 'loss 2.500' in cards[0] and 'distance 1.000' in cards[0]
  assert 'of 900 characters' in cards[0]
  # Tokens are single characters, mostly of a byte each.
  sizes = len(f'Document 3 says: {SHARED}\n{EVIL}\n\U0001f389 fin')
  for card, tenths in zip(cards, (-0.5, 0.25, -0.75), strict=True):
    change = 0.1 * tenths * sizes / (sizes + 3 + 2)
    assert f'{abs(change):.4f} bits/byte' in card
    assert ('\u2212' in card) == (change < 0)
  marks = (
    "return [...document.querySelectorAll('mark')].map(m => m.textContent)"
  )
  assert SHARED in script(browser, marks)[0]
  script(browser, "document.querySelector('.neighbor footer button').click()")
  assert SHARED in script(
    browser,
    "return [...document.querySelectorAll('#text .shared')]"
    ".map(s => s.textContent).join('')",
  )
  assert 'badge' in script(
    browser, 'return document.querySelector("#name").innerHTML'
  )


def test_a_document_without_scores_of_tokens_says_how_to_get_them(view):
  browser = view(anchor='#r0d4')
  assert 'eval.save_tokens=true' in text(browser, '#note')
  assert len(browser.find_elements('css selector', '.neighbor')) == 3
  press(browser, '\ue012')
  assert text(browser, '#count') == '2'


def test_runs_are_tabs_that_know_of_each_other(view):
  browser = view('two')
  shown = "return [...document.querySelectorAll('section')]"
  shown += '.filter(s => !s.hidden).map(s => s.id)'
  assert script(browser, shown) == ['r0']
  script(browser, "document.querySelectorAll('.tabs a')[1].click()")
  until(browser, "!document.getElementById('r1').hidden")
  assert script(browser, shown) == ['r1']
  browser = view('two', '#r1d2')
  assert 'In other runs' in text(browser, '#others')
  script(browser, "document.querySelector('#others a').click()")
  until(browser, 'document.getElementById("document").dataset.shown === "0.2"')


@pytest.mark.parametrize('anchor', ['', '#r0d5'])
@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [360, 1200])
def test_phones_and_dark_rooms(view, anchor, dark, width):
  browser = view('two', anchor, width=width, dark=dark)
  widths = script(
    browser,
    'return [document.documentElement.scrollWidth, '
    'document.querySelector(".inside").scrollWidth]',
  )
  assert max(widths) <= width
  paper = script(
    browser, 'return getComputedStyle(document.body).backgroundColor'
  )
  light = sum(map(int, paper[4:-1].split(','))) > 3 * 128
  assert light != dark
  folder = os.environ.get('TTTNN_SCREENSHOTS')
  if folder:
    name = f'{"dark" if dark else "light"}-{width}{anchor[1:]}.png'
    browser.save_screenshot(os.path.join(folder, name))
