
'use strict';
// Add a dark theme, sorting, filters, values under the pointer and a slider. The page works without them.
const dark = document.getElementById('dark');
const create = (kind, more = {}) => Object.assign(document.createElement(kind), more);

function stored(key, value) {
  try {
    return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value);
  } catch { return null; }  // without storage the theme lasts as long as the page
}

function isDark() { return matchMedia(dark.media).matches; }

function paint(wanted) { dark.media = wanted ? 'screen' : 'not all'; }

if (stored('trustcxr-dark') !== null) paint(stored('trustcxr-dark') === 'yes');

function switches() {
  const theme = document.getElementById('theme'), unfold = document.getElementById('unfold');
  const name = () => { theme.textContent = isDark() ? 'Light' : 'Dark'; };
  theme.addEventListener('click', () => {
    paint(!isDark());
    stored('trustcxr-dark', isDark() ? 'yes' : 'no');
    name();
  });
  name();
  const folds = [...document.querySelectorAll('details')];
  unfold.hidden = !folds.length;
  unfold.addEventListener('click', () => {
    const open = folds.some(fold => !fold.open);
    for (const fold of folds) fold.open = open;
    unfold.textContent = open ? 'Fold all' : 'Unfold all';
  });
  theme.parentNode.hidden = false;
}

// --- tables --------------------------------------------------------------------------------------------------------
function cellValue(row, index) {
  const data = row.cells[index].querySelector('data');
  return data ? Number(data.value) : row.cells[index].textContent.trim();
}

function empty(value) { return value === '' || value === '–' || value === '-'; }

function order(index, up) {
  return (one, other) => {
    const x = cellValue(one, index), y = cellValue(other, index);
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    const step = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
    return up ? step : -step;
  };
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, index) => {
    if (!head.textContent.trim()) return;
    const button = create('button', {type: 'button', textContent: head.textContent});
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const before = head.getAttribute('aria-sort');
      const text = typeof cellValue(body.rows[0], index) === 'string';
      const up = before ? before === 'descending' : text;  // figures: the highest first
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...[...body.rows].sort(order(index, up)));
    });
  });
}

function filtered(table, tools, name) {
  const rows = [...table.tBodies[0].rows], status = create('span', {role: 'status'});
  const field = create('input', {type: 'search', placeholder: 'Filter'});
  field.setAttribute('aria-label', `Filter: ${name}`);
  field.addEventListener('input', () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    status.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : '';
  });
  tools.prepend(field, status);
}

function tables() {
  for (const table of document.querySelectorAll('table.sorts')) {
    const frame = table.closest('.table'), rows = table.tBodies[0].rows.length;
    if (rows < 2) continue;
    sortable(table);
    if (rows > (table.classList.contains('stack') ? 3 : 7)) filtered(table, frame.querySelector('.tools'), frame.querySelector('.scroll').ariaLabel);
  }
}

// --- drawings and heatmaps -----------------------------------------------------------------------------------------
function values() {
  const tip = document.getElementById('tip');
  for (const mark of document.querySelectorAll('svg .titled')) {
    const title = mark.querySelector('title');
    mark.dataset.title = title.textContent;
    title.remove();  // shown below without delay, and on touch
  }
  document.addEventListener('pointerover', event => {
    const mark = event.target.closest?.('svg .titled');
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.title;
    const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  });
}

function choice(maps, chosen, name, changed) {
  const field = create('select');
  field.append(...maps.map((map, index) => new Option(map.dataset.map, index, false, index === chosen)));
  field.addEventListener('change', changed);
  const label = create('label', {textContent: `${name} `});
  label.append(field);
  return [label, field];
}

function slider(example) {
  const maps = [...example.querySelectorAll('figure[data-map]')];
  if (maps.length < 2) return;
  const network = map => map.dataset.map.split(' · ')[0];
  const second = Math.max(1, maps.findIndex((map, index) => index && network(map) === network(maps[0])));
  const below = create('img'), above = create('img'), stack = create('div', {className: 'stack'});
  const range = create('input', {type: 'range', min: 0, max: 100, value: 50});
  stack.append(below, above);
  const show = () => {
    for (const [picture, field] of [[below, left], [above, right]]) {
      const from = maps[field.value].querySelector('img');
      Object.assign(picture, {src: from.src, alt: from.alt});
    }
    const names = [left, right].map(field => maps[field.value].dataset.map);
    range.setAttribute('aria-label', `From ${names[0]} to ${names[1]}`);
    stack.style.setProperty('--at', `${range.value}%`);
  };
  const [leftLabel, left] = choice(maps, 0, 'Left', () => show());
  const [rightLabel, right] = choice(maps, second, 'Right', () => show());
  range.addEventListener('input', show);
  const fold = create('details', {className: 'compare'});
  fold.append(create('summary', {textContent: 'Slide between two heatmaps'}), leftLabel, rightLabel, stack, range);
  fold.addEventListener('toggle', () => { if (fold.open) show(); });
  example.append(fold);
}

document.addEventListener('DOMContentLoaded', () => {
  for (const example of document.querySelectorAll('.example')) slider(example);
  switches();
  tables();
  values();
});
