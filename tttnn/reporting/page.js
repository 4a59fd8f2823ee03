'use strict';
// Text of documents reaches the page by textContent alone.

const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const dialog = $('document');
const GRAM = 5;  // Words of a run that counts as shared.
const STEPS = [0.1, 0.4, 1, 2];  // Bits, from which on colours get stronger.
const UNKNOWN = -32768;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== ''));
  return element;
}

const number = (value, digits = 4) =>
  value === null || value === undefined ? '-' : value.toFixed(digits);
const signed = (value, digits = 4) =>
  value === null ? '-' :
    (value < 0 ? '\u2212' : '+') + Math.abs(value).toFixed(digits);
const minus = text => text.replace('-', '\u2212');

// --- The table of documents.

// A cell sorts by its data-value, a number, or else by its text; cells without
// a number (NaN) stay last either way.
function compare(a, b) {
  if (a.dataset.value === undefined || b.dataset.value === undefined)
    return a.textContent.localeCompare(b.textContent, 'en', {numeric: true});
  return a.dataset.value - b.dataset.value;
}

function sort(table, head) {
  const sign = head.ariaSort === 'ascending' ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
  head.ariaSort = sign > 0 ? 'ascending' : 'descending';
  const cell = row => row.cells[head.cellIndex];
  const isMissing = row => cell(row).dataset.value === 'nan';
  const rows = [...table.tBodies[0].rows].sort((a, b) =>
    isMissing(a) - isMissing(b) || sign * compare(cell(a), cell(b)) || 0);
  table.tBodies[0].append(...rows);
}

function filter(section) {
  const words = section.querySelector('.filter').value.toLowerCase();
  const domain = section.querySelector('.domain')?.value ?? '';
  const near = section.querySelector('.near')?.value ?? '';
  const rows = [...section.querySelectorAll('.documents tbody tr')];
  let shown = 0;
  for (const row of rows) {
    const isNear = 'near' in row.dataset;
    const task = row.cells[1].textContent;
    const name = row.cells[0].querySelector('a').textContent;
    const text = `${name}\n${task}`.toLowerCase();
    row.hidden = !text.includes(words) || (domain && task !== domain) ||
      (near === 'only' && !isNear) || (near === 'without' && isNear);
    shown += !row.hidden;
  }
  section.querySelector('.shown').textContent =
    shown === rows.length ? `${shown} documents` : `${shown} of ${rows.length}`;
}

const visible = section =>
  [...section.querySelectorAll('.documents tbody tr')].filter(r => !r.hidden);

for (const section of document.querySelectorAll('section.run')) {
  const table = section.querySelector('.documents');
  if (!table) continue;
  table.tHead.addEventListener('click', event => {
    const head = event.target.closest('th');
    if (head) sort(table, head);
  });
  table.tBodies[0].addEventListener('click', event => {
    const row = event.target.closest('tr');
    if (row && !String(getSelection()))
      location.hash = row.querySelector('a').getAttribute('href');
  });
  for (const control of section.querySelectorAll('.tools input, .tools select'))
    control.addEventListener('input', () => filter(section));
  filter(section);
}

// --- One document.

let open = null;  // {run, place, head, numbers, spans, words}
let asked = 0;  // Which of the documents asked for is still wanted.

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream()
    .pipeThrough(new DecompressionStream('deflate'));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(
    new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return {head, numbers: new Int16Array(buffer.slice(4 + length))};
}

const counts = () => open.head.shown_at ?? open.head.at;

// Hundredths of a bit, of a group of tokens at a place of the counts.
function valueAt(group, place) {
  const groups = open.head.lengths.length;
  const first = open.numbers[group];
  if (!place || first === UNKNOWN) return first;
  const change = open.numbers[place * groups + group];
  return change === UNKNOWN ? UNKNOWN : first + change;
}

function changeAt(group, place) {
  const from = $('since').value === 'step' ? Math.max(0, place - 1) : 0;
  const before = valueAt(group, from), after = valueAt(group, place);
  if (before === UNKNOWN || after === UNKNOWN) return null;
  return {before: before / 100, after: after / 100,
          change: (after - before) / 100};
}

function shade(change) {
  const strength = STEPS.filter(step => Math.abs(change) >= step).length;
  return strength ? (change > 0 ? 'b' : 'w') + strength : '';
}

function showText() {
  const {head} = open, holder = $('text');
  holder.replaceChildren();
  open.spans = [];
  const note = [];
  if (head.text === undefined) {
    note.push('The text and the scores of its tokens are not shown, since the ' +
      'run did not keep them: run evaluate or compare with ' +
      '--config.eval.save_tokens=true in a new work directory, and report ' +
      'again. (retrieval.replay spares a search.)');
  } else if (head.lengths.length < head.groups) {
    note.push(`The first ${head.lengths.length.toLocaleString('en')} of ` +
      `${head.groups.toLocaleString('en')} tokens are shown, so that the page ` +
      'stays small; tokens.bin has all.');
  }
  $('note').replaceChildren(...note);
  if (head.query) {
    $('note').append(make('details', {}, make('summary', {},
      'What stands before it, and is not scored'),
    make('div', {className: 'query', textContent: head.query})));
  }
  if (head.text === undefined) return;
  let begin = 0;
  head.lengths.forEach((length, group) => {
    const piece = head.text.slice(begin, begin += length);
    const span = make('span', {textContent: piece});
    span.dataset.group = group;
    if (/^\s*\n\s*$/.test(piece)) span.dataset.line = '';
    open.spans.push(span);
  });
  holder.append(...open.spans);
}

function colour() {
  const {head} = open, place = Number($('slider').value);
  const count = counts()[place], index = head.at.indexOf(count);
  $('count').textContent = count;
  const before = head.bits[0], after = head.bits[index];
  let text = `${number(before)} \u2192 ${number(after)} bits per byte`;
  if (!index) text = `${number(before)} bits per byte`;
  else if (before && after !== null) {
    text += ` (${signed(100 * (after / before - 1), 1)}%)`;
  }
  $('score').textContent = text;
  $('slider').setAttribute('aria-valuetext', `${count}: ${text}`);
  open.spans.forEach((span, group) => {
    const found = changeAt(group, place);
    const kind = found ? shade(found.change) : '';
    const line = 'line' in span.dataset && kind ? ' line' : '';
    const kept = ['shared', 'now'].filter(name => span.classList.contains(name));
    span.className = [kind + line, ...kept].join(' ').trim();
  });
  showCurve(index);
  for (const card of document.querySelectorAll('.neighbor'))
    card.classList.toggle('on', Number(card.dataset.number) <= count);
  const now = open.spans.findIndex(span => span.classList.contains('now'));
  showToken(now < 0 ? null : now);
}

function showToken(group) {
  const bar = $('token');
  for (const span of open.spans) span.classList.remove('now');
  if (group === null) {
    bar.textContent = open.spans.length ?
      'Point at a token, or click the text and use the arrow keys.' : '';
    return;
  }
  const span = open.spans[group], place = Number($('slider').value);
  span.classList.add('now');
  const found = changeAt(group, place);
  const several = open.head.several[group];
  const says = found === null ? ' no finite score' :
    ` ${signed(found.before, 2)} \u2192 ${signed(found.after, 2)} bits, ` +
    `${found.change > 0 ? 'better' : found.change < 0 ? 'worse' : 'no change'}` +
    (found.change ? ` by ${Math.abs(found.change).toFixed(2)}` : '') +
    (several ? ` (${several} tokens)` : '');
  bar.replaceChildren(
    make('code', {textContent: JSON.stringify(span.textContent)}), says);
}

function showCurve(index) {
  const svg = $('curve'), {at, bits} = open.head;
  svg.toggleAttribute('hidden', at.length < 2);
  const known = bits.filter(value => value !== null);
  const low = Math.min(...known), high = Math.max(...known);
  const x = i => 12 + i * 276 / Math.max(1, at.length - 1);
  const y = value => 18 + (high - value) * 58 / (high - low || 1);
  const part = (tag, attributes, text = '') => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes))
      element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const places = bits.map((value, i) => [i, value]).filter(([, v]) => v !== null);
  svg.replaceChildren(
    part('polyline', {points: places.map(([i, v]) => `${x(i)},${y(v)}`).join(' ')}),
    ...places.map(([i, v]) => part('circle', {cx: x(i), cy: y(v),
      r: i === index ? 5 : 2.5, class: i === index ? 'at' : ''})),
    ...places.filter(([i]) => i === 0 || i === at.length - 1 || i === index)
      .map(([i, v]) => part('text', {x: x(i), y: y(v) - 8,
        'text-anchor': i === 0 ? 'start' : i === at.length - 1 ? 'end' : 'middle'},
      i === index || i === 0 || index !== at.length - 1 ? number(v, 3) : '')),
    part('text', {x: 12, y: 94}, String(at[0])),
    part('text', {x: 288, y: 94, 'text-anchor': 'end'},
      `${at[at.length - 1]} ${data.runs[open.run].unit}`));
}

// --- Words that a neighbour shares with the document.

const words = text => [...text.matchAll(/[\p{L}\p{N}_]+/gu)].map(found => ({
  word: found[0].toLowerCase(), begin: found.index,
  end: found.index + found[0].length}));

function grams(found) {
  const all = new Map();
  for (let i = 0; i + GRAM <= found.length; i++) {
    const gram = found.slice(i, i + GRAM).map(one => one.word).join(' ');
    if (!all.has(gram)) all.set(gram, []);
    all.get(gram).push(i);
  }
  return all;
}

// [begin, end] of runs of words, of the places where grams begin.
function runs(found, starts) {
  const marked = [];
  for (const start of [...starts].sort((a, b) => a - b)) {
    const begin = found[start].begin, end = found[start + GRAM - 1].end;
    const last = marked[marked.length - 1];
    if (last && begin <= last[1]) last[1] = Math.max(last[1], end);
    else marked.push([begin, end]);
  }
  return marked;
}

function shared(text) {
  const own = words(text), inOwn = new Set(), inDocument = new Set();
  for (const [gram, places] of grams(own)) {
    const there = open.grams.get(gram);
    if (!there) continue;
    places.forEach(place => inOwn.add(place));
    there.forEach(place => inDocument.add(place));
  }
  return {own: runs(own, inOwn), inDocument: runs(open.words, inDocument)};
}

function markInText(intervals) {
  for (const span of open.spans) span.classList.remove('shared');
  let begin = 0, first = null;
  for (const span of open.spans) {
    const end = begin + span.textContent.length;
    if (intervals.some(([b, e]) => b < end && e > begin)) {
      span.classList.add('shared');
      first ??= span;
    }
    begin = end;
  }
  first?.scrollIntoView({block: 'center'});
}

function withMarks(text, intervals) {
  const body = make('div', {className: 'body', tabIndex: 0});
  let done = 0;
  for (const [begin, end] of intervals) {
    body.append(text.slice(done, begin),
      make('mark', {textContent: text.slice(begin, end)}));
    done = end;
  }
  body.append(text.slice(done));
  return body;
}

// (the counts between which a neighbour was used, and what they changed.)
function effect(place) {
  const {at, bits} = open.head;
  const index = at.findIndex(count => count > place);
  if (index < 1 || bits[index] === null || bits[index - 1] === null) return null;
  return {change: bits[index] - bits[index - 1], from: at[index - 1] + 1,
          to: at[index]};
}

function effectOf(found) {
  const others = found.from === found.to ? '' :
    ` by ${found.from} to ${found.to}`;
  const kind = found.change < 0 ? 'less' : found.change > 0 ? 'more' : '';
  return make('span', {className: `effect ${kind}`,
    title: 'change of bits per byte: less is better',
    textContent: `${signed(found.change)} bits/byte${others}`});
}

// A pass over the document's own first part.
function passCard(loss, place) {
  const card = make('article', {className: 'neighbor'},
    make('header', {}, make('b', {textContent: `pass ${place + 1}`}),
      make('span', {}, `loss ${number(loss, 3)}`)));
  card.dataset.number = place + 1;
  const found = effect(place);
  if (found) card.firstChild.append(effectOf(found));
  return card;
}

function neighborCard(neighbor, place) {
  const card = make('article', {className: 'neighbor'});
  card.dataset.number = place + 1;
  const name = neighbor.id === null ? '' : ` \u00b7 ${neighbor.id}`;
  const header = make('header', {}, make('b', {textContent: `${place + 1}${name}`}),
    make('span', {}, `distance ${number(neighbor.distance, 3)}`));
  if (neighbor.overlap !== null)
    header.append(make('span', {textContent:
      `shares ${(100 * neighbor.overlap).toFixed(0)}%`,
    title: 'of the document\u2019s runs of retrieval.overlap_words words'}));
  if (neighbor.loss !== null)
    header.append(make('span', {}, `loss ${number(neighbor.loss, 3)}`));
  if (neighbor.steps !== null)
    header.append(make('span', {},
      `${neighbor.steps} step${neighbor.steps === 1 ? '' : 's'}`));
  if (neighbor.near)
    header.append(make('span', {className: 'badge', textContent: 'near-duplicate'}));
  const found = effect(place);
  if (found) header.append(effectOf(found));
  card.append(header);
  if (neighbor.text === undefined) return card;
  const same = shared(neighbor.text);
  card.append(withMarks(neighbor.text, same.own));
  const footer = make('footer');
  if (neighbor.text.length < neighbor.chars)
    footer.append(make('span', {className: 'soft', textContent:
      `the first ${neighbor.text.length.toLocaleString('en')} of ` +
      `${neighbor.chars.toLocaleString('en')} characters`}));
  if (same.inDocument.length)
    footer.append(make('button', {textContent: 'find shared words in the text',
      onclick: () => markInText(same.inDocument)}));
  if (found && counts().includes(found.to))
    footer.append(make('button', {textContent: 'show its effect', onclick() {
      $('slider').value = counts().indexOf(found.to);
      $('since').value = 'step';
      colour();
    }}));
  if (footer.children.length) card.append(footer);
  return card;
}

// The same document in the other runs.
function showOthers() {
  const list = $('others');
  list.replaceChildren();
  data.runs.forEach((run, other) => {
    if (other === open.run) return;
    const row = [...$(`r${other}`).querySelectorAll('.documents tbody tr')]
      .find(one => one.querySelector('a').textContent === open.head.id);
    if (!row) return;
    list.append(list.childNodes.length ? ', ' : 'In other runs: ',
      make('a', {href: row.querySelector('a').getAttribute('href'),
        textContent: run.name}),
      ` ${row.cells[3].textContent} (${row.cells[4].textContent})`);
  });
}

function showNeighbors() {
  const {head} = open, list = $('neighbors');
  open.words = words(head.text ?? '');
  open.grams = grams(open.words);
  list.replaceChildren(...head.passes.map(passCard));
  if (!head.neighbors.length) return;
  list.append(make('h4', {textContent:
    `${head.neighbors.length} neighbours, in the order of their use` +
    (head.missing ? `; ${head.missing} are missing` : '')}));
  if (head.text !== undefined)
    list.append(make('p', {className: 'soft', textContent:
      `Marked: runs of ${GRAM} or more words that are in the document, too.`}));
  list.append(...head.neighbors.map(neighborCard));
}

async function show(run, place) {
  const text = data.runs[run]?.documents[place];
  if (text === undefined) return;
  if (typeof DecompressionStream === 'undefined') {
    alert('Documents are packed, and this browser cannot unpack them. Newer ' +
      'ones can: Chrome 80, Firefox 113, Safari 16.4.');
    return;
  }
  const mine = ++asked, unpacked = await unpack(text);
  if (mine !== asked) return;  // Another was asked for, or none any more.
  open = {run, place, spans: [], ...unpacked};
  const {head} = open;
  $('name').replaceChildren(head.id, make('span', {className: 'soft',
    textContent: ` \u00b7 ${head.task} \u00b7 ${head.bytes.toLocaleString('en')} bytes` +
      (data.runs.length > 1 ? ` \u00b7 ${data.runs[run].name}` : '')}));
  if (head.neighbors.some(neighbor => neighbor.near))
    $('name').append(' ', make('span', {className: 'badge',
      textContent: 'near-duplicate'}));
  $('unit').textContent = data.runs[run].unit;
  $('slider').max = counts().length - 1;
  $('slider').value = counts().length - 1;
  $('slider').disabled = counts().length < 2;
  $('since').options[0].textContent =
    `change since ${counts()[0]} ${data.runs[run].unit}`;
  $('since').hidden = counts().length < 3 || head.text === undefined;
  $('since').value = 'first';
  $('legend').hidden = counts().length < 2 || head.text === undefined;
  showText();
  showOthers();
  showNeighbors();
  colour();
  for (const part of dialog.querySelectorAll('.inside, .main, .aside'))
    part.scrollTop = 0;
  if (!dialog.open) dialog.showModal();
  for (const body of dialog.querySelectorAll('.body')) {
    const first = body.querySelector('mark');  // To what it shares.
    if (first) body.scrollTop = first.offsetTop - 24;
  }
  $('name').focus();
  dialog.dataset.shown = `${run}.${place}`;
}

function step(by) {
  const rows = visible($(`r${open.run}`));
  const at = rows.findIndex(row => Number(row.dataset.doc) === open.place);
  const next = rows[at + by];
  if (next) location.replace(next.querySelector('a').getAttribute('href'));
}

function leave() {
  asked++;
  dialog.close();
}

$('slider').addEventListener('input', colour);
$('since').addEventListener('input', colour);
$('close').addEventListener('click', leave);
$('previous').addEventListener('click', () => step(-1));
$('next').addEventListener('click', () => step(1));
dialog.addEventListener('close', () => {
  const row = $(`r${open.run}`)
    .querySelector(`.documents tr[data-doc="${open.place}"]`);
  if (/^#r\d+d\d+$/.test(location.hash))
    history.replaceState(null, '', `#r${open.run}`);
  route();
  row?.querySelector('a').focus({preventScroll: true});
});
$('text').addEventListener('mouseover', event => {
  const group = event.target.dataset.group;
  if (group !== undefined) showToken(Number(group));
});
$('text').addEventListener('click', event => {
  const group = event.target.dataset.group;
  if (group !== undefined) showToken(Number(group));
});

$('legend').append('worse',
  ...[...STEPS].reverse().map((step, i) => make('i', {className: '',
    title: `by ${step} bits or more`, 'data-shade': `w${STEPS.length - i}`})),
  make('i', {title: `less than ${STEPS[0]} bits`}),
  ...STEPS.map((step, i) => make('i', {title: `by ${step} bits or more`,
    'data-shade': `b${i + 1}`})), 'better');

// --- Where we are, and keys.

function route() {
  const found = /^#r(\d+)(?:d(\d+))?$/.exec(location.hash);
  const sections = [...document.querySelectorAll('section.run')];
  const wanted = found && $(`r${found[1]}`) ? `r${found[1]}` : sections[0]?.id;
  for (const section of sections)
    section.hidden = sections.length > 1 && section.id !== wanted;
  for (const link of document.querySelectorAll('.tabs a')) {
    if (link.getAttribute('href') === `#${wanted}`) link.ariaCurrent = 'page';
    else link.removeAttribute('aria-current');
  }
  if (found?.[2] !== undefined) show(Number(found[1]), Number(found[2]));
  else leave();
}

function moveToken(by) {
  const now = open.spans.findIndex(span => span.classList.contains('now'));
  const next = Math.min(open.spans.length - 1, Math.max(0, now + by));
  showToken(next);
  open.spans[next]?.scrollIntoView({block: 'nearest'});
}

function keyInDocument(event) {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (event.key === 'Escape') leave();
  else if (event.key === 'j') step(1);
  else if (event.key === 'k') step(-1);
  else if (by && event.shiftKey) step(by);
  else if (by && event.target === $('text')) moveToken(by);
  else if (by && event.target !== $('slider')) {
    $('slider').value = Number($('slider').value) + by;
    colour();
  } else return;
  event.preventDefault();
}

function keyInTable(event, section) {
  const rows = visible(section);
  const at = rows.indexOf(document.activeElement.closest('tr'));
  const arrows = at >= 0 ? {ArrowDown: 1, ArrowUp: -1} : {};
  const by = {j: 1, k: -1, ...arrows}[event.key];
  if (event.key === '/') section.querySelector('.filter').focus();
  else if (by) {
    const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
    next?.querySelector('a').focus();
  } else return;
  event.preventDefault();
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const isWriting = event.target.matches('input[type=search], select');
  if (isWriting && event.target.matches('.filter')) {
    const section = event.target.closest('section');
    if (event.key === 'Escape') {
      event.target.value = '';
      filter(section);
      event.target.blur();
    } else if (event.key === 'Enter' || event.key === 'ArrowDown') {
      visible(section)[0]?.querySelector('a').focus();
    }
  }
  if (isWriting) return;
  const section = [...document.querySelectorAll('section.run')]
    .find(one => !one.hidden && one.querySelector('.documents'));
  if (dialog.open) keyInDocument(event);
  else if (section) keyInTable(event, section);
});

addEventListener('hashchange', route);
route();
