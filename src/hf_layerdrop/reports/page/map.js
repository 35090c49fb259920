// The map of kept layers: a table with one row a sub-network, which is also the page's table of numbers.

const FIRST_ROWS = 40;
const COLUMNS = {
  depth: { title: () => "depth", value: (point) => point.depth, text: (point) => String(point.depth) },
  metric: { title: () => state.metric, value: valueOf, text: (point) => format(valueOf(point)) },
  parameters: { title: () => "parameters", value: (point) => point.parameters, text: (point) => shortCount(point.parameters), optional: true },
  ms: { title: () => report.time, value: (point) => point.ms, text: (point) => (point.ms === null ? "-" : point.ms.toFixed(1)) },
};
const shownColumns = () => Object.entries(COLUMNS).filter(([, column]) => report.points.some((point) => column.value(point) !== null));

function shortCount(count) {
  if (count === null) return "-";
  const [size, unit] = [[1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => count >= size) ?? [1, ""];
  return `${Number((count / size).toPrecision(3))}${unit}`;
}

function sortedPoints() {
  const key = COLUMNS[state.sort].value;
  const direction = state.falling ? -1 : 1;
  const better = greaterIsBetter() ? -1 : 1;
  return visiblePoints().sort((one, other) =>
    order(key(one), key(other), direction) || order(valueOf(one), valueOf(other), better) || one.id - other.id);
}

/** Compare numbers; what is missing comes last in either direction. */
function order(one, other, direction) {
  if (one === null || other === null) return (one === null) - (other === null);
  return direction * (one - other);
}

function drawMap() {
  const points = sortedPoints();
  const shown = state.allRows ? points : points.slice(0, FIRST_ROWS);
  const names = report.series.length > 1 ? [make("th", { class: "name", scope: "col" }, "series")] : [];
  const layers = make("th", { scope: "col" }, strip((stack, layer) => ({ text: layer % layerStep() ? "" : String(layer) }), "span", "strip numbers"));
  layers.setAttribute("aria-label", "kept layers");
  byId("map").tHead.replaceChildren(make("tr", {}, layers, ...shownColumns().map(heading), ...names));
  byId("map").tBodies[0].replaceChildren(...shown.map((point) => row(point, names.length > 0)));
  byId("all-rows").hidden = shown.length === points.length;
  byId("all-rows").textContent = `Show all ${points.length} sub-networks`;
  markRows();
}

const layerStep = () => (totalDepth > 24 ? 4 : totalDepth > 12 && matchMedia("(max-width: 560px)").matches ? 2 : 1);

function heading([name, column]) {
  const active = state.sort === name;
  const sort = () => {
    Object.assign(state, { sort: name, falling: active ? !state.falling : true });
    drawMap();
    byId("map").querySelector(`[data-sort="${name}"]`).focus();
  };
  const arrow = active ? (state.falling ? " ↓" : " ↑") : "";
  const button = make("button", { type: "button", "data-sort": name, onclick: sort }, column.title() + arrow);
  const sorted = active ? { "aria-sort": state.falling ? "descending" : "ascending" } : {};
  return make("th", { scope: "col", class: column.optional ? "optional" : "", ...sorted }, button);
}

function row(point, named) {
  const show = () => pin(point.id);
  const boxes = strip((stack, layer) => ({ kept: point.keep[stack]?.includes(layer) }), "button", "strip");
  boxes.type = "button";
  boxes.setAttribute("aria-label", `Keeps ${point.kept}, ${point.series}`);
  boxes.title = point.kept;
  const cells = shownColumns().map(([, column]) => make("td", { class: column.optional ? "optional" : "" }, column.text(point)));
  const role = point.role === "result" ? "" : ` (${point.role})`;
  const name = named ? [make("td", { class: "name", title: point.series }, glyph(point.series), point.series + role)] : [];
  return make("tr", { "data-id": point.id, colour: colourOf(point.series), onclick: show }, make("td", {}, boxes), ...cells, ...name);
}

function strip(look, tag, name) {
  const boxes = Object.entries(report.depths).flatMap(([stack, depth], number) =>
    Array.from({ length: depth }, (_, layer) => {
      const { kept, text } = look(stack, layer);
      const classes = [kept ? "kept" : "", number && !layer ? "first" : ""].join(" ").trim();
      return make("i", classes ? { class: classes } : {}, text ?? "");
    }));
  return make(tag, { class: name }, ...boxes);
}

function markRows() {
  for (const line of byId("map").tBodies[0].rows) {
    line.classList.toggle("current", Number(line.dataset.id) === state.pinned);
    line.querySelector("button").setAttribute("aria-pressed", String(Number(line.dataset.id) === state.pinned));
  }
}
