// Maps drawn from bytes: classes and uncertainties. Shared by the page and the explorer.
"use strict";

const RAMP = [[0, 32, 76], [64, 76, 108], [124, 123, 120], [188, 175, 110], [255, 233, 69]]; // of even lightness steps
const NO_CLASS = 255;
const UNLABELLED = "#46484c";

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function svgElement(name, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function decodeBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function rgbOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function onRamp(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((value, i) => value + (RAMP[low + 1][i] - value) * (at - low));
}

// map: {width, height, bytes: Uint8Array}; rgb(byte) gives the colour of a cell.
function drawMap(canvas, map, rgb) {
  canvas.width = map.width;
  canvas.height = map.height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(map.width, map.height);
  const table = new Map();
  for (let i = 0; i < map.bytes.length; i++) {
    const value = map.bytes[i];
    if (!table.has(value)) table.set(value, rgb(value));
    const [red, green, blue] = table.get(value);
    image.data.set([red, green, blue, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function drawClasses(canvas, map, colours) {
  drawMap(canvas, map, (index) => rgbOf(colours[index] ?? UNLABELLED));
}

function drawShares(canvas, map) {
  drawMap(canvas, map, (byte) => onRamp(byte / 255));
}

// [class, share of the map], the largest first.
function classShares(map) {
  const counts = new Map();
  for (const index of map.bytes) counts.set(index, (counts.get(index) ?? 0) + 1);
  return [...counts].map(([index, count]) => [index, count / map.bytes.length]).sort((a, b) => b[1] - a[1]);
}

function className(classes, index) {
  return index === NO_CLASS && classes.length <= NO_CLASS ? "no label" : classes[index] ?? "no label";
}

// A map of classes that names the class under the pointer.
function classMap(map, classes, colours, label) {
  const canvas = element("canvas", { className: "map" });
  const under = element("p", { className: "quiet under" });
  drawClasses(canvas, map, colours);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${label}: ` + describeClasses(map, classes));
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const col = Math.floor((event.clientX - box.left) / box.width * map.width);
    const row = Math.floor((event.clientY - box.top) / box.height * map.height);
    if (row < 0 || col < 0 || row >= map.height || col >= map.width) return;
    under.textContent = className(classes, map.bytes[row * map.width + col]);
  });
  canvas.addEventListener("pointerleave", () => { under.textContent = ""; });
  return element("div", {}, canvas, under);
}

function describeClasses(map, classes) {
  return classShares(map).slice(0, 6).map(([index, share]) => `${className(classes, index)} ${percent(share)}`).join(", ");
}

function shareMap(map, label) {
  const canvas = element("canvas", { className: "map" });
  drawShares(canvas, map);
  const mean = map.bytes.reduce((sum, byte) => sum + byte, 0) / map.bytes.length / 255;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${label}: ${percent(mean)} on average`);
  const ramp = element("div", { className: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${RAMP.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
  const ends = element("div", { className: "ends quiet" }, element("span", { textContent: "sure" }),
    element("span", { textContent: "unsure" }));
  return element("div", {}, canvas, ramp, ends);
}

// bars: [class, probability], the likeliest first; truth: a class to be marked, or null.
function classBars(bars, classes, truth = null) {
  const list = element("div");
  list.setAttribute("role", "list");
  for (const [index, probability] of bars) {
    const svg = svgElement("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(svgElement("rect", { width: 100 * probability, height: 10, fill: index === truth ? "#0b5cad" : "#8f959e" }));
    const name = className(classes, index);
    const row = element("div", { className: index === truth ? "bar true" : "bar" },
      element("span", { textContent: index === truth ? `✓ ${name}` : name, title: name }), svg,
      element("span", { textContent: percent(probability) }));
    row.setAttribute("role", "listitem");
    list.append(row);
  }
  return list;
}

function legendOf(shares, classes, colours) {
  return shares.map(([index, share]) => {
    const chip = element("span", { className: "chip" });
    chip.style.background = colours[index] ?? UNLABELLED;
    return element("li", {}, chip, element("span", { textContent: `${className(classes, index)} ${percent(share)}` }));
  });
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.095 ? 1 : 0)}%`;
}

// Numbered boxes of viewpoints [row, col, scale] in an SVG whose viewBox is 0 0 100 100; the last one is bold.
function drawBoxes(svg, viewpoints, { colour = "#ffffff", dash = "", prefix = "" } = {}) {
  viewpoints.forEach(([row, col, scale], place) => {
    const last = place === viewpoints.length - 1;
    const inset = last ? 0.5 : 0.3;
    const [x, y, side] = [50 * (1 + col - scale) + inset, 50 * (1 + row - scale) + inset, 100 * scale - 2 * inset];
    const shape = { x, y, width: side, height: side, fill: "none" };
    svg.append(svgElement("rect", { ...shape, stroke: "#000000", "stroke-width": last ? 1.8 : 1, "stroke-opacity": 0.75 }));
    svg.append(svgElement("rect", { ...shape, stroke: colour, "stroke-width": last ? 1 : 0.45, "stroke-dasharray": dash }));
    const text = `${prefix}${place + 1}`;
    const [left, top] = [Math.max(x + 1.2, 0), Math.max(y + 4.4, 4)];
    svg.append(svgElement("text", { x: left, y: top, "font-size": 4.2, "font-weight": 700, fill: colour, stroke: "#000000",
      "stroke-width": 0.9, "paint-order": "stroke", "font-family": "system-ui, sans-serif" }, text));
  });
}
