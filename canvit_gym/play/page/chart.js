// Score curves. Lines differ by colour, dashes and marks, so that colour alone tells nothing.
"use strict";

const LINES = [
  { colour: "#000000", dash: "", mark: "circle" },
  { colour: "#0072b2", dash: "7 3", mark: "square" },
  { colour: "#d55e00", dash: "2 2", mark: "triangle" },
  { colour: "#009e73", dash: "9 3 2 3", mark: "diamond" },
  { colour: "#a0527e", dash: "4 2", mark: "cross" },
  { colour: "#8a6d00", dash: "1 3", mark: "square" },
  { colour: "#3a8fc4", dash: "12 3", mark: "triangle" },
  { colour: "#5b5b5b", dash: "6 2 1 2", mark: "diamond" },
];

function lineStyle(place) {
  return LINES[place % LINES.length];
}

function mark(kind, x, y, size, colour) {
  const points = {
    square: [[-1, -1], [1, -1], [1, 1], [-1, 1]],
    triangle: [[0, -1.2], [1.2, 1], [-1.2, 1]],
    diamond: [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]],
    cross: [[-1.2, -0.5], [-0.5, -0.5], [-0.5, -1.2], [0.5, -1.2], [0.5, -0.5], [1.2, -0.5], [1.2, 0.5], [0.5, 0.5],
      [0.5, 1.2], [-0.5, 1.2], [-0.5, 0.5], [-1.2, 0.5]],
  }[kind];
  if (!points) return svgElement("circle", { cx: x, cy: y, r: size, fill: colour });
  const place = points.map(([dx, dy]) => `${x + dx * size},${y + dy * size}`).join(" ");
  return svgElement("polygon", { points: place, fill: colour });
}

// A short sample of a line, for tables and legends.
function lineSample(place) {
  const { colour, dash, mark: kind } = lineStyle(place);
  const svg = svgElement("svg", { viewBox: "0 0 40 16", "aria-hidden": "true" });
  svg.append(svgElement("line", { x1: 1, x2: 39, y1: 8, y2: 8, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash }));
  svg.append(mark(kind, 20, 8, 4, colour));
  return svg;
}

// series: [{name, curve: [number or null], place}]; the title of the SVG stays.
function drawChart(svg, series, { metric }) {
  const [width, height, left, right, top, bottom] = [460, 280, 46, 14, 26, 36];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  [...svg.children].forEach((child) => { if (child.tagName !== "title") child.remove(); });
  const known = series.flatMap(({ curve }) => curve.filter((value) => value !== null));
  if (!known.length) return;
  const steps = Math.max(...series.map(({ curve }) => curve.length));
  const [low, high, unit] = axis(Math.min(...known), Math.max(...known));
  const x = (step) => left + (steps === 1 ? 0.5 : step / (steps - 1)) * (width - left - right);
  const y = (value) => height - bottom - (value - low) / (high - low) * (height - top - bottom);
  const text = { "font-size": 12, fill: "#565d66", "font-family": "system-ui, sans-serif" };
  for (let value = low; value < high + unit / 2; value += unit) {
    svg.append(svgElement("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "#e1e4e8" }));
    const shown = Number(value.toFixed(6)).toString();
    svg.append(svgElement("text", { ...text, x: left - 6, y: y(value) + 4, "text-anchor": "end" }, shown));
  }
  const stride = Math.ceil(steps / 8);
  for (let step = 0; step < steps; step += stride) {
    svg.append(svgElement("text", { ...text, x: x(step), y: height - bottom + 16, "text-anchor": "middle" }, step + 1));
  }
  svg.append(svgElement("text", { ...text, x: left - 38, y: 16 }, metric));
  svg.append(svgElement("text", { ...text, x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" },
    "glimpses taken"));
  for (const { curve, place } of [...series].reverse()) {
    const { colour, dash, mark: kind } = lineStyle(place);
    const points = curve.map((value, step) => (value === null ? null : [x(step), y(value)])).filter(Boolean);
    svg.append(svgElement("polyline", { points: points.map((point) => point.join(",")).join(" "), fill: "none",
      stroke: colour, "stroke-width": place === 0 ? 3 : 2, "stroke-dasharray": dash }));
    for (const [px, py] of points) svg.append(mark(kind, px, py, place === 0 ? 4.5 : 3.5, colour));
  }
}

// [lowest, highest, unit] of an axis with three to seven ticks at round numbers.
function axis(low, high) {
  const span = Math.max(high - low, 1e-3);
  const power = 10 ** Math.floor(Math.log10(span / 3));
  const unit = [1, 2, 5].map((factor) => factor * power).filter((size) => size <= span / 2.5).pop() ?? power;
  const bottom = Math.floor(low / unit + 1e-6) * unit;
  return [bottom, Math.max(Math.ceil(high / unit - 1e-6) * unit, bottom + unit), unit];
}
