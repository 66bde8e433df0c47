"use strict";
// Send an image to the API and show the answer. Text of the server is set as text, never as markup. The name of a file
// stays in the browser's file field.

const byId = (id) => document.getElementById(id);
const images = [null, null];
const links = new Set();
let served = null;
let token = readToken();
let round = 0;

function readToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname);
    try { sessionStorage.setItem("token", token); } catch { /* for this page only */ }
    return token;
  }
  try { return sessionStorage.getItem("token") || ""; } catch { return ""; }
}

// A link with another token changes only the part after #.
window.addEventListener("hashchange", () => location.reload());

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function start() {
  const response = await fetch("api/v1/runs", { headers: headers() });
  byId("key").hidden = response.status !== 401;
  if (response.status === 401) {
    byId("status").textContent = token ? "This token is not the server's." : "This server asks for its token.";
    return;
  }
  served = await response.json();
  byId("status").textContent = "";
  byId("version").textContent = served.version;
  const names = served.runs.map((run) => run.name);
  byId("served").textContent = names.length > 1 ? `Compared: ${names.join(" and ")}` : `Network: ${names[0]}`;
  if (images.some(Boolean)) show();
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  byId("token").value = "";
  try { sessionStorage.setItem("token", token); } catch { /* for this page only */ }
  start().catch(showLost);
});

for (const zone of document.querySelectorAll(".drop")) {
  const slot = Number(zone.dataset.slot);
  const input = zone.querySelector("input");
  input.addEventListener("change", () => { if (input.files.length) take(slot, [...input.files]); });
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files.length) { input.value = ""; take(slot, [...event.dataTransfer.files]); }
  });
}
// An image dropped outside the fields must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());

byId("anyway").addEventListener("change", () => { if (images.some(Boolean)) show(); });

byId("clear").addEventListener("click", () => {
  images.fill(null);
  for (const input of document.querySelectorAll("input[type=file]")) input.value = "";
  round += 1;
  empty();
  byId("clear").hidden = true;
  byId("status").textContent = "Cleared.";
  byId("file-0").focus();
});

function take(slot, files) {
  images[slot] = files[0];
  if (files.length > 1 && slot === 0) images[1] = files[1];
  show();
}

function empty() {
  byId("panels").replaceChildren();
  for (const link of links) URL.revokeObjectURL(link);
  links.clear();
}

function show() {
  if (!served) return;
  round += 1;
  const now = round;
  empty();
  byId("clear").hidden = false;
  const tasks = [];
  images.forEach((image, slot) => {
    if (!image) return;
    for (const run of served.runs) tasks.push({ image, slot, run });
  });
  const both = images.every(Boolean);
  byId("status").textContent = tasks.length > 1 ? `Examining ${tasks.length} pairs of image and network…` : "Examining the image…";
  const done = tasks.map(({ image, slot, run }) => {
    const panel = byId("panel").content.firstElementChild.cloneNode(true);
    panel.setAttribute("aria-busy", "true");
    panel.querySelector(".title").textContent = `${both ? `Image ${slot + 1}` : "The image"}, ${run.name}`;
    byId("panels").append(panel);
    return examine(panel, image, run, now).finally(() => panel.removeAttribute("aria-busy"));
  });
  Promise.all(done).then(() => { if (now === round) byId("status").textContent = "Done."; });
}

async function examine(panel, image, run, now) {
  try {
    if (image.size > served.most_bytes) throw new Error(`larger than the limit of ${Math.floor(served.most_bytes / 2 ** 20)} MB`);
    const answer = await ask(image, run, now);
    if (now === round && answer) fill(panel, answer);
  } catch (problem) {
    const message = panel.querySelector(".problem");
    message.textContent = `No answer: ${problem.message}.`;
    message.hidden = false;
  } finally {
    panel.querySelector(".wait").hidden = true;
  }
}

async function ask(image, run, now) {
  for (let attempt = 0; now === round; attempt += 1) {
    const form = new FormData();
    form.append("file", image, "image");
    form.append("run", run.name);
    form.append("anyway", String(byId("anyway").checked));
    const response = await fetch("api/v1/examine", { method: "POST", body: form, headers: headers() });
    if (response.ok) return response.json();
    if (response.status === 503 && attempt < 10) {
      const wait = Number(response.headers.get("Retry-After")) || 2;
      await new Promise((resume) => { setTimeout(resume, 1000 * wait); });
      continue;
    }
    const body = await response.json().catch(() => null);
    if (body && body.error.code === "no-chest-image") throw new Error(`${body.error.message}, so it gets no class`);
    throw new Error(body ? body.error.message : `the server answered with status ${response.status}`);
  }
  return null;
}

function png(data) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const link = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  links.add(link);
  return link;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function element(name, text, kind) {
  const created = document.createElement(name);
  if (text !== undefined) created.textContent = text;
  if (kind) created.className = kind;
  return created;
}

function fill(panel, answer) {
  const at = (what) => panel.querySelector(what);
  fillWarnings(at(".warnings"), answer.warnings);
  fillClasses(at(".classes"), answer);
  at(".calibration").textContent = sentence(answer.calibration);
  fillMaps(panel, answer);
  fillFlip(panel, answer);
  at(".corruptions").replaceChildren(...answer.corruptions.map((row) => corrupted(row, answer.predicted)));
  const ood = answer.ood;
  const like = ood ? `Less similar to the training images than ${percent(ood.rarer_than)} of the ${ood.validated} validation images, of which ${percent(ood.accepted)} are accepted. ` : "";
  at(".took").textContent = `${like}The network sees ${answer.size} x ${answer.size} pixels of the image's ${answer.width} x ${answer.height}. Answered in ${answer.seconds.toFixed(1)} s.`;
  at(".answers").hidden = false;
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;

function fillWarnings(section, warnings) {
  section.classList.toggle("none", warnings.length === 0);
  const count = warnings.length === 1 ? "1 reason" : `${warnings.length} reasons`;
  section.querySelector("h3").textContent = warnings.length ? `${count} not to rely on this` : "No reason for doubt was found";
  const rows = warnings.length ? warnings : ["Everything was looked at. That is no proof that the answer is right."];
  section.querySelector("ul").replaceChildren(...rows.map((text) => element("li", sentence(text))));
}

function fillClasses(list, answer) {
  list.replaceChildren(...answer.classes.map((row) => {
    const item = element("li");
    const bar = element("span", undefined, "bar");
    const part = element("i");
    part.style.width = `${100 * row.probability}%`;
    bar.setAttribute("aria-hidden", "true");
    bar.append(part);
    item.append(element("span", row.name), bar, element("b", percent(row.probability)));
    return item;
  }));
}

function fillMaps(panel, answer) {
  const at = (what) => panel.querySelector(what);
  const image = png(answer.image);
  for (const shown of panel.querySelectorAll(".stack .image")) {
    shown.src = image;
    shown.alt = "The image";
  }
  const pictures = answer.maps.map((map) => ({ map: png(map.png), baselines: map.baselines.map((c) => png(c.png)) }));
  const method = at(".method");
  const baseline = at(".baseline");
  method.replaceChildren(...answer.maps.map((map, i) => new Option(map.label, String(i))));
  const fillControls = () => {
    const map = answer.maps[Number(method.value)];
    baseline.replaceChildren(...map.baselines.map((c, i) => new Option(c.label, String(i))));
    draw();
  };
  const draw = () => {
    const map = answer.maps[Number(method.value)];
    const other = map.baselines[Number(baseline.value)];
    const cells = map.cells ? `, made of ${map.cells} cells` : "";
    at(".map").src = pictures[Number(method.value)].map;
    at(".map").alt = `${map.label} for ${answer.predicted}: bright where the network sees evidence`;
    at(".other").src = pictures[Number(method.value)].baselines[Number(baseline.value)];
    at(".other").alt = `Baseline map: ${other.label}`;
    at(".of-map").textContent = `${map.label} for ${answer.predicted}${cells}`;
    at(".of-baseline").textContent = `Baseline map: ${other.label}${cells}. It does not depend on the answer.`;
    at(".likeness").textContent = other.likeness === null ? "One of the two maps is even, so they cannot be compared."
      : `Correlation of the two maps: ${other.likeness.toFixed(2)} (1: the map shows no more than the baseline map).`;
    at(".verdict").textContent = map.verdict ? `On the test images of the run: ${map.verdict}` : "Not measured on the test images of the run.";
  };
  method.addEventListener("change", fillControls);
  baseline.addEventListener("change", draw);
  const opacity = at(".opacity");
  opacity.addEventListener("input", () => {
    for (const image of panel.querySelectorAll(".map")) image.style.opacity = opacity.value / 100;
    at(".controls output").textContent = `${opacity.value} %`;
  });
  fillControls();
}

function fillFlip(panel, answer) {
  const at = (what) => panel.querySelector(what);
  const flip = answer.perturbation;
  at(".seen").src = png(answer.network_image);
  at(".seen").alt = `The image in ${answer.size} x ${answer.size} pixels`;
  for (const figure of panel.querySelectorAll(".only")) figure.hidden = !flip;
  if (flip) {
    at(".flip .summary").textContent = `No pixel changed by more than ${flip.grey_levels.toFixed(1)} grey levels of 255 (epsilon ${flip.epsilon.toFixed(4)}), and ${answer.predicted} becomes ${flip.becomes}. Found by FAB, then PGD of ${flip.steps} steps; a smaller change may exist.`;
    at(".difference").src = png(flip.difference);
    at(".difference").alt = "The change around mid-grey, magnified";
    at(".magnified").textContent = `The change, magnified ${flip.magnified.toFixed(0)} times`;
    at(".flipped").src = png(flip.image);
    at(".flipped").alt = `The changed image, answered as ${flip.becomes}`;
    at(".becomes").textContent = `The changed image: ${flip.becomes}, ${percent(flip.probability)}`;
  } else {
    at(".flip .summary").textContent = `No change up to epsilon ${answer.tried_up_to} was found that flips the answer. The network may hide its gradients: see its report.`;
  }
  const outcomes = answer.survives.map((row) => `${row.attack.toUpperCase()} ${row.survives ? "does not change it" : "changes it"}`);
  at(".survives").textContent = `At epsilon ${answer.epsilon} (${(255 * answer.epsilon).toFixed(1)} grey levels): ${outcomes.join("; ")}. Surviving an attack is no proof.`;
}

function corrupted(row, predicted) {
  const item = element("li");
  const image = element("img");
  image.src = png(row.png);
  image.alt = `The image with ${row.label}: ${row.about}`;
  const answer = `${row.predicted}, ${percent(row.probability)}`;
  item.append(image, element("b", `${row.label}, ${row.severity} of 5`));
  item.append(element("span", row.changed ? `now ${answer}, not ${predicted}` : answer, row.changed ? "changed" : ""));
  return item;
}

function showLost() {
  byId("status").textContent = "The server does not answer: is it still running?";
}

start().catch(showLost);
