"""``docs/results.md``: methods x depths x tasks with intervals, costs, readings and a plot; written from journals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from hf_layerdrop.checkpoints.outputs import write_whole
from reproduction.criteria import AS_GOOD, criteria
from reproduction.figures import as_svg
from reproduction.journal import Record, records_of
from reproduction.page import Table, as_markdown
from reproduction.paired import UNITS, Difference, Interval
from reproduction.proof import LISTED, OPEN, Measured, Read, mean_of
from reproduction.results_figure import draw_results
from reproduction.study import DEEP, MINI, WHOLE, Study

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = "results.md", "results.svg"
_TEMPLATE = Path(__file__).with_name("results.md.jinja")
_FEW = 2  # settings, of which the best is at an end whatever it is
_TITLES = {
    "standard": "standard, then cut",
    "depths": "**a list of depths, one a step (ours)**",
    "together": "several depths a step, distilled",
    "depth-0.5": "depth sampler 0.5",
}


def write_results(studies: Sequence[Study], records: Sequence[Record], folder: Path = DOCS) -> list[Path]:
    """Write the page and its picture, each whole or not at all, and return their paths."""
    measured = [Measured(study, records, criteria()) for study in studies]
    missing = [one.study.title for one in measured if not any(one.of(arm) for arm in one.arms)]
    measured = [one for one in measured if one.study.title not in missing]
    texts = {PAGE: _page(measured, missing)}
    if measured:
        texts[PICTURE] = as_svg(draw_results(measured))
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def _page(measured: Sequence[Measured], missing: Sequence[str]) -> str:
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
    return template.render(
        parts=parts,
        answers=[answer(one) for one in measured],
        short=short,
        missing=missing,
        criteria=criteria(),
        picture=PICTURE if measured else None,
    )


# Marks of the comparisons of the table in short, and what its columns are called.
_SHORT = {
    "pays": "depth pays",
    "own": "list as good as each depth alone",
    "long": "... alone, at the cost of the whole",
    "regularises": "LayerDrop regularises",
    "cut-better": "a cut of LayerDrop better than alone",
}


def summary_table(measured: Sequence[Measured]) -> Table:
    """Return the readings that matter most, a line for each study, and what one training costs of all alone."""
    rows = [
        [one.study.title, *(_by_verdict(one, one.readings(mark)) for mark in _SHORT), _share(one)] for one in measured
    ]
    return Table("Readings in short", ["study", *_SHORT.values(), "cost of one for all, of each alone"], rows)


def _by_verdict(one: Measured, reads: Iterable[Read]) -> str:
    """Return "holds at 6, 4 layers; open, 1 of 3 seeds at 2"."""
    depths: dict[str, list[str]] = {}
    for read in reads:
        depths.setdefault(read.verdict, []).append(str(one.layers(read.cut)))
    return "; ".join(f"{verdict}: {', '.join(own)}" for verdict, own in depths.items())


def _share(one: Measured) -> str:
    ours, alone = one.cost(LISTED), one.costs_alone()
    return f"{ours / alone[-1][1]:.0%}" if ours is not None and len(alone) == len(one.cuts) else ""


def answer(one: Measured) -> str:
    """Return what a study says in two sentences, with the differences behind them."""
    share, seeds = _share(one), sorted({record["seed"] for record in one.of(LISTED)})
    cost = f" for {share} of the layer forwards of training each alone" if share else ""
    said = [f"**{one.study.title[0].upper()}{one.study.title[1:]}**{_so_far(one, seeds)}."]
    if own := list(one.readings("own")):
        said.append(f"One training of a list of depths{cost}, against the training of each alone: {_gaps(one, own)}.")
    if cut := [read for read in one.readings() if read.sides[0].startswith(f"{LISTED}@") and _of_standard_cut(read)]:
        said.append(f"Against the standard model, cut: {_gaps(one, cut)}.")
    if regularises := list(one.readings("regularises")):
        said.append(f"LayerDrop against the standard model, both whole: {_gaps(one, regularises)}.")
    return " ".join(said)


def _of_standard_cut(read: Read) -> bool:
    return read.comparison.than == "standard"


def _so_far(one: Measured, seeds: Sequence[int]) -> str:
    missing = [str(seed) for seed in one.criteria.seeds if seed not in seeds]
    if not missing:
        return ""
    return f" (so far without seed{'s' if len(missing) > 1 else ''} {', '.join(missing)})"


def _gaps(one: Measured, reads: Sequence[Read]) -> str:
    """Return the difference at each depth, with the reading where there is one."""
    unit, layers = UNITS[one.study.metric], " layers"
    gaps = []
    for read in reads:
        if read.difference.interval is not None:
            reading = "" if read.verdict.startswith(OPEN) else f" ({read.verdict})"
            value = read.difference.interval.value
            gaps.append(f"{value:+.1f}{unit} at {one.layers(read.cut)}{layers}{reading}")
            unit = layers = ""
    return ", ".join(gaps)


def scores_table(one: Measured) -> Table:
    """Return the score of each arm at each depth, and its cost in trainings of the whole model."""
    names = [_cut_name(one, cut) for cut in one.cuts]
    rows = [
        [
            _title(arm),
            *(_shown(mean_of(one, arm, cut), one.study.metric) for cut in one.cuts),
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


def _cut_name(one: Measured, cut: str) -> str:
    own = f", {one.cuts[cut]}" if str(one.cuts[cut]).startswith(":") else ""
    return f"all {one.layers(cut)}" if cut == WHOLE else f"{one.layers(cut)} layers{own}"


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


def _shown(interval: Interval | None, metric: str) -> str:
    if interval is None:
        return ""
    form = "{:.3f} ({:.3f} to {:.3f})" if metric == "accuracy" else "{:.2f} ({:.2f} to {:.2f})"
    return form.format(interval.value, interval.low, interval.high)


def _cost(one: Measured, arm: str) -> str:
    cost = one.cost(arm)
    return "" if cost is None else f"{cost:.2f}"


def _seeds(one: Measured, arm: str) -> str:
    """Return the seeds that are there, and what is missing."""
    there = [record["seed"] for record in one.of(arm)]
    missing = [str(seed) for seed in one.criteria.seeds if seed not in there]
    notes = [", ".join(map(str, there)), f"without {', '.join(missing)}" if missing else "", one.behind(arm)]
    return "; ".join(filter(None, notes))


def break_even(one: Measured) -> str:
    """Return what one training costs against one for each depth, and from how many on it is the cheaper."""
    ours, alone = one.cost(LISTED), one.costs_alone()
    if ours is None or len(alone) < len(one.cuts):
        return "One training against k: not measured yet." if LISTED in one.arms else ""
    sums = ", ".join(f"{total:.2f}" for _, total in alone)
    pays = next((number for number, (_, total) in enumerate(alone, 1) if total > ours), None)
    half = "holds" if ours < alone[-1][1] / 2 else "does not hold"
    since = f"it is the cheaper from {pays} depths on" if pays else "it is the cheaper for none of these"
    whole = one.cost(DEEP) or 0.0
    if pays and pays > _FEW and whole + alone[0][1] > ours:
        since += ", and from 2 on where the whole model is one of them"
    minutes = one.minutes(LISTED), one.minutes(*filter(None, map(one.own, one.cuts)))
    return (
        f"One training of the list costs {ours:.2f} trainings of the whole model, however many depths are in it; one "
        f"training for each depth, the shallowest first, costs {sums} for 1 to {len(alone)} of them: {since}. "
        f'"Less than half of them all" **{half}** '
        f"({ours / alone[-1][1]:.0%}; in CPU minutes, beside other jobs, {minutes[0]:.1f} against {minutes[1]:.1f})."
    )


def readings_table(one: Measured) -> Table:
    """Return the reading of each comparison at each depth."""
    rows = [
        [
            read.comparison.says,
            *read.sides,
            read.verdict,
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
    return f"{value.value:+.2f}{UNITS[metric]} ({value.low:+.2f} to {value.high:+.2f}{margin}); {seeds}"


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
        _chosen(one, arm, variant),
        *scores,
        f"{found[0]['steps']:,}",
        f"{minutes:.1f}",
        seeds,
    ]


def _chosen(one: Measured, arm: str, variant: str) -> str:
    """Tell whether a variant stands for its arm, and where a stronger one was not tried."""
    if one.best(arm) != variant:
        return ""
    variants = one.study.variants_of(arm)
    return "yes, the last one" if len(variants) > _FEW and variant == variants[-1] else "yes"
