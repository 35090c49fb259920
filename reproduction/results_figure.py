"""The plot of the page of results: quality against depth, a panel for each study and a line for each method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reproduction.figures import COLOURS, MARKERS, STYLE
from reproduction.paired import Interval
from reproduction.proof import LISTED, Measured, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Arms that are trained whole, and those that were trained for a depth alone.
_LINES = {
    "standard": "standard, then cut",
    "layerdrop": "LayerDrop, best rate",
    LISTED: "a list of depths (ours)",
    "alone": "each depth trained alone",
    "distill": "each depth distilled alone",
}
_WORST = 2.5  # perplexity, in times of the best one: the axis ends there, else nothing could be told apart


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
            ncols=min(len(_LINES), columns + 1),  # the browser's font may be wider than the one it was laid out with
            frameon=False,
            fontsize=8,
        )
    return figure


def _panel(axes: Axes, one: Measured) -> None:
    shown = [
        interval.value
        for place, (line, label) in enumerate(_LINES.items())
        for interval in _draw_line(axes, one, line, label, place)
    ]
    if one.study.lower_is_better:
        axes.set_yscale("log")
        axes.set_ylim(top=min(max(shown) * 1.05, min(shown) * _WORST))
        _plain_numbers(axes)
    axes.set_title(textwrap.fill(one.study.title, 34), fontsize=9)
    axes.set_xlabel("layers")
    axes.set_ylabel(one.study.metric)
    axes.set_xticks(sorted({one.layers(cut) for cut in one.cuts}))


def _draw_line(axes: Axes, one: Measured, line: str, label: str, place: int) -> list[Interval]:
    points = [(one.layers(cut), interval) for cut in one.cuts if (interval := _point(one, line, cut)) is not None]
    points.sort(key=lambda point: point[0])  # two cuts of one depth stay as they are listed
    if not points:
        return []
    final = not any(one.lacks_seeds(arm) for cut in one.cuts if (arm := _arm(one, line, cut)) is not None)
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
        markerfacecolor=COLOURS[place] if final else "white",
        linestyle=("-", "--", "-", ":", "-.")[place],
        capsize=3,
    )
    return [interval for _, interval in points]


def _plain_numbers(axes: Axes) -> None:
    """Write 15 and 20 at a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _point(one: Measured, line: str, cut: str) -> Interval | None:
    arm = _arm(one, line, cut)
    return None if arm is None or one.behind(arm) else mean_of(one, arm, cut)


def _arm(one: Measured, line: str, cut: str) -> str | None:
    """Return the arm of a line at a cut, if it was measured."""
    arm = {"alone": one.own(cut), "distill": f"distill-{cut}" if f"distill-{cut}" in one.arms else None}.get(line, line)
    return arm if arm is not None and one.best(arm) is not None else None
