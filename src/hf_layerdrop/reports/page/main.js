// The controls, the theme, and the start of the page.

function buildControls() {
  const select = byId("metric");
  select.append(...report.metrics.map(({ name }) => make("option", { value: name }, name)));
  select.value = state.metric;
  select.addEventListener("change", () => { state.metric = select.value; drawAll(); });
  byId("series").append(...report.series.map(chip));
  byId("series").hidden = report.series.length < 2;
  byId("all-rows").addEventListener("click", () => { state.allRows = true; drawMap(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });
}

function chip(series) {
  const box = make("input", { type: "checkbox", checked: "" });
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(series);
    else state.hidden.add(series);
    drawAll();
  });
  return make("label", { class: "chip", colour: colourOf(series) }, box, glyph(series), series);
}

function drawNotes() {
  const points = scoredPoints();
  const sets = new Set(points.map((point) => JSON.stringify(point.keep))).size;
  byId("counted").textContent = `${points.length} measurements of ${sets} sub-networks of ${totalDepth} layers.`;
  const online = points.filter((point) => ON_LINE.has(point.role));
  const bands = new Set(online.map((point) => `${point.series}\n${point.depth}`)).size < online.length;
  const notes = ["Every point is a sub-network."];
  if (bands) notes.push("Lines are means at each depth, bands reach from the worst to the best.");
  if (points.some((point) => point.role === "chosen")) notes.push("Stars were chosen; open points are runner-ups, and what is just outside of the budget.");
  byId("depth-note").textContent = notes.join(" ");
  byId("latency").hidden = !report.points.some((point) => point.ms !== null);
  byId("latency-note").textContent = "The dotted line is the Pareto front: nothing measured is both faster and better. Its numbers are depths.";
}

function buildScores() {
  byId("scores").hidden = !report.layerScores.length;
  report.layerScores.forEach((scores, number) => {
    const chart = make("div", { id: `scores-${number}`, class: "chart", role: "img", "aria-label": `${scores.name} by layer; the numbers follow.` });
    const rows = Object.entries(scores.values).flatMap(([stack, values]) => values.map((value, layer) =>
      make("tr", {}, make("th", { scope: "row" }, `${several ? `${stack} ` : ""}layer ${layer}`), make("td", {}, format(value)))));
    const table = make("details", {}, make("summary", {}, "Numbers"), make("table", {}, make("tbody", {}, ...rows)));
    byId("score-charts").append(make("div", {}, make("h3", {}, scores.name), chart, table));
  });
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
}

function buildTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  setTheme(system.matches ? "dark" : "light");
  byId("theme").addEventListener("click", () => {
    chosen = true;
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    drawAll();
  });
  system.addEventListener("change", () => {
    if (!chosen) setTheme(system.matches ? "dark" : "light");
    drawAll();
  });
}

/** Unpack the chart library; the page's policy runs it only if it is, to the byte, what the report was written with. */
async function loadPlotly() {
  const packed = Uint8Array.from(atob(byId("plotly-source").textContent), (letter) => letter.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(make("script", {}, text));
  if (!window.Plotly) throw new Error("the chart library did not start");
}

async function start() {
  buildTheme();
  buildControls();
  buildScores();
  views.push(drawNotes, drawGlance, drawMap);
  markers.push(drawPanel, markRows);
  const chosen = report.points.find((point) => point.role === "chosen");
  state.pinned = (chosen ?? bestOf(scoredPoints()))?.id ?? null;
  drawAll();
  try {
    await loadPlotly();
  } catch (error) {
    const text = "This browser cannot draw the charts (it needs to be of 2023 or newer); the table below has all numbers.";
    byId("depth-chart").replaceWith(make("p", { class: "warning" }, text));
    byId("latency").remove();
    document.documentElement.dataset.ready = "without charts";
    return;
  }
  views.push(drawCharts);
  drawCharts();
  connect(byId("depth-chart"), (point) => point.depth);
  connect(byId("latency-chart"), (point) => point.ms);
  document.documentElement.dataset.ready = "yes";
}

start();
