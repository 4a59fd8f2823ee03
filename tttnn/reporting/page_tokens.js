// The text of a document, coloured by its tokens, and its curve.

const STEPS = [0.1, 0.4, 1, 2];  // Bits, from which on colours get stronger.
const UNKNOWN = -32768;
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
    const name = [kind + line, ...kept].join(' ').trim();
    if (span.className !== name) span.className = name;
  });
  showCurve(index);
  for (const card of document.querySelectorAll('.neighbor'))
    card.classList.toggle('on', Number(card.dataset.number) <= count);
  const now = open.spans.findIndex(span => span.classList.contains('now'));
  showToken(now < 0 ? null : now);
}

function showToken(group) {
  const bar = $('token');
  for (const span of $('text').querySelectorAll('.now'))
    span.classList.remove('now');
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
