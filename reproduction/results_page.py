"""``docs/results.md``: methods x depths x tasks with intervals, costs, readings and a plot; written from journals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from hf_layerdrop.checkpoints.outputs import write_whole
from reproduction.criteria import AS_GOOD, criteria
from reproduction.figures import COLOURS, MARKERS, STYLE, as_svg
from reproduction.journal import Record, records_of
from reproduction.page import Table, as_markdown
from reproduction.paired import Difference, Interval
from reproduction.proof import LISTED, Measured
from reproduction.study import MINI, WHOLE, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = "results.md", "results.svg"
_TEMPLATE = Path(__file__).with_name("results.md.jinja")
_TITLES = {
    "standard": "standard, then cut",
    "depths": "**a list of depths, one a step (ours)**",
    "together": "several depths a step, distilled",
    "depth-0.5": "depth sampler 0.5",
}
# Lines of the plot: arms that are trained whole, and those that were trained for a depth alone.
_LINES = {
    "standard": "standard, then cut",
    "layerdrop": "LayerDrop, best rate",
    LISTED: "a list of depths (ours)",
    "alone": "each depth trained alone",
    "distill": "each depth distilled alone",
}
_UNITS = {"accuracy": " points", "perplexity": " %", "bleu": " BLEU"}


def write_results(studies: Sequence[Study], records: Sequence[Record], folder: Path = DOCS) -> list[Path]:
    """Write the page and its picture, each whole or not at all, and return their paths."""
    measured = [Measured(study, records, criteria()) for study in studies]
    measured = [one for one in measured if any(one.of(arm) for arm in one.arms)]
    texts = {PAGE: _page(measured)}
    if measured:
        texts[PICTURE] = as_svg(draw_results(measured))
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def _page(measured: Sequence[Measured]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    parts = [
        {
            "title": one.study.title,
            "scores": as_markdown(scores_table(one), 3),
            "line": break_even(one),
            "readings": as_markdown(readings_table(one), 3),
            "tried": as_markdown(tried_table(one), 3),
        }
        for one in measured
    ]
    short = as_markdown(summary_table(measured)) if measured else ""
    return template.render(parts=parts, short=short, criteria=criteria(), picture=PICTURE if measured else None)


_SHORT = ("pays", "own", "long", "regularises", "cut-better")


def summary_table(measured: Sequence[Measured]) -> Table:
    """Return the readings that matter most, a line for each study, and what one training costs of all alone."""
    says = {one.mark: one.says for one in criteria().comparisons if one.mark}
    rows = []
    for one in measured:
        cells = {mark: [f"{r.cut}: {r.difference.verdict}" for r in one.readings(mark)] for mark in _SHORT}
        ours, alone = one.cost(LISTED), one.costs_alone()
        share = f"{ours / alone[-1][1]:.0%}" if ours is not None and len(alone) == len(one.cuts) else ""
        rows.append([one.study.title, *("; ".join(cell) for cell in cells.values()), share])
    return Table("In short", ["study", *(says[mark] for mark in _SHORT), "cost of all alone"], rows)


def scores_table(one: Measured) -> Table:
    """Return the score of each arm at each depth, and its cost in trainings of the whole model."""
    names = [f"{one.layers(cut)} layers" if cut != WHOLE else f"all {one.layers(cut)}" for cut in one.cuts]
    rows = [
        [
            _title(arm),
            *(_shown(_mean(one, arm, cut), one.study.metric) for cut in one.cuts),
            _cost(one, arm),
            _seeds(one, arm),
        ]
        for arm in one.arms
        if one.of(arm)
    ]
    better = "less" if one.study.lower_is_better else "more"
    return Table(
        f"{one.study.metric.capitalize()}, {better} is better", ["training", *names, "layer forwards", "seeds"], rows
    )


def _title(arm: str) -> str:
    name = arm.removesuffix("-long")
    ending = ", as long as the whole" if name != arm else ""
    kind, _, depth = name.partition("-")
    others = {
        "alone": f"{depth} layers, cut first, alone",
        "scratch": f"{depth} from scratch, alone",
        "distill": f"{depth} distilled, alone",
    }
    return f"{_TITLES.get(name) or others.get(kind, name)}{ending}"


def _mean(one: Measured, arm: str, cut: str) -> Interval | None:
    found = one.scores(arm, cut)
    return found.mean(one.criteria.confidence) if found.whole else None


def _shown(interval: Interval | None, metric: str) -> str:
    if interval is None:
        return ""
    form = "{:.3f} ({:.3f} to {:.3f})" if metric == "accuracy" else "{:.2f} ({:.2f} to {:.2f})"
    return form.format(interval.value, interval.low, interval.high)


def _cost(one: Measured, arm: str) -> str:
    cost = one.cost(arm)
    return "" if cost is None else f"{cost:.2f}"


def _seeds(one: Measured, arm: str) -> str:
    return ", ".join(str(record["seed"]) for record in one.of(arm))


def break_even(one: Measured) -> str:
    """Return what one training costs against one for each depth, and from how many on it is the cheaper."""
    ours, alone = one.cost(LISTED), one.costs_alone()
    if ours is None or len(alone) < len(one.cuts):
        return "One training against k: not measured yet."
    sums = ", ".join(f"{total:.2f}" for _, total in alone)
    pays = next((number for number, (_, total) in enumerate(alone, 1) if total > ours), None)
    half = "holds" if ours < alone[-1][1] / 2 else "does not hold"
    since = f"it is the cheaper from {pays} depths on" if pays else "it is the cheaper for none of these"
    return (
        f"One training of the list costs {ours:.2f} trainings of the whole model; one training for each depth, the "
        f'shallowest first, costs {sums} for 1 to {len(alone)} of them: {since}. "Less than half of them all" '
        f"**{half}** ({ours / alone[-1][1]:.0%})."
    )


def readings_table(one: Measured) -> Table:
    """Return the reading of each comparison at each depth."""
    rows = [
        [
            read.comparison.says,
            *read.sides,
            read.difference.verdict,
            _said(read.difference, one.study.metric, read.comparison.kind),
        ]
        for read in one.readings()
    ]
    return Table("Readings", ["claim", "arm", "against", "reading", "difference (95 %), by seed"], rows)


def _said(found: Difference, metric: str, kind: str) -> str:
    if found.interval is None:
        return ""
    value = found.interval
    margin = f", margin {found.margin:g}" if kind == AS_GOOD else ""
    seeds = ", ".join(f"{gap:+.2f}" for gap in found.by_seed.values())
    return f"{value.value:+.2f}{_UNITS[metric]} ({value.low:+.2f} to {value.high:+.2f}{margin}); {seeds}"


def tried_table(one: Measured) -> Table:
    """Return all that was run, the best and the others, by seed."""
    rows = [
        list(row) for arm in one.arms for variant in one.study.variants_of(arm) for row in _tried(one, arm, variant)
    ]
    return Table("All that was run", ["run", "chosen", *one.cuts, "steps", "CPU minutes", "seeds"], rows)


def _tried(one: Measured, arm: str, variant: str) -> Iterator[list[str]]:
    found = records_of(one.records, one.study.name, variant, MINI)
    if not found:
        return
    scores = []
    for cut in one.cuts:
        values = [record["cuts"][cut]["metrics"][one.study.metric] for record in found if cut in record["cuts"]]
        scores.append(" / ".join(f"{value:.4g}" for value in values))
    minutes = fmean(record["cpu_seconds"] for record in found) / 60
    seeds = ", ".join(str(record["seed"]) for record in found)
    yield [
        variant,
        "yes" if one.best(arm) == variant else "",
        *scores,
        f"{found[0]['steps']:,}",
        f"{minutes:.1f}",
        seeds,
    ]


def draw_results(measured: Sequence[Measured]) -> Figure:
    """Draw a panel for each study: quality against depth, a line for each method."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(len(measured), 4)
    lines = -(-len(measured) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(4 * columns, 3.4 * lines + 0.6), layout="constrained")
        places = figure.subplots(lines, columns, squeeze=False).flat
        for one in measured:
            _panel(next(places), one)
        for empty in places:
            empty.set_axis_off()
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(len(_LINES), 2 * columns),
            frameon=False,
        )
    return figure


def _panel(axes: Axes, one: Measured) -> None:
    for place, (line, label) in enumerate(_LINES.items()):
        points = [(one.layers(cut), interval) for cut in one.cuts if (interval := _point(one, line, cut)) is not None]
        if points:
            values = [interval.value for _, interval in points]
            below = [max(0.0, interval.value - interval.low) for _, interval in points]
            above = [max(0.0, interval.high - interval.value) for _, interval in points]
            axes.errorbar(
                [depth for depth, _ in points],
                values,
                yerr=[below, above],
                label=label,
                color=COLOURS[place],
                marker=MARKERS[place],
                linestyle=("-", "--", "-", ":", "-.")[place],
                capsize=3,
            )
    if one.study.lower_is_better:
        axes.set_yscale("log")
    axes.set_title(one.study.title, fontsize=9)
    axes.set_xlabel("layers")
    axes.set_ylabel(one.study.metric)
    axes.set_xticks([one.layers(cut) for cut in one.cuts])


def _point(one: Measured, line: str, cut: str) -> Interval | None:
    if line == "alone":
        own = one.own(cut)
        return None if own is None else _mean(one, own, cut)
    if line == "distill":
        return _mean(one, f"distill-{cut}", cut) if f"distill-{cut}" in one.arms else None
    return _mean(one, line, cut)
