// The points of a chart by mouse, touch and keyboard. The chosen one takes the focus, and the arrow keys choose others:
// what has to be shown when the reader goes on to its copy button.

const idOf = (path) => (path.__data__?.id === undefined ? null : Number(path.__data__.id));
const pathsOf = (chart) => [...chart.querySelectorAll("path.point")].filter((path) => idOf(path) !== null);
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

function connect(chart, xOf) {
  chart.on("plotly_hover", (event) => preview(Number(event.points[0].id)));
  chart.on("plotly_unhover", () => preview(null));
  chart.on("plotly_click", (event) => pin(Number(event.points[0].id)));
  chart.on("plotly_afterplot", () => label(chart));
  chart.addEventListener("click", (event) => press(event.target)); // from assistive tools; the mouse meets plotly's own layer
  chart.addEventListener("keydown", (event) => go(chart, event, xOf));
  markers.push(() => mark(chart));
  label(chart);
}

function label(chart) {
  for (const path of pathsOf(chart)) {
    path.setAttribute("role", "button");
    path.setAttribute("aria-label", describe(report.points[idOf(path)]));
  }
  mark(chart);
}

function mark(chart) {
  const current = currentPoint()?.id;
  const paths = pathsOf(chart);
  const stop = paths.find((path) => idOf(path) === state.pinned) ?? paths[0];
  for (const path of paths) {
    path.setAttribute("tabindex", path === stop ? "0" : "-1");
    path.classList.toggle("current", idOf(path) === current);
    path.setAttribute("aria-pressed", String(idOf(path) === state.pinned));
  }
}

function press(path) {
  if (path.matches("path.point")) pin(idOf(path));
}

function go(chart, event, xOf) {
  const id = event.target.matches("path.point") ? idOf(event.target) : null;
  if (id === null) return;
  const paths = pathsOf(chart).sort((one, other) => compare(report.points[idOf(one)], report.points[idOf(other)], xOf));
  const here = paths.indexOf(event.target);
  const next = { Enter: here, " ": here, Home: 0, End: paths.length - 1 }[event.key] ?? here + STEPS[event.key];
  if (Number.isNaN(next)) return;
  const path = paths[Math.min(Math.max(next, 0), paths.length - 1)];
  path.focus();
  pin(idOf(path));
  event.preventDefault();
}

const compare = (one, other, xOf) => xOf(one) - xOf(other) || valueOf(one) - valueOf(other) || one.id - other.id;
