// The neighbours of a document, and the words that they share with it.

const GRAM = 5;  // Words of a run that counts as shared.

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
