
'use strict';
// Adds to the page what it can do without: a switch for the dark, sorting, filters, values under the pointer, a slider.
const dark = document.getElementById('dark');
const made = (kind, more = {}) => Object.assign(document.createElement(kind), more);

function kept(key, value) {
  try {
    return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value);
  } catch { return null; }  // a browser may forbid to keep anything: the switch then lasts as long as the page
}

function isDark() { return matchMedia(dark.media).matches; }

function paint(wanted) { dark.media = wanted ? 'screen' : 'not all'; }

if (kept('trustcxr-dark') !== null) paint(kept('trustcxr-dark') === 'yes');

function switches() {
  const theme = document.getElementById('theme'), unfold = document.getElementById('unfold');
  const name = () => { theme.textContent = isDark() ? 'Light' : 'Dark'; };
  theme.addEventListener('click', () => {
    paint(!isDark());
    kept('trustcxr-dark', isDark() ? 'yes' : 'no');
    name();
  });
  name();
  const folds = [...document.querySelectorAll('details')];
  unfold.hidden = !folds.length;
  unfold.addEventListener('click', () => {
    const open = folds.some(fold => !fold.open);
    for (const fold of folds) fold.open = open;
    unfold.textContent = open ? 'Fold again' : 'Unfold all';
  });
  theme.parentNode.hidden = false;
}

// --- tables --------------------------------------------------------------------------------------------------------
function worth(row, place) {
  const data = row.cells[place].querySelector('data');
  return data ? Number(data.value) : row.cells[place].textContent.trim();
}

function empty(value) { return value === '' || value === '–' || value === '-'; }

function order(place, up) {
  return (one, other) => {
    const x = worth(one, place), y = worth(other, place);
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    const step = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
    return up ? step : -step;
  };
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => {
    if (!head.textContent.trim()) return;
    const button = made('button', {type: 'button', textContent: head.textContent});
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const before = head.getAttribute('aria-sort');
      const text = typeof worth(body.rows[0], place) === 'string';
      const up = before ? before === 'descending' : text;  // figures: the highest first
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...[...body.rows].sort(order(place, up)));
    });
  });
}

function filtered(table, tools, name) {
  const rows = [...table.tBodies[0].rows], said = made('span', {role: 'status'});
  const field = made('input', {type: 'search', placeholder: 'Filter'});
  field.setAttribute('aria-label', `Filter: ${name}`);
  field.addEventListener('input', () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    said.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : '';
  });
  tools.prepend(field, said);
}

function tables() {
  for (const table of document.querySelectorAll('table.sorts')) {
    const place = table.closest('.table'), rows = table.tBodies[0].rows.length;
    if (rows < 2) continue;
    sortable(table);
    if (rows > (table.classList.contains('stack') ? 3 : 7)) filtered(table, place.querySelector('.tools'), place.querySelector('.scroll').ariaLabel);
  }
}

// --- drawings and heatmaps -----------------------------------------------------------------------------------------
function values() {
  const tip = document.getElementById('tip');
  for (const mark of document.querySelectorAll('svg .said')) {
    const title = mark.querySelector('title');
    mark.dataset.said = title.textContent;
    title.remove();  // shown below, at once, and on a touch too
  }
  document.addEventListener('pointerover', event => {
    const mark = event.target.closest?.('svg .said');
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.said;
    const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  });
}

function choice(maps, chosen, name, changed) {
  const field = made('select');
  field.append(...maps.map((map, place) => new Option(map.dataset.map, place, false, place === chosen)));
  field.addEventListener('change', changed);
  const label = made('label', {textContent: `${name} `});
  label.append(field);
  return [label, field];
}

function slider(example) {
  const maps = [...example.querySelectorAll('figure[data-map]')];
  if (maps.length < 2) return;
  const network = map => map.dataset.map.split(' · ')[0];
  const second = Math.max(1, maps.findIndex((map, place) => place && network(map) === network(maps[0])));
  const below = made('img'), above = made('img'), stack = made('div', {className: 'stack'});
  const range = made('input', {type: 'range', min: 0, max: 100, value: 50});
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
  const fold = made('details', {className: 'compare'});
  fold.append(made('summary', {textContent: 'Slide between two heatmaps'}), leftLabel, rightLabel, stack, range);
  fold.addEventListener('toggle', () => { if (fold.open) show(); });
  example.append(fold);
}

document.addEventListener('DOMContentLoaded', () => {
  for (const example of document.querySelectorAll('.example')) slider(example);
  switches();
  tables();
  values();
});
