"use strict";
// Show one image after the other: mark, then rank and rate. Each choice is saved at once; the server gives the next
// image. The token stays in this browser tab; the server never sends the names of models.

const byId = (id) => document.getElementById(id);
const MOST_POINTS = 600;
const MOST_REGIONS = 20;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const token = readToken();
let state = null;
let image = null;
let regions = [];
let drawing = null;
let dragged = false; // drawing with a pointer, not by keyboard
let cross = null; // position of the keyboard's cross
let saving = Promise.resolve(); // choices are sent in order, so that the last one is saved last
const latest = {}; // the last choice in each group of buttons
const unsaved = new Set(); // groups whose last choice was not saved
const problems = new Map(); // errors, each until the next success
let links = [];

function readToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname);
    try { sessionStorage.setItem("reader", token); } catch { /* for this page only */ }
    return token;
  }
  try { return sessionStorage.getItem("reader") || ""; } catch { return ""; }
}

async function ask(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  const options = body === undefined ? { headers } : {
    method: "PUT", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(`api/v1/${path}`, options);
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body && body.error ? body.error.message : "the server gave no valid answer");
  }
  return response;
}

async function picture(path) {
  const link = URL.createObjectURL(await (await ask(path)).blob());
  links.push(link);
  return link;
}

function showProblem(about, text) {
  problems.delete(about);
  if (text) problems.set(about, text);
  byId("problem").textContent = [...problems.values()].join(" ");
  byId("problem").hidden = problems.size === 0;
}

const reason = (fault) => fault.message || String(fault);

function guarded(about, work) {
  return (...options) => work(...options).then(() => showProblem(about, ""), (fault) => showProblem(about, reason(fault)));
}

// A link with another token changes only the part after #, but it is another reader's page.
window.addEventListener("hashchange", () => location.reload());

const start = guarded("start", async () => {
  if (!token) {
    throw new Error("Open the link that you were sent: it holds your token.");
  }
  try {
    await go(await (await ask("state")).json());
  } catch (fault) {
    throw new Error(`${reason(fault)}. Reload this page to try again.`);
  }
});

// The old image stays until the next one is loaded, so that a failed request can be repeated.
async function go(now) {
  const before = links;
  links = [];
  let answers = null;
  let source = null;
  if (now.next !== null) {
    try {
      answers = await (await ask(`images/${now.next}`)).json();
      source = await picture(`images/${now.next}/image.png`);
      await decoded(source);
    } catch (fault) {
      links.forEach((link) => URL.revokeObjectURL(link));
      links = before;
      throw fault;
    }
  }
  before.forEach((link) => URL.revokeObjectURL(link));
  state = now;
  byId("reader").textContent = state.reader;
  byId("who").hidden = false;
  byId("bar").max = state.images;
  byId("bar").value = state.done.length;
  byId("count").textContent = `${state.done.length} of ${state.images}`;
  byId("reading").hidden = state.next === null;
  byId("end").hidden = state.next !== null;
  if (state.next === null) {
    byId("title").textContent = "Reading";
    byId("end-title").focus();
    return;
  }
  byId("title").textContent = `Image ${state.next + 1} of ${state.images}`;
  byId("judging").hidden = true;
  byId("judging-title").textContent = state.maps > 1 ? "2. Compare the heatmaps" : "2. Rate the heatmap";
  byId("ranking").hidden = state.maps === 1;
  problems.clear();
  image = answers;
  regions = image.mark ? image.mark.regions : [];
  drawing = cross = null;
  byId("image").src = source;
  await byId("image").decode();
  byId("title").focus();
  await shown();
}

async function decoded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
}

async function shown() {
  const marked = image.mark !== null;
  byId("marking").classList.toggle("read", marked);
  ink.tabIndex = marked ? -1 : 0;
  draw();
  if (marked) await load();
}

// Load the maps of a marked image; after an error a button loads them again.
const load = guarded("maps", async () => {
  try {
    await maps();
    byId("reload").hidden = true;
  } catch (fault) {
    byId("reload").hidden = false;
    throw fault;
  }
});
byId("reload").addEventListener("click", () => load());

// --- marking ---

const ink = byId("ink");

const share = (value) => Math.round(Math.min(Math.max(value, 0), 1) * 1e4) / 1e4;

function at(event) {
  const box = ink.getBoundingClientRect();
  return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
}

function begin(point) {
  if (regions.length === MOST_REGIONS) {
    showProblem("drawing", `At most ${MOST_REGIONS} marks per image.`);
    return;
  }
  const kind = document.querySelector("input[name=tool]:checked").value;
  drawing = { kind, points: [point, point] };
}

function finish() {
  if (drawing && large(drawing)) regions.push(drawing);
  drawing = null;
}

ink.addEventListener("pointerdown", (event) => {
  if (!image || image.mark || !event.isPrimary) return;
  ink.setPointerCapture(event.pointerId);
  cross = null;
  dragged = true;
  begin(at(event));
});
ink.addEventListener("pointermove", (event) => {
  if (!drawing || !dragged) return;
  if (drawing.kind === "box") drawing.points[1] = at(event);
  else if (drawing.points.length < MOST_POINTS) drawing.points.push(at(event));
  draw();
});
for (const kind of ["pointerup", "pointercancel"]) {
  ink.addEventListener(kind, () => {
    if (!dragged) return;
    if (kind === "pointercancel") drawing = null;
    finish();
    dragged = false;
    draw();
  });
}

ink.addEventListener("focus", () => {
  if (image && !image.mark && ink.matches(":focus-visible")) {
    cross = cross || [0.5, 0.5];
    draw();
  }
});
ink.addEventListener("blur", () => {
  if (!dragged) drawing = null;
  draw();
});
ink.addEventListener("keydown", (event) => {
  const handled = event.key in MOVES || ["Enter", " ", "Escape", "Backspace"].includes(event.key);
  if (!image || image.mark || dragged || !handled || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  cross = cross || [0.5, 0.5];
  if (event.key in MOVES) move(MOVES[event.key], event.shiftKey ? 0.05 : 0.01);
  else if (event.key === "Escape") drawing = null;
  else if (event.key === "Backspace") takeBack();
  else corner();
  draw();
});

function move(direction, step) {
  cross = cross.map((value, k) => share(value + step * direction[k]));
  if (drawing) drawing.points[drawing.points.length - 1] = cross;
}

// The last point of what is drawn follows the cross.
function corner() {
  if (!drawing) {
    begin(cross);
    return;
  }
  const { kind, points } = drawing;
  const [before, last] = points.slice(-2);
  const closed = before[0] === last[0] && before[1] === last[1];
  if (kind === "outline" && closed) points.pop();
  if (kind === "box" || closed) finish();
  else if (points.length < MOST_POINTS) points.push(cross);
}

function takeBack() {
  drawing = null;
  regions.pop();
  showProblem("drawing", "");
  draw();
}

function large(region) {
  const [x, y] = [0, 1].map((k) => region.points.map((point) => point[k]));
  const enough = Math.max(...x) - Math.min(...x) > 0.005 && Math.max(...y) - Math.min(...y) > 0.005;
  return enough && (region.kind === "box" || region.points.length > 2);
}

function draw() {
  const box = ink.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  ink.width = Math.round(box.width * scale);
  ink.height = Math.round(box.height * scale);
  const pen = ink.getContext("2d");
  for (const [width, colour] of [[5, "#000"], [2.5, "#ffd21f"]]) {
    pen.lineWidth = width * scale;
    pen.strokeStyle = colour;
    for (const region of drawing ? [...regions, drawing] : regions) path(pen, region);
    if (cross && document.activeElement === ink) plus(pen, 14 * scale);
  }
  where();
  byId("undo").disabled = regions.length === 0;
  byId("save").disabled = regions.length === 0;
  byId("none").disabled = regions.length > 0;
}

function path(pen, region) {
  const points = region.points.map(([x, y]) => [x * ink.width, y * ink.height]);
  pen.beginPath();
  if (region.kind === "box") {
    const [[a, b], [c, d]] = points;
    pen.rect(a, b, c - a, d - b);
  } else {
    points.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
  }
  pen.stroke();
}

function plus(pen, length) {
  const [x, y] = [cross[0] * ink.width, cross[1] * ink.height];
  pen.beginPath();
  pen.moveTo(x - length, y);
  pen.lineTo(x + length, y);
  pen.moveTo(x, y - length);
  pen.lineTo(x, y + length);
  pen.stroke();
}

function where() {
  const percent = (value) => `${Math.round(100 * value)} %`;
  const marks = `${regions.length} ${regions.length === 1 ? "mark" : "marks"} on the image.`;
  const position = cross ? ` Cross at ${percent(cross[0])} from the left, ${percent(cross[1])} from the top.` : "";
  byId("where").textContent = image.mark ? "" : `${marks}${position}${drawing && !dragged ? " Drawing." : ""}`;
}

window.addEventListener("resize", () => { if (image) draw(); });
byId("undo").addEventListener("click", takeBack);

const save = guarded("marks", async (marks) => {
  try {
    image = await (await ask(`images/${state.next}/mark`, { regions: marks })).json();
    showProblem("drawing", "");
  } catch (fault) {
    // Perhaps only the answer was lost, or the image was marked in another window: saved marks stay.
    const now = await (await ask(`images/${state.next}`)).json();
    if (now.mark === null) throw fault;
    const others = JSON.stringify(now.mark.regions) !== JSON.stringify(marks);
    image = now;
    regions = now.mark.regions;
    drawing = cross = null;
    showProblem("drawing", others ? "This image was marked already: the first marks are shown, and stay." : "");
  }
  await shown();
  byId("judging-title").focus();
});
byId("save").addEventListener("click", () => save(regions));
byId("none").addEventListener("click", () => save([]));

// --- ranking and rating ---

async function maps() {
  const list = byId("maps");
  const parts = image.responses.map((response) => makeMap(response));
  await Promise.all(parts.map(async (part, k) => {
    part.querySelector(".image").src = byId("image").src;
    part.querySelector(".heat").src = await picture(`images/${state.next}/maps/${k}.png`);
  }));
  list.replaceChildren(...parts);
  fade();
  byId("judging").hidden = false;
  counted();
}

function makeMap(response) {
  const part = byId("map").content.firstElementChild.cloneNode(true);
  const name = `Map ${String.fromCharCode(65 + response.map)}`;
  part.querySelector("figcaption").textContent = name;
  part.querySelector(".heat").alt = `${name}: heatmap over the image`;
  const ranks = Array.from({ length: state.maps }, (_, k) => k + 1);
  if (state.maps > 1) choices(part.querySelector(".rank"), name, "rank", ranks, response);
  else part.querySelector(".rank").hidden = true;
  choices(part.querySelector(".rating"), name, "rating", state.ratings, response);
  return part;
}

function choices(group, name, what, values, response) {
  group.setAttribute("aria-label", `${name}: ${what}`);
  for (const value of values) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "radio";
    input.name = `${what}-${response.map}`;
    input.value = String(value);
    input.checked = response[what] === value;
    input.addEventListener("change", () => judge(response.map, what, value));
    label.append(input, String(value));
    group.append(label);
  }
}

function judge(map, what, value) {
  const choice = { number: state.next, map, what, value };  // number: of the image shown now, even if it is sent later
  latest[`${what}-${map}`] = choice;
  saving = saving.then(() => send(choice));
}

async function send(choice) {
  const { number, map, what, value } = choice;
  const name = `${what}-${map}`;
  try {
    const answers = await (await ask(`images/${number}/responses`, { map, [what]: value })).json();
    if (number !== state.next) return;
    image = answers;
  } catch (fault) {
    if (number !== state.next) return;
    // Perhaps it was saved, and only the answer was lost.
    image = await ask(`images/${number}`).then((response) => response.json()).catch(() => image);
    if (image.responses[map][what] !== value) {
      unsaved.add(name);
      const label = `Map ${String.fromCharCode(65 + map)}`;
      showProblem(name, `${label}: ${what} was not saved; the old choice stays: ${reason(fault)}.`);
      if (latest[name] === choice) choose(name, image.responses[map][what]);
      byId("status").textContent = "";
      return;
    }
  }
  unsaved.delete(name);
  showProblem(name, "");
  showProblem("next", "");
  counted();
  byId("status").textContent = "Saved.";
}

function choose(name, value) {
  for (const input of document.querySelectorAll(`input[name=${name}]`)) input.checked = input.value === String(value);
}

function counted() {
  const missing = image.responses.filter((response) => response.rank === null || response.rating === null).length;
  byId("next").disabled = missing > 0;
  const needed = state.maps > 1 ? `${missing} of ${state.maps} maps still need a rank or a rating` : "The map still needs a rating";
  byId("missing").textContent = missing ? needed : "";
}

byId("next").addEventListener("click", guarded("next", async () => {
  await saving;
  if (unsaved.size) {
    unsaved.clear();
    throw new Error("Choose again, or go on without it: Next image.");
  }
  const now = await (await ask("state")).json();
  byId("status").textContent = "";
  await go(now);
}));

function fade() {
  const share = byId("opacity").value;
  byId("opacity").nextElementSibling.textContent = `${share} %`;
  for (const heat of document.querySelectorAll(".heat")) heat.style.opacity = String(share / 100);
}
byId("opacity").addEventListener("input", fade);

start();
