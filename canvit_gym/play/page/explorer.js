// The explorer of a benchmark's records. All data is in this file: nothing is asked of a server.
"use strict";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const unpacked = new Map(); // scene's place -> its maps
let place = 0; // of the scene shown, in data.scenes
let glimpse = data.budget;
let checked = new Set(data.policies.map((_, index) => index).slice(0, 3));
let listed = []; // places, as filtered and sorted
let asked = 0; // tells a late answer from the one waited for

function lastScore(scene, policy) {
  const curve = scene.scores[policy];
  return curve ? curve[curve.length - 1] : null;
}

function difference(scene) {
  const [one, other] = [lastScore(scene, Number(byId("a").value)), lastScore(scene, Number(byId("b").value))];
  return one === null || other === null ? null : one - other;
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
}

// The list

function fillChoices() {
  byId("environment").textContent = data.about;
  const options = data.policies.map((policy, index) => [policy.name, index]);
  for (const id of ["a", "b"]) byId(id).append(...options.map(([name, index]) => new Option(name, index)));
  byId("b").value = String(Math.min(1, data.policies.length - 1));
  const present = [...new Set(data.scenes.flatMap((scene) => scene.classes))].sort((x, y) => x - y);
  byId("class").append(new Option("any", ""), ...present.map((index) => new Option(className(data.classes, index), index)));
  byId("score-head").textContent = data.metric;
}

function list() {
  const [sort, wanted, a] = [byId("sort").value, byId("class").value, Number(byId("a").value)];
  const most = Number(byId("most").value);
  byId("most-shown").textContent = most.toFixed(2);
  const measure = { scene: (scene) => -scene.scene, score: (scene) => lastScore(scene, a), difference }[sort];
  const sign = byId("ascending").checked ? -1 : 1;
  listed = data.scenes.map((scene, at) => [at, scene, measure(scene)])
    .filter(([, scene]) => wanted === "" || scene.classes.includes(Number(wanted)))
    .filter(([, scene]) => most >= 1 || (lastScore(scene, a) !== null && lastScore(scene, a) <= most))
    .filter(([, , value]) => value !== null)
    .sort((x, y) => sign * (y[2] - x[2]) || x[0] - y[0])
    .map(([at]) => at);
  byId("count").textContent = `${listed.length} of ${data.scenes.length} scenes`;
  byId("scenes").replaceChildren(...listed.map((at) => {
    const scene = data.scenes[at];
    const [score, gain] = [lastScore(scene, a), difference(scene)];
    const button = element("button", { type: "button" },
      element("img", { src: scene.picture, alt: "", loading: "lazy" }), element("span", { textContent: `scene ${scene.scene}` }),
      element("span", { textContent: score === null ? "not evaluated" : `A ${score.toFixed(3)}` }),
      element("span", { textContent: gain === null ? "" : `A − B ${signed(gain)}` }));
    button.dataset.place = String(at);
    button.addEventListener("click", () => { place = at; show({ moved: true }); });
    return button;
  }));
  markCurrent();
}

function markCurrent() {
  for (const button of byId("scenes").children) {
    if (Number(button.dataset.place) === place) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

// The scene

async function maps(at) {
  if (!unpacked.has(at)) {
    const stream = new Blob([decodeBytes(data.scenes[at].maps)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    let used = 0;
    const take = (side, depth = 1) => {
      const part = { width: side, height: side, bytes: bytes.subarray(used, used + side * side * depth) };
      used += side * side * depth;
      return part;
    };
    const depth = data.form === "picture" ? 3 : 1;
    const found = { truth: take(data.truth_px, depth), policies: [] };
    for (const curve of data.scenes[at].scores) {
      found.policies.push(curve && curve.map(() => ({
        reading: take(data.reading_px, depth),
        uncertainty: take(data.uncertainty_px),
        canvas: take(data.canvas_px, 3),
      })));
    }
    unpacked.set(at, found);
  }
  return unpacked.get(at);
}

function drawColours(canvas, { width, height, bytes }) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2], 255], 4 * i);
  context.putImageData(image, 0, 0);
}

async function show({ moved = false } = {}) {
  const scene = data.scenes[place];
  const ticket = ++asked;
  markCurrent();
  byId("detail-title").textContent = scene.goal ? `Scene ${scene.scene}, goal: ${scene.goal}` : `Scene ${scene.scene}`;
  byId("seen").src = scene.picture;
  const steps = Math.max(...scene.scores.filter(Boolean).map((curve) => curve.length));
  glimpse = Math.min(Math.max(glimpse, 1), steps);
  byId("step").max = String(steps);
  byId("step").value = String(glimpse);
  byId("back").disabled = glimpse <= 1;
  byId("forward").disabled = glimpse >= steps;
  byId("shown").textContent = `Glimpse ${glimpse} of ${steps}`;
  byId("boxes").replaceChildren();
  for (const index of checked) {
    if (!scene.viewpoints[index]) continue;
    const { dash } = lineStyle(index);
    drawBoxes(byId("boxes"), scene.viewpoints[index].slice(0, glimpse), { colour: LIGHT[index % LIGHT.length], dash });
  }
  showPolicies(scene);
  drawChart(byId("chart"), data.policies.map(({ name }, index) => ({ name, curve: scene.scores[index], place: index }))
    .filter(({ curve }) => curve), { metric: data.metric });
  byId("chart-name").textContent = `${data.metric} of every policy after each glimpse`;
  writeFragment();
  const found = await maps(place);
  if (ticket !== asked) return;
  showTruth(scene, found);
  showRows(scene, found);
  document.body.dataset.shown = `${scene.scene}/${glimpse}`; // for those who drive the page
  if (moved && matchMedia("(max-width: 56rem)").matches) byId("detail-title").focus();
}

// Over a picture lines are light and edged in black; elsewhere they are dark.
const LIGHT = ["#ffffff", "#7cc8ff", "#ffb27a", "#6fe3bd", "#ffa6dc", "#ffe066", "#c2b8ff", "#d0d0d0"];

function showPolicies(scene) {
  byId("policies").replaceChildren(...data.policies.map((policy, index) => {
    const box = element("input", { type: "checkbox", checked: checked.has(index), disabled: !scene.scores[index] });
    box.addEventListener("change", () => {
      if (box.checked) checked.add(index);
      else checked.delete(index);
      show();
    });
    box.dataset.policy = String(index);
    const name = policy.ceiling ? `${policy.name}: a ceiling` : policy.name;
    const label = element("label", { title: policy.about }, box, lineSample(index), element("span", { textContent: name }));
    const curve = scene.scores[index];
    const score = curve ? curve[Math.min(glimpse, curve.length) - 1].toFixed(3) : "not evaluated";
    return element("tr", {}, element("td", {}, label), element("td", { textContent: score }));
  }));
}

function colourMap(map, label) {
  const canvas = element("canvas", { className: "map" });
  drawColours(canvas, map);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return canvas;
}

function showTruth(scene, found) {
  const [truth, legend] = [[], []];
  if (data.form === "map") {
    truth.push(classMap(found.truth, data.classes, data.colours, "Truth"));
    legend.push(...legendOf(classShares(found.truth), data.classes, data.colours));
  } else if (data.form === "bars") {
    truth.push(element("p", { textContent: className(data.classes, scene.classes[0]) }));
  } else if (data.truth_px) {
    truth.push(colourMap(found.truth, "Truth"));
  }
  byId("truth").replaceChildren(...truth);
  byId("legend").replaceChildren(...legend);
}

function showRows(scene, found) {
  byId("rows").replaceChildren(...[...checked].sort((x, y) => x - y).filter((index) => found.policies[index]).map((index) => {
    const moments = found.policies[index];
    const step = Math.min(glimpse, moments.length) - 1;
    const moment = moments[step];
    const name = data.policies[index].name;
    const sure = scene.uncertainties ? `, uncertainty ${percent(scene.uncertainties[index][step])}` : "";
    const parts = [[`reading${sure}`, {
      map: () => classMap(moment.reading, data.classes, data.colours, `Reading of ${name}`),
      bars: () => classBars(scene.bars[index][step], data.classes, scene.classes[0]),
      picture: () => colourMap(moment.reading, `Reading of ${name}`),
    }[data.form]()]];
    if (data.uncertainty_px) parts.push(["uncertainty", shareMap(moment.uncertainty, `Uncertainty of ${name}`)]);
    parts.push(["canvas (PCA)", colourMap(moment.canvas, `Canvas of ${name} in the colours of its principal components`)]);
    return element("section", {}, element("h3", { textContent: name }),
      element("div", { className: data.form === "bars" ? "panels bars" : "panels" },
        ...parts.map(([caption, part]) => element("figure", {}, element("figcaption", { textContent: caption }), part))));
  }));
}

// The fragment: #scene=12&glimpse=3&policies=0,2, and what the list is filtered and sorted by

const CHOICES = { class: "", sort: "scene", a: "0", b: "1", most: "1" };

function writeFragment() {
  const parts = new URLSearchParams({ scene: data.scenes[place].scene, glimpse, policies: [...checked].sort().join(",") });
  for (const [id, usual] of Object.entries(CHOICES)) if (byId(id).value !== usual) parts.set(id, byId(id).value);
  if (byId("ascending").checked) parts.set("ascending", "1");
  history.replaceState(null, "", `#${parts.toString().replaceAll("%2C", ",")}`);
}

function readFragment() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const [id, usual] of Object.entries(CHOICES)) {
    const control = byId(id);
    const before = control.value;
    control.value = parts.get(id) ?? usual;
    if (control.value === "" && id !== "class") control.value = before; // nothing that can be chosen
  }
  byId("ascending").checked = parts.has("ascending");
  list();
  byId("error").hidden = true;
  if (parts.has("scene")) {
    const found = data.scenes.findIndex((scene) => String(scene.scene) === parts.get("scene"));
    if (found < 0) {
      byId("error").textContent = `There is no scene ${parts.get("scene")} in this file.`;
      byId("error").hidden = false;
    }
    place = Math.max(found, 0);
  } else {
    place = listed[0] ?? 0;
  }
  const step = Number.parseInt(parts.get("glimpse") ?? data.budget, 10);
  glimpse = Number.isFinite(step) ? step : data.budget;
  if (parts.has("policies")) {
    const wanted = parts.get("policies").split(",").map(Number).filter((index) => index in data.policies);
    checked = new Set(parts.get("policies") === "" ? [] : wanted);
  }
  show();
}

function step(by) {
  glimpse += by;
  show();
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("input", () => {
  list();
  if (listed.length && !listed.includes(place)) place = listed[0];
  show();
});
byId("step").addEventListener("input", () => step(Number(byId("step").value) - glimpse));
byId("back").addEventListener("click", () => step(-1));
byId("forward").addEventListener("click", () => step(1));
addEventListener("hashchange", readFragment);

fillChoices();
readFragment();
