// The points of a chart by mouse, touch and keyboard. The chosen one takes the focus, and the arrow keys choose others:
// what has to be shown when the reader goes on to its copy button.

const idOf = (path) => (path.__data__?.id === undefined ? null : Number(path.__data__.id));
const pathsOf = (chart) => [...chart.querySelectorAll("path.point")].filter((path) => idOf(path) !== null);
const REACH = 24; // pixels, as plotly's hoverdistance
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

function connect(chart, xOf) {
  chart.on("plotly_hover", (event) => preview(Number(event.points[0].id)));
  chart.on("plotly_unhover", () => preview(null));
  chart.on("plotly_afterplot", () => label(chart));
  // Not plotly_click, which a slow device loses: it tells of the point that a hover found, and a tap comes before any hover.
  chart.addEventListener("click", (event) => press(chart, event));
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

/** Choose the point itself (assistive tools press it), or the one nearest to the finger or the mouse, which meet plotly's own layer. */
function press(chart, event) {
  const path = event.target.matches("path.point") ? event.target : nearest(pathsOf(chart), event);
  if (path) pin(idOf(path));
}

function nearest(paths, { clientX, clientY }) {
  const distance = (path) => {
    const box = path.getBoundingClientRect();
    return Math.hypot(box.x + box.width / 2 - clientX, box.y + box.height / 2 - clientY);
  };
  const [path, away] = paths.map((one) => [one, distance(one)]).reduce((best, other) => (other[1] < best[1] ? other : best), [null, REACH]);
  return away < REACH ? path : null;
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
