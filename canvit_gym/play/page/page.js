// The page of a game. The server holds the game; this shows what it sends and tells it where to look.
"use strict";

const byId = (id) => document.getElementById(id);
const TOUCH_NEEDS_BUTTON = "touch";

let game = null; // the server's hello
let views = []; // of this episode, after each glimpse
let view = null; // the last of them
let outcome = null; // after the end: the scene, the truth, the player's curve
let gazes = []; // after the end: the player's, then the policies'
let levels = []; // discrete: [[row, col, scale], ...] per scale, largest first
let level = 0;
let scale = 0.5; // continuous
let aim = [0, 0]; // where the pointer or the keys point: row, col
let box = [0, 0, 1]; // what would be looked at
let waiting = true;

const socket = new WebSocket(`ws://${location.host}/game`);
socket.addEventListener("message", (event) => {
  const message = JSON.parse(event.data);
  ({ hello: onHello, view: onView, outcome: onOutcome, rival: onRival, session: onSession, error: onError })[message.kind](message);
});
socket.addEventListener("close", () => onError({ text: "The server is gone or closed this game. Reload the page to play on." }));

function send(message) {
  if (waiting || socket.readyState !== WebSocket.OPEN) return;
  waiting = true;
  document.body.dataset.state = "waiting";
  byId("error").hidden = true;
  socket.send(JSON.stringify(message));
}

function onHello(message) {
  game = message;
  byId("environment").textContent = game.environment;
  byId("stop").hidden = !game.actions.stop;
  byId("stop").addEventListener("click", () => send({ do: "stop" }));
  if (game.actions.kind === "discrete") {
    const scales = [...new Set(game.actions.viewpoints.map((v) => v[2]))].sort((a, b) => b - a);
    levels = scales.map((size) => game.actions.viewpoints.filter((v) => v[2] === size));
  }
}

function onError(message) {
  waiting = socket.readyState !== WebSocket.OPEN;
  byId("error").textContent = message.text;
  byId("error").hidden = false;
  showControls();
}

function onView(message) {
  waiting = false;
  if (message.begins) [views, outcome, gazes] = [[], null, []];
  view = message;
  if (view.viewpoints.length) views[view.viewpoints.length - 1] = view;
  const title = view.practice ? "What you have seen (practice: you know the truth)" : "What you have seen";
  byId("stage-title").textContent = title;
  byId("goal").hidden = !view.goal;
  if (view.goal) byId("goal").textContent = `Goal: ${view.goal}`;
  const left = view.ended ? 0 : game.budget - view.viewpoints.length;
  byId("pips").textContent = "●".repeat(left) + "○".repeat(game.budget - left);
  byId("left").textContent = left === 1 ? "1 glimpse left" : `${left} glimpses left`;
  byId("seen").src = view.seen;
  showReading(view.reading);
  showUncertainty(view.uncertainty);
  place();
  showControls();
  byId("status").textContent = `${byId("left").textContent}. The probe reads ${spoken(view.reading)}.`;
}

function spoken(reading) {
  if (reading.form === "bars") {
    return reading.bars.slice(0, 3).map(([index, p]) => `${className(game.classes, index)} ${percent(p)}`).join(", ");
  }
  return reading.form === "map" ? describeClasses(mapOf(reading), game.classes) : "what the picture shows";
}

function mapOf(message) {
  return { width: message.width, height: message.height, bytes: decodeBytes(message.bytes) };
}

function showReading(reading) {
  const truth = outcome ? outcome.truth : null;
  byId("panels").classList.toggle("bars", reading.form === "bars");
  if (reading.form === "bars") {
    byId("reading").replaceChildren(classBars(reading.bars, game.classes, truth ? truth.class : null));
    return;
  }
  if (reading.form === "picture") {
    byId("reading").replaceChildren(pictureOf(reading, "Reading"));
    byId("legend").replaceChildren();
    return;
  }
  const map = mapOf(reading);
  byId("reading").replaceChildren(classMap(map, game.classes, game.colours, "Reading"));
  const shares = classShares(map);
  if (truth && truth.form === "map") {
    const read = new Set(shares.map(([index]) => index));
    shares.push(...classShares(mapOf(truth)).filter(([index]) => !read.has(index)).map(([index]) => [index, 0]));
  }
  byId("legend").replaceChildren(...legendOf(shares, game.classes, game.colours));
}

function pictureOf(message, label) {
  return element("img", { className: "map", src: message.picture, alt: label });
}

function showUncertainty(uncertainty) {
  byId("uncertainty-panel").hidden = !uncertainty;
  if (!uncertainty) return;
  if (uncertainty.form === "number") {
    const meter = element("meter", { min: 0, max: 1, value: uncertainty.value });
    meter.setAttribute("aria-label", "Uncertainty");
    byId("uncertainty").replaceChildren(meter, element("span", { textContent: ` ${percent(uncertainty.value)}` }));
    return;
  }
  byId("uncertainty").replaceChildren(shareMap(mapOf(uncertainty), "Uncertainty"));
}

function showControls() {
  const ended = !view || view.ended;
  document.body.dataset.state = waiting ? "waiting" : ended ? "ended" : "playing"; // for those who drive the page
  document.body.dataset.glimpses = String(view ? view.viewpoints.length : 0);
  byId("controls").hidden = ended;
  byId("replay").hidden = !gazes.length;
  byId("results").hidden = !outcome;
  byId("truth-panel").hidden = !outcome;
  byId("uncertainty-panel").hidden = Boolean(outcome) || !(view && view.uncertainty);
  byId("help").hidden = ended;
  byId("where").hidden = ended;
  for (const id of ["look", "smaller", "larger", "stop"]) byId(id).disabled = waiting || ended;
  for (const id of ["next", "restart"]) byId(id).disabled = waiting || !view;
  byId("next").classList.toggle("main", ended);
  byId("stage").setAttribute("aria-label", ended ? "Scene, with the glimpses taken." : "Scene. Choose where to look next.");
}

// Where to look

function allowed(viewpoints) {
  if (!view || !view.allowed) return viewpoints;
  const table = game.actions.viewpoints;
  const open = new Set(view.allowed.filter((index) => index < table.length).map((index) => table[index].join()));
  const left = viewpoints.filter((viewpoint) => open.has(viewpoint.join()));
  return left.length ? left : viewpoints;
}

function place() {
  if (!game) return;
  if (game.actions.kind === "discrete") {
    const distance = (v) => (v[0] - aim[0]) ** 2 + (v[1] - aim[1]) ** 2;
    box = allowed(levels[level]).reduce((best, v) => (distance(v) < distance(best) ? v : best));
  } else {
    const room = 1 - scale;
    box = [...aim.map((centre) => Math.min(Math.max(centre, -room), room)), scale];
  }
  drawStage();
}

function drawStage() {
  const svg = byId("boxes");
  svg.replaceChildren();
  if (gazes.length) return;
  drawBoxes(svg, view ? view.viewpoints : []);
  if (!view || view.ended) return;
  const [row, col, size] = box;
  const shape = { x: 50 * (1 + col - size), y: 50 * (1 + row - size), width: 100 * size, height: 100 * size, fill: "none" };
  svg.append(svgElement("rect", { ...shape, stroke: "#000000", "stroke-width": 1.6, id: "box" }));
  svg.append(svgElement("rect", { ...shape, stroke: "#ffd629", "stroke-width": 0.9, "stroke-dasharray": "3 1.5" }));
}

function speak() {
  const [row, col, size] = box;
  const vertical = row < -0.2 ? "top" : row > 0.2 ? "bottom" : "middle";
  const horizontal = col < -0.2 ? "left" : col > 0.2 ? "right" : "centre";
  byId("where").textContent =
    `Box ${vertical} ${horizontal}: row ${row.toFixed(2)}, column ${col.toFixed(2)}, scale ${size.toFixed(2)}`;
}

function aimAt(event) {
  const frame = byId("stage").getBoundingClientRect();
  aim = [2 * (event.clientY - frame.top) / frame.height - 1, 2 * (event.clientX - frame.left) / frame.width - 1];
  place();
  speak();
}

function resize(steps) {
  if (game.actions.kind === "discrete") level = Math.min(Math.max(level + steps, 0), levels.length - 1);
  else scale = Math.min(Math.max(scale * 0.85 ** steps, game.actions.min_scale), 1);
  place();
  speak();
}

function move(down, right) {
  aim = [box[0], box[1]];
  if (game.actions.kind === "discrete") {
    const along = (v) => (v[0] - box[0]) * down + (v[1] - box[1]) * right;
    const across = (v) => Math.abs((v[0] - box[0]) * right) + Math.abs((v[1] - box[1]) * down);
    const ahead = allowed(levels[level]).filter((v) => along(v) > 1e-6);
    if (ahead.length) aim = ahead.reduce((best, v) => (along(v) + 2 * across(v) < along(best) + 2 * across(best) ? v : best));
  } else {
    aim = [box[0] + down * scale / 4, box[1] + right * scale / 4];
  }
  place();
  speak();
}

function look() {
  if (view && !view.ended) send({ do: "look", viewpoint: box });
}

const stage = byId("stage");
stage.addEventListener("pointermove", (event) => { if (view && !view.ended) aimAt(event); });
stage.addEventListener("pointerdown", (event) => { if (view && !view.ended) aimAt(event); });
stage.addEventListener("click", (event) => {
  // A finger covers what it points at: it moves the box, and the button looks.
  if (event.pointerType === TOUCH_NEEDS_BUTTON) return;
  look();
});
stage.addEventListener("wheel", (event) => {
  if (!view || view.ended) return;
  event.preventDefault();
  resize(event.deltaY > 0 ? -1 : 1);
}, { passive: false });
stage.addEventListener("keydown", (event) => {
  if (!view || view.ended || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    ArrowUp: () => move(-1, 0), ArrowDown: () => move(1, 0), ArrowLeft: () => move(0, -1), ArrowRight: () => move(0, 1),
    "+": () => resize(-1), "=": () => resize(-1), PageUp: () => resize(-1),
    "-": () => resize(1), PageDown: () => resize(1), Enter: look, " ": look,
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
byId("look").addEventListener("click", look);
byId("smaller").addEventListener("click", () => resize(1));
byId("larger").addEventListener("click", () => resize(-1));
byId("next").addEventListener("click", () => send({ do: "next" }));
byId("restart").addEventListener("click", () => send({ do: "restart" }));

// After the end

function onOutcome(message) {
  outcome = message;
  byId("truth").replaceChildren({
    map: (truth) => classMap(mapOf(truth), game.classes, game.colours, "Truth"),
    class: (truth) => element("p", { textContent: className(game.classes, truth.class) }),
    picture: (truth) => pictureOf(truth, "Truth"),
    words: (truth) => element("p", { textContent: truth.words }),
  }[outcome.truth.form](outcome.truth));
  byId("score-head").textContent = outcome.metric;
  byId("policies").replaceChildren();
  gazes = [];
  addGaze({ name: "You", about: "", ceiling: false, viewpoints: view.viewpoints, curve: outcome.curve,
    seen: views.map((v) => v.seen), readings: views.map((v) => v.reading) });
  choose(0, views.length);
  showControls();
}

function onRival(message) {
  if (outcome && message.scene === outcome.scene) addGaze(message);
}

function onSession(message) {
  const about = message.scenes === 1 ? "1 scene" : `${message.scenes} scenes`;
  const parts = [];
  if (message.scenes) parts.push(`This session: ${about}, your mean score ${message.score.toFixed(3)}`);
  if (message.share !== null) parts.push(`${(100 * message.share).toFixed(0)}% of the way from the first glimpse to the ceiling (${message.ceiling.toFixed(3)})`);
  byId("session").textContent = parts.length ? `${parts.join("; ")}.` : "";
  if (!outcome) return; // the player went on already
  const you = final(gazes[0].curve);
  byId("status").textContent = `The scene is over. Your ${outcome.metric}: ${you === null ? "not measured" : you.toFixed(3)}. ${byId("session").textContent}`;
}

function final(curve) {
  return curve[curve.length - 1];
}

function addGaze(gaze) {
  const index = gazes.push(gaze) - 1;
  const radio = element("input", { type: "radio", name: "who", value: String(index), checked: index === 0 });
  radio.addEventListener("change", () => choose(index, gazes[index].viewpoints.length));
  const kind = gaze.ceiling ? `${gaze.name}: a ceiling` : gaze.name;
  const label = element("label", { title: gaze.about }, radio, lineSample(index), element("span", { textContent: kind }));
  const [score, yours] = [final(gaze.curve), final(gazes[0].curve)];
  const known = score !== null && yours !== null;
  const against = index === 0 || !known ? "" : `${score >= yours ? "+" : "−"}${Math.abs(score - yours).toFixed(3)}`;
  byId("policies").append(element("tr", {}, element("td", {}, label),
    element("td", { textContent: score === null ? "not measured" : score.toFixed(3) }), element("td", { textContent: against })));
  drawChart(byId("chart"), gazes.map(({ name, curve }, at) => ({ name, curve, place: at })), { metric: outcome.metric });
  byId("chart-name").textContent = `${outcome.metric} after each glimpse: ` +
    gazes.map(({ name, curve }) => `${name} ${final(curve) === null ? "not measured" : final(curve).toFixed(3)}`).join(", ");
}

let chosen = 0;

function choose(index, step) {
  chosen = index;
  byId("step").max = String(gazes[index].viewpoints.length);
  byId("step").value = String(step);
  showStep();
}

function showStep() {
  const gaze = gazes[chosen];
  const step = Number(byId("step").value);
  const count = gaze.viewpoints.length;
  byId("seen").src = byId("as-seen").checked ? gaze.seen[step - 1] : outcome.picture;
  const svg = byId("boxes");
  svg.replaceChildren();
  drawBoxes(svg, gaze.viewpoints.slice(0, step));
  showReading(gaze.readings[step - 1]);
  byId("stage-title").textContent = `How ${chosen === 0 ? "you" : gaze.name} looked`;
  byId("shown").textContent = `Glimpse ${step} of ${count}`;
  byId("back").disabled = step <= 1;
  byId("forward").disabled = step >= count;
}

byId("step").addEventListener("input", showStep);
byId("as-seen").addEventListener("change", showStep);
byId("back").addEventListener("click", () => choose(chosen, Number(byId("step").value) - 1));
byId("forward").addEventListener("click", () => choose(chosen, Number(byId("step").value) + 1));

showControls();
