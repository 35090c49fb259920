"use strict";
// What the page shows, and the questions that every view of it asks.

const report = JSON.parse(document.getElementById("report-data").textContent);
const state = { metric: report.metric, hidden: new Set(), pinned: null, preview: null, sort: "depth", falling: true, allRows: false };
const views = []; // functions that draw a part of the page again, when metric, series or theme change
const markers = []; // functions that only mark the current sub-network

const byId = (id) => document.getElementById(id);
const totalDepth = Object.values(report.depths).reduce((sum, depth) => sum + depth, 0);
const several = Object.keys(report.depths).length > 1;

/** Make an element; text is always set as text, never as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "colour") element.style.setProperty("--colour", value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const valueOf = (point) => point.metrics[state.metric] ?? null;
const greaterIsBetter = () => report.metrics.find((metric) => metric.name === state.metric).greaterIsBetter;
const isBetter = (one, other) => (greaterIsBetter() ? one > other : one < other);
const visiblePoints = () => report.points.filter((point) => !state.hidden.has(point.series));
const scoredPoints = () => visiblePoints().filter((point) => valueOf(point) !== null);
const currentPoint = () => report.points[state.preview ?? state.pinned] ?? null;
const SYMBOLS = [["circle", "●"], ["square", "■"], ["triangle-up", "▲"], ["diamond", "◆"], ["triangle-down", "▼"], ["pentagon", "⬟"], ["hexagon", "⬢"], ["cross", "✚"]];
const [symbolOf, glyphOf] = [0, 1].map((part) => (series) => SYMBOLS[report.series.indexOf(series) % SYMBOLS.length][part]);
const glyph = (series) => make("span", { class: "symbol", "aria-hidden": "true", colour: colourOf(series) }, glyphOf(series));
const colourOf = (series) => `var(--series-${report.series.indexOf(series) % 8})`;
const cssValue = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shownColour = (series) => cssValue(colourOf(series).slice(4, -1));
const format = (value) => (value === null ? "-" : Math.abs(value) >= 1000 ? value.toPrecision(5) : value.toFixed(4));
const layersOf = (point) => `${point.depth} of ${totalDepth} layers`;

/** The sub-networks that no other one beats in both quality and time, fastest first. */
function paretoFront() {
  const timed = scoredPoints().filter((point) => point.ms !== null);
  timed.sort((one, other) => one.ms - other.ms || (isBetter(valueOf(one), valueOf(other)) ? -1 : 1));
  const front = [];
  for (const point of timed) {
    if (!front.length || isBetter(valueOf(point), valueOf(front.at(-1)))) front.push(point);
  }
  return front;
}

/** The best of some points: by the metric, and among equals the shallower. */
function bestOf(points) {
  return points.reduce((best, point) => {
    if (!best || isBetter(valueOf(point), valueOf(best))) return point;
    return valueOf(point) === valueOf(best) && point.depth < best.depth ? point : best;
  }, null);
}

function drawAll() {
  for (const draw of views) draw();
  markCurrent();
}

function markCurrent() {
  for (const mark of markers) mark();
}

/** Show a sub-network while the pointer or focus is on it. */
function preview(id) {
  if (state.preview === id) return;
  state.preview = id;
  markCurrent();
}

/** Keep a sub-network shown until another is chosen. */
function pin(id) {
  state.pinned = id;
  state.preview = null;
  markCurrent();
}
