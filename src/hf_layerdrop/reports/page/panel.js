// The sub-network that the reader is looking at: its layers, its numbers, and the lines that load it.

function drawPanel() {
  const body = byId("details-body");
  const point = currentPoint();
  if (!point) {
    body.replaceChildren(make("p", { class: "quiet" }, "Point at a sub-network, or choose one, to see how to load it."));
    return;
  }
  const tags = [point.role === "result" ? null : point.role, paretoFront().includes(point) ? "on the Pareto front" : null];
  body.replaceChildren(
    make("p", { class: "headline" }, layersOf(point)),
    make("p", {}, glyph(point.series), ` ${point.series} `),
    ...tags.filter(Boolean).map((tag) => make("span", { class: "tag" }, tag)),
    ...Object.keys(report.depths).map((stack) => layerBoxes(point, stack)),
    make("dl", { class: "facts" }, ...point.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    snippet("Command", point.command),
    snippet("Python", point.python),
  );
}

function layerBoxes(point, stack) {
  const kept = new Set(point.keep[stack]);
  const text = `${several ? `${stack} ` : ""}layers ${[...kept].join(", ")} kept`;
  const boxes = Array.from({ length: report.depths[stack] }, (_, layer) =>
    make("i", kept.has(layer) ? { class: "kept" } : {}, String(layer)));
  const row = make("div", { class: "layers", role: "img", "aria-label": text, title: text, colour: colourOf(point.series) }, ...boxes);
  return several ? make("div", {}, make("span", { class: "quiet" }, stack), row) : row;
}

function snippet(name, text) {
  const button = make("button", { type: "button", class: "plain", "aria-label": `Copy: ${name}` }, "Copy");
  button.addEventListener("click", () => copy(text, button));
  return make("div", { class: "snippet" }, make("header", {}, name, button), make("pre", {}, make("code", {}, ...words(text))));
}

/** Let lines break between words, and before a long method's name; the text stays what it is. */
function words(text) {
  const parts = (word) => word.split(/(?=\.from_pretrained\()/).flatMap((part, idx) => (idx ? [make("wbr"), part] : [part]));
  return text.split(/(\s+)/).map((word) => (/\S/.test(word) ? make("span", { class: "word" }, ...parts(word)) : word));
}

async function copy(text, button) {
  const done = await toClipboard(text);
  button.textContent = done ? "Copied" : "Select it";
  byId("said").textContent = done ? "Copied." : "This browser does not copy: select the text.";
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // a page that is not served securely has no clipboard, but may still copy what is selected
    const area = make("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** A few sub-networks worth looking at first. */
function drawGlance() {
  const points = scoredPoints();
  const best = bestOf(points);
  byId("glance").replaceChildren();
  if (!best) return;
  const limit = 0.01 * Math.abs(valueOf(best));
  const near = points.filter((point) => Math.abs(valueOf(point) - valueOf(best)) <= limit);
  const least = (list, key) => bestOf(list.filter((point) => key(point) === Math.min(...list.map(key))));
  const atDepth = (depth) => points.filter((point) => point.depth === depth);
  const timed = near.filter((point) => point.ms !== null);
  const half = atDepth(Math.floor(totalDepth / 2));
  const tiles = [["Deepest", bestOf(atDepth(Math.max(...points.map((point) => point.depth))))]];
  if (half.length) tiles.push(["Half the layers", bestOf(half)]);
  tiles.push(["Shallowest within 1 % of the best", least(near, (point) => point.depth)]);
  if (timed.length) tiles.push(["Fastest within 1 % of the best", least(timed, (point) => point.ms)]);
  byId("glance").append(...tiles.map(([title, point]) => tile(title, point)));
}

function tile(title, point) {
  const time = point.ms === null ? "" : `, ${point.ms.toFixed(1)} ms`;
  const rest = `${point.depth} layers${time}${report.series.length > 1 ? `, ${point.series}` : ""}`;
  const lines = [make("span", {}, title), make("b", {}, format(valueOf(point))), make("span", {}, rest)];
  return make("button", { type: "button", class: "tile", onclick: () => pin(point.id) }, ...lines);
}
