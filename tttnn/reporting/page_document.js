// Documents open and close, and keys lead through all.

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
