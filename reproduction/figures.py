"""The pictures of tables and figures, drawn from records of the journal."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from reproduction.experiment import SPEED, Experiment, Side
from reproduction.journal import Record, records_of
from reproduction.study import WHOLE, Study
from reproduction.summary import Quantity, quantity_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "os^DvPX*"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_layerdrop",
}


def draw_experiment(
    experiment: Experiment, studies: Mapping[str, Study], size: str, records: Sequence[Record]
) -> Figure | None:
    """Draw a panel for each study of which something was measured; None if nothing was."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [name for name in experiment.studies_at(size) if _has_any(experiment, studies[name], size, records)]
    if not shown:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(1 + 4.6 * len(shown), 3.9), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _CHARTS[experiment.chart](axes, experiment, studies[name], size, records)
            axes.set_title(studies[name].title, fontsize=10)
    return figure


def as_svg(figure: Figure) -> str:
    """Return a picture as text that can stand in a page."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def shown_cuts(experiment: Experiment, study: Study, size: str) -> list[str]:
    """Return the cuts of a study that an experiment shows."""
    cuts = study.sizes[size].cuts
    return [cut for cut in experiment.cuts or cuts if cut in cuts]


def _has_any(experiment: Experiment, study: Study, size: str, records: Sequence[Record]) -> bool:
    return any(records_of(records, study.name, arm, size) for arm in experiment.arms)


def _depths(axes: Axes, experiment: Experiment, study: Study, size: str, records: Sequence[Record]) -> None:
    """A line for each arm over its depths; an arm that was trained at one depth joins those of its kind."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    lines: dict[str, list[tuple[int, Quantity]]] = {}
    for arm in experiment.arms:
        for cut in shown_cuts(experiment, study, size):
            quantity = quantity_of(records, study, size, Side(arm, cut))
            if quantity.by_seed:
                depth = _depth(records, study, size, arm, cut)
                lines.setdefault(arm.removesuffix(f"-{cut}"), []).append((depth, quantity))
    for place, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0])
        axes.errorbar(
            [depth for depth, _ in points],
            [quantity.mean for _, quantity in points],
            yerr=[quantity.spread or 0.0 for _, quantity in points],
            label=name,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            capsize=3,
        )
    if study.lower_is_better:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layers")
    axes.set_ylabel(study.metric)
    axes.legend(frameon=False, fontsize=8)


def _depth(records: Sequence[Record], study: Study, size: str, arm: str, cut: str) -> int:
    """Return how many layers are left, of the stacks that are cut."""
    kept = records_of(records, study.name, arm, size)[0]["cuts"][cut]["keep_layers"]
    return len(kept.get("decoder") or next(iter(kept.values())))


def _bars(axes: Axes, experiment: Experiment, study: Study, size: str, records: Sequence[Record]) -> None:
    sides = [Side(arm, cut) for cut in shown_cuts(experiment, study, size) for arm in experiment.arms]
    found = {str(side): quantity_of(records, study, size, side) for side in sides}
    _bar(axes, {name: quantity for name, quantity in found.items() if quantity.by_seed})
    axes.set_xlabel(study.metric)


def _speed(axes: Axes, experiment: Experiment, study: Study, size: str, records: Sequence[Record]) -> None:
    found = {arm: quantity_of(records, study, size, Side(arm, WHOLE), SPEED) for arm in experiment.arms}
    _bar(axes, {name: quantity for name, quantity in found.items() if quantity.by_seed})
    axes.set_xlabel("rows per CPU second of training")


def _bar(axes: Axes, quantities: Mapping[str, Quantity]) -> None:
    means = [quantity.mean for quantity in quantities.values()]
    spreads = [quantity.spread or 0.0 for quantity in quantities.values()]
    bars = axes.barh(list(quantities), means, xerr=spreads, color=COLOURS[0], capsize=3)
    axes.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _importance(axes: Axes, experiment: Experiment, study: Study, size: str, records: Sequence[Record]) -> None:
    for arm in experiment.arms:
        found = [
            record["importance"] for record in records_of(records, study.name, arm, size) if "importance" in record
        ]
        for stack in found[0]["scores"] if found else ():
            scores = list(zip(*(one["scores"][stack] for one in found), strict=True))
            axes.bar(range(1, len(scores) + 1), [fmean(values) for values in scores], color=COLOURS[0])
            axes.set_ylim(bottom=0.98 * min(min(values) for values in scores))
    axes.set_xlabel("layer that the sets lack")
    axes.set_ylabel(f"average {study.metric}")


_CHARTS: dict[str, Callable[..., None]] = {
    "depths": _depths,
    "bars": _bars,
    "speed": _speed,
    "importance": _importance,
}
