
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

function sortNarrow(table) {  // on a phone a stacked table has no header to press
  const buttons = [...table.tHead.querySelectorAll('button')];
  const field = select([new Option('rank', ''), ...buttons.map((button, index) => new Option(button.textContent, index))],
    () => buttons[field.value]?.click());
  field.options[0].disabled = true;
  return Object.assign(named('Sort by', field), {className: 'narrow'});
}

function hide(row, why, value) {
  row.reasons = {...row.reasons, [why]: value};
  row.hidden = Object.values(row.reasons).some(Boolean);
}

function filtered(table, tools, name) {
  const rows = [...table.tBodies[0].rows], status = create('span', {role: 'status'});
  const field = create('input', {type: 'search', placeholder: 'Filter'});
  field.setAttribute('aria-label', `Filter: ${name}`);
  field.addEventListener('input', () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) hide(row, 'words', !words.every(word => row.textContent.toLowerCase().includes(word)));
    status.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : '';
  });
  tools.prepend(field, status);
}

function tables() {
  for (const table of document.querySelectorAll('table.sorts')) {
    const frame = table.closest('.table'), rows = table.tBodies[0].rows.length;
    if (rows < 2) continue;
    sortable(table);
    if (table.classList.contains('stack')) frame.querySelector('.tools').prepend(sortNarrow(table));
    if (rows > (table.classList.contains('stack') ? 3 : 7)) filtered(table, frame.querySelector('.tools'), frame.querySelector('.scroll').ariaLabel);
  }
}

// --- leaderboard ---------------------------------------------------------------------------------------------------
function board() {
  const source = document.getElementById('board-data');
  if (!source) return;
  const frames = [...document.querySelectorAll('.ranked')], tables = JSON.parse(source.textContent);
  const rows = frames.flatMap((frame, at) => [...frame.querySelectorAll('tbody tr')].map(
    (element, index) => ({element, frame, ...tables[at].rows[index]})));
  frames.forEach((frame, at) => { if (tables[at].rows.length > 1) frame.append(pair(tables[at])); });
  if (rows.length > 1) filters(document.getElementById('filters'), frames, rows);
}

function filters(tools, frames, rows) {
  const status = create('span', {role: 'status'}), chosen = {}, sound = create('input', {type: 'checkbox'});
  const apply = () => {
    const shown = row => (!sound.checked || row.sound)
      && Object.entries(chosen).every(([key, field]) => !field.value || row.filters[key] === field.value);
    for (const row of rows) hide(row.element, 'choice', !shown(row));
    const left = rows.filter(shown);
    for (const frame of frames) frame.hidden = !left.some(row => row.frame === frame);
    status.textContent = left.length < rows.length ? `${left.length} of ${rows.length} rows` : '';
  };
  tools.append(status);
  for (const key of Object.keys(rows[0].filters)) {
    const values = [...new Set(rows.map(row => row.filters[key]))].filter(Boolean).sort();
    if (values.length < 2) continue;
    chosen[key] = select([new Option('all', ''), ...values.map(value => new Option(value))], apply);
    tools.append(named(key, chosen[key]));
  }
  sound.addEventListener('change', apply);
  if (rows.some(row => !row.sound)) tools.append(named('only sound', sound));
}

function select(options, changed) {
  const field = create('select');
  field.append(...options);
  field.addEventListener('change', changed);
  return field;
}

function named(text, field) {
  const label = create('label', {textContent: `${text} `});
  label.append(field);
  return label;
}

function pair(table) {
  const fold = create('details', {className: 'compare'}), result = create('div', {className: 'scroll'});
  const fields = [0, 1].map(start => select(
    table.rows.map((row, index) => new Option(row.name, index, false, index === start)), () => show()));
  const show = () => {
    const [i, j] = fields.map(field => Number(field.value)).sort((one, other) => one - other);
    result.replaceChildren(...i === j ? [create('p', {textContent: 'Choose two different rows.'})] : compared(table, i, j));
  };
  fold.append(create('summary', {textContent: 'Compare two rows'}), named('First', fields[0]), named('Second', fields[1]), result);
  show();
  return fold;
}

function compared(table, i, j) {
  const [one, other] = [table.rows[i], table.rows[j]], figures = table.pairs[`${i} ${j}`] || {};
  const percent = value => `${value < 0 ? '−' : value > 0 ? '+' : ''}${Math.abs(100 * value).toFixed(1)}`;
  const lines = [[one.name, key => one.figures[key]], [other.name, key => other.figures[key]]];
  const ofPair = format => key => figures[key] ? format(figures[key]) : 'not known';
  lines.push([`${other.name} less ${one.name}, paired`,
    ofPair(([value, low, high]) => `${percent(value)} (${percent(low)} to ${percent(high)})`)]);
  if (figures.clean) {
    lines.push([`right in ${one.name} alone`, ofPair(all => all[3])], [`right in ${other.name} alone`, ofPair(all => all[4])],
      ['images of both', ofPair(all => all[5])]);
  }
  const element = create('table'), head = element.createTHead().insertRow(), body = element.createTBody();
  for (const text of ['', 'clean, %', `attacked${table.attack ? ` by ${table.attack}` : ''}, %`]) {
    head.append(create(text ? 'th' : 'td', text ? {scope: 'col', className: 'number', textContent: text} : {}));
  }
  for (const [name, text] of lines) {
    const row = body.insertRow();
    row.append(create('th', {scope: 'row', textContent: name}));
    for (const key of ['clean', 'attacked']) row.append(create('td', {textContent: text(key)}));
  }
  const remarks = [one, other].flatMap(row => row.remarks.map(remark => `${row.name}: ${remark}.`));
  if (!figures.clean && !remarks.some(text => text.includes('single images'))) remarks.push('The two have results of different images.');
  if (!figures.clean) remarks.push('So only the interval of each is known, and not that of the difference.');
  else remarks.push('95 % intervals over patients, for two rows chosen beforehand: among many pairs some differ by chance.');
  return [element, ...remarks.map(textContent => create('p', {textContent}))];
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
  const field = select(maps.map((map, index) => new Option(map.dataset.map, index, false, index === chosen)), changed);
  return [named(name, field), field];
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
  board();
  values();
});
