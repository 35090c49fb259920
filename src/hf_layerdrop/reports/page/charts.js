// The charts: traces and layouts for plotly, made from the points that are visible.

const ON_LINE = new Set(["result", "chosen", "whole"]);

/** plotly reads a few HTML tags in its texts; names are to stay what they are. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const describe = (point) => `${point.series}, ${layersOf(point)}: ${point.kept}. ${state.metric} ${format(valueOf(point))}`;

function hoverText(point) {
  const time = point.ms === null ? "" : `, ${point.ms.toFixed(1)} ${report.time}`;
  const role = point.role === "result" ? "" : ` (${point.role})`;
  const lines = [`<b>${plain(cut(point.series, 40))}</b>${role}`, layersOf(point), plain(cut(point.kept, 60))];
  return [...lines, `${plain(state.metric)} ${format(valueOf(point))}${time}`].join("<br>");
}

function markerTrace(series, points, xOf) {
  const crowded = points.length > 40;
  const colour = shownColour(series);
  return {
    type: "scatter", mode: "markers", name: plain(series), cliponaxis: false, showlegend: false,
    x: points.map(xOf), y: points.map(valueOf), ids: points.map((point) => String(point.id)),
    hovertext: points.map(hoverText), hoverinfo: "text",
    marker: {
      color: colour, opacity: crowded ? 0.55 : 1, line: { width: crowded ? 0.6 : 1.2, color: cssValue("--card") },
      size: points.map((point) => (point.role === "chosen" ? 17 : crowded ? 7 : 9)),
      symbol: points.map((point) => roleSymbol(point, series)),
    },
  };
}

function roleSymbol(point, series) {
  if (point.role === "chosen") return "star";
  const symbol = symbolOf(series);
  return point.role === "runner-up" || point.role === "outside" ? `${symbol}-open` : symbol;
}

function byDepth(points) {
  const groups = new Map();
  for (const point of points) {
    if (!groups.has(point.depth)) groups.set(point.depth, []);
    groups.get(point.depth).push(valueOf(point));
  }
  return [...groups].sort(([one], [other]) => one - other);
}

function lineTraces(series, points) {
  const groups = byDepth(points.filter((point) => ON_LINE.has(point.role)));
  const depths = groups.map(([depth]) => depth);
  const low = groups.map(([, values]) => Math.min(...values));
  const high = groups.map(([, values]) => Math.max(...values));
  const colour = shownColour(series);
  const mean = ([, values]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const common = { type: "scatter", hoverinfo: "skip", showlegend: false };
  const band = {
    ...common, mode: "lines", x: [...depths, ...depths.toReversed()], y: [...high, ...low.toReversed()],
    fill: "toself", fillcolor: `${colour}26`, line: { width: 0 }, name: `${plain(series)}: band`,
  };
  const line = { ...common, mode: "lines", x: depths, y: groups.map(mean), line: { color: colour, width: 2.5 }, name: `${plain(series)}: mean` };
  return groups.some(([, values]) => values.length > 1) ? [band, line] : [line];
}

/** Stand the points of several series beside each other where they would lie on top of each other. */
function shiftOf(series, crowded) {
  const shown = report.series.filter((name) => !state.hidden.has(name));
  return crowded ? (shown.indexOf(series) - (shown.length - 1) / 2) * Math.min(0.16, 0.7 / shown.length) : 0;
}

function depthTraces() {
  const points = scoredPoints();
  const crowded = byDepth(points).some(([, values]) => values.length > 2 * report.series.length);
  const groups = report.series.map((series) => [series, points.filter((point) => point.series === series)]);
  const lines = groups.flatMap(([series, own]) => (own.length ? lineTraces(series, own) : []));
  const dots = groups.map(([series, own]) => markerTrace(series, own, (point) => point.depth + shiftOf(series, crowded)));
  const bands = lines.filter((trace) => trace.fill);
  return [...bands, ...dots, ...lines.filter((trace) => !trace.fill)];
}

function latencyTraces() {
  const timed = scoredPoints().filter((point) => point.ms !== null);
  const front = paretoFront();
  const named = new Map(front.map((point) => [point.depth, point])); // the best of each depth
  const line = {
    type: "scatter", mode: "lines+text", hoverinfo: "skip", name: "Pareto front", showlegend: false,
    x: front.map((point) => point.ms), y: front.map(valueOf), line: { shape: "hv", width: 2, dash: "dot", color: cssValue("--ink") },
    text: front.map((point) => (named.get(point.depth) === point ? `${point.depth}\u00a0\u00a0` : "")), textfont: { color: cssValue("--ink"), size: 12 },
    textposition: greaterIsBetter() ? "top left" : "bottom left", cliponaxis: false,
  };
  const dots = report.series.map((series) => markerTrace(series, timed.filter((point) => point.series === series), (point) => point.ms));
  return [...dots, line];
}

function layout(xTitle, yTitle, extra = {}) {
  const axis = {
    gridcolor: cssValue("--grid"), linecolor: cssValue("--line"), zeroline: false, fixedrange: true, automargin: true,
    ticks: "outside", tickcolor: cssValue("--line"),
  };
  return {
    xaxis: { ...axis, title: { text: plain(xTitle), standoff: 8 }, ...extra.xaxis },
    yaxis: { ...axis, title: { text: plain(yTitle), standoff: 8 }, ...extra.yaxis },
    font: { family: "system-ui, sans-serif", size: 13, color: cssValue("--quiet") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 12, r: 14, t: 16, b: 12 },
    hovermode: "closest", hoverdistance: REACH, dragmode: false, showlegend: Boolean(extra.showlegend),
    legend: { orientation: "h", y: 1.12, x: 0 }, barcornerradius: 3, bargap: 0.25,
    hoverlabel: { bgcolor: cssValue("--card"), bordercolor: cssValue("--ink"), font: { color: cssValue("--ink"), size: 13 }, align: "left" },
  };
}

const betterText = () => `${state.metric} (${greaterIsBetter() ? "higher" : "lower"} is better)`;
const SETTINGS = { displayModeBar: false, responsive: true };

function drawCharts() {
  const ticks = { dtick: totalDepth <= 16 ? 1 : undefined, range: [0.5, totalDepth + 0.5] };
  Plotly.react("depth-chart", depthTraces(), layout("layers kept", betterText(), { xaxis: ticks }), SETTINGS);
  Plotly.react("latency-chart", latencyTraces(), layout(report.time, betterText(), { xaxis: { rangemode: "normal" } }), SETTINGS);
  drawScores();
}

function drawScores() {
  report.layerScores.forEach((scores, number) => {
    const traces = Object.entries(scores.values).map(([stack, values], idx) => ({
      type: "bar", name: plain(stack), x: values.map((_, layer) => layer), y: values, marker: { color: cssValue(`--series-${idx}`) },
      hovertemplate: "layer %{x}: %{y:.4g}<extra></extra>",
    }));
    const shape = layout("layer", scores.unit, { xaxis: { dtick: totalDepth <= 24 ? 1 : undefined }, showlegend: traces.length > 1 });
    Plotly.react(`scores-${number}`, traces, shape, SETTINGS);
  });
}
