'use strict';
// The page's scripts are one, in the order of page.py. Text of documents
// reaches the page by textContent alone.

const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const dialog = $('document');

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
