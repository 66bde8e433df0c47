"use strict";
// One film after the other: mark, then rank and rate. Each choice is saved when it is made; the server says where to go
// on. The token stays in this browser tab; whose map is whose is never sent here.

const byId = (id) => document.getElementById(id);
const MOST_POINTS = 600;
const token = readToken();
let state = null;
let film = null;
let regions = [];
let drawing = null;
let links = [];

function readToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    history.replaceState(null, "", location.pathname);
    try { sessionStorage.setItem("reader", found); } catch { /* kept for this page only */ }
    return found;
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
    const said = await response.json().catch(() => null);
    throw new Error(said && said.error ? said.error.message : "the server does not answer as it should");
  }
  return response;
}

async function picture(path) {
  const link = URL.createObjectURL(await (await ask(path)).blob());
  links.push(link);
  return link;
}

function tell(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function guarded(work) {
  return (...given) => work(...given).then(() => tell(""), (fault) => tell(fault.message || String(fault)));
}

const start = guarded(async () => {
  if (!token) {
    throw new Error("Open the link that you were sent: it holds your token.");
  }
  state = await (await ask("state")).json();
  await go();
});

async function go() {
  byId("bar").max = state.films;
  byId("bar").value = state.done.length;
  byId("count").textContent = `${state.done.length} of ${state.films}`;
  byId("reading").hidden = state.next === null;
  byId("end").hidden = state.next !== null;
  if (state.next === null) {
    byId("title").textContent = "Reading";
    return;
  }
  links.forEach((link) => URL.revokeObjectURL(link));
  links = [];
  byId("title").textContent = `Film ${state.next + 1} of ${state.films}`;
  byId("judging").hidden = true;
  film = await (await ask(`films/${state.next}`)).json();
  regions = film.mark ? film.mark.regions : [];
  byId("film").src = await picture(`films/${state.next}/film.png`);
  await byId("film").decode();
  byId("title").focus();
  await shown();
}

async function shown() {
  const marked = film.mark !== null;
  byId("marking").classList.toggle("read", marked);
  draw();
  if (marked) await maps();
}

// --- marking ---

const ink = byId("ink");

function at(event) {
  const box = ink.getBoundingClientRect();
  const share = (value) => Math.min(Math.max(value, 0), 1);
  return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
}

ink.addEventListener("pointerdown", (event) => {
  if (!film || film.mark || !event.isPrimary) return;
  ink.setPointerCapture(event.pointerId);
  const kind = document.querySelector("input[name=tool]:checked").value;
  drawing = { kind, points: [at(event), at(event)] };
});
ink.addEventListener("pointermove", (event) => {
  if (!drawing) return;
  if (drawing.kind === "box") drawing.points[1] = at(event);
  else if (drawing.points.length < MOST_POINTS) drawing.points.push(at(event));
  draw();
});
for (const kind of ["pointerup", "pointercancel"]) {
  ink.addEventListener(kind, () => {
    if (drawing && kind === "pointerup" && large(drawing)) regions.push(drawing);
    drawing = null;
    draw();
  });
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
  }
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

window.addEventListener("resize", () => { if (film) draw(); });
byId("undo").addEventListener("click", () => { regions.pop(); draw(); });

const save = guarded(async (found) => {
  film = await (await ask(`films/${state.next}/mark`, { regions: found })).json();
  await shown();
});
byId("save").addEventListener("click", () => save(regions));
byId("none").addEventListener("click", () => save([]));

// --- ranking and rating ---

async function maps() {
  const place = byId("maps");
  const parts = film.said.map((said) => one(said));
  await Promise.all(parts.map(async (part, k) => {
    part.querySelector(".film").src = byId("film").src;
    part.querySelector(".heat").src = await picture(`films/${state.next}/maps/${k}.png`);
  }));
  place.replaceChildren(...parts);
  fade();
  byId("judging").hidden = false;
  counted();
}

function one(said) {
  const part = byId("map").content.firstElementChild.cloneNode(true);
  const name = `Map ${String.fromCharCode(65 + said.place)}`;
  part.querySelector("figcaption").textContent = name;
  part.querySelector(".heat").alt = `${name}: heatmap over the film`;
  const ranks = Array.from({ length: state.maps }, (_, k) => k + 1);
  choices(part.querySelector(".rank"), name, "rank", ranks, said);
  choices(part.querySelector(".rating"), name, "rating", state.ratings, said);
  return part;
}

function choices(group, name, what, values, said) {
  group.setAttribute("aria-label", `${name}: ${what}`);
  for (const value of values) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "radio";
    input.name = `${what}-${said.place}`;
    input.value = String(value);
    input.checked = said[what] === value;
    input.addEventListener("change", () => judge({ place: said.place, [what]: value }));
    label.append(input, String(value));
    group.append(label);
  }
}

const judge = guarded(async (said) => {
  film = await (await ask(`films/${state.next}/said`, said)).json();
  counted();
  byId("status").textContent = "Saved.";
});

function counted() {
  const missing = film.said.filter((said) => said.rank === null || said.rating === null).length;
  byId("next").disabled = missing > 0;
  byId("missing").textContent = missing ? `${missing} of ${state.maps} maps still want a rank or a rating` : "";
}

byId("next").addEventListener("click", guarded(async () => {
  state = await (await ask("state")).json();
  byId("status").textContent = "";
  await go();
}));

function fade() {
  const share = byId("opacity").value;
  byId("opacity").nextElementSibling.textContent = `${share} %`;
  for (const heat of document.querySelectorAll(".heat")) heat.style.opacity = String(share / 100);
}
byId("opacity").addEventListener("input", fade);

start();
