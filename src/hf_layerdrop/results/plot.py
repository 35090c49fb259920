"""Quality against depth as a picture, for the model card, the README and notebooks."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import LayerDropConfigError, require
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import evenly_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any colour vision; the markers do the same in black and white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "text.parse_math": False,  # a name may hold a $
    "svg.fonttype": "none",  # text stays text: searchable, and a third of the size
    "svg.hashsalt": "hf_layerdrop",  # the same records give the same file
}


def draw_depth_plot(
    series: Mapping[str, Sequence[SubNetworkResult]],
    metric: str,
    path_stem: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> list[Path]:
    """Draw ``metric`` against depth, write ``path_stem`` + ``.png`` and ``.svg``, and return the two paths.

    The solid line is the evenly spread set of each depth. Where a series holds several sub-networks of a depth, a
    dashed line shows their mean and a band reaches from the worst to the best.

    Raises:
        LayerDropConfigError: No record of any series has this metric.
        MissingExtraError: Matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib import rc_context

    figure = depth_figure(series, metric, title)
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_STYLE):
        return [_save(figure, stem.with_name(f"{stem.name}{suffix}")) for suffix in (".png", ".svg")]


def depth_figure(series: Mapping[str, Sequence[SubNetworkResult]], metric: str, title: str | None = None) -> Figure:
    """Draw what `draw_depth_plot` writes.

    Raises:
        LayerDropConfigError: No record of any series has this metric.
    """
    from matplotlib import rc_context

    _check_metric(series, metric)
    with rc_context(_STYLE):
        return _draw(series, metric, title)


def find_evenly_spread(results: Sequence[SubNetworkResult]) -> list[SubNetworkResult]:
    """Pick the records whose kept layers are spread evenly, shallowest first, one a depth.

    How deep the measured model is follows from the highest index in the records, so a series needs one set that
    holds the last layer.
    """
    depths: dict[str, int] = {}
    for result in results:
        for stack, kept in result.keep_layers.items():
            depths[stack] = max(depths.get(stack, 0), kept[-1] + 1)
    spread = [
        result
        for result in results
        if all(tuple(kept) == evenly_spread(len(kept), depths[stack]) for stack, kept in result.keep_layers.items())
    ]
    return sorted({result.depth: result for result in reversed(spread)}.values(), key=lambda result: result.depth)


def _check_metric(series: Mapping[str, Sequence[SubNetworkResult]], metric: str) -> None:
    known = sorted({name for results in series.values() for result in results for name in result.metrics})
    if metric not in known:
        raise LayerDropConfigError(
            f"No result has the metric {metric!r}: choose {' or '.join(known) or 'after evaluate_depths measured one'}."
        )


def _draw(series: Mapping[str, Sequence[SubNetworkResult]], metric: str, title: str | None) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")  # a Figure of its own: no pyplot, no global state
    axes = figure.subplots()
    for number, (name, results) in enumerate(series.items()):
        measured = [result for result in results if metric in result.metrics]
        look = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        _draw_series(axes, name, measured, metric, look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("layers kept")
    axes.set_ylabel(metric.replace("_", " "))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.03)
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_series(
    axes: Axes, name: str, results: Sequence[SubNetworkResult], metric: str, look: Mapping[str, Any]
) -> None:
    """Add the curve of the evenly spread sets and, if there are others, the mean and the band of all sets."""
    prefix = f"{' ' * name.startswith('_')}{name}: " if name else ""  # matplotlib hides what begins with _
    spread = find_evenly_spread(results)
    if spread:
        values = [result.metrics[metric] for result in spread]
        label = f"{prefix}evenly spread layers"
        axes.plot([result.depth for result in spread], values, label=label, linewidth=2, markersize=6, **look)
    by_depth = _values_by_depth(results, metric)
    if len(results) == len(spread):
        return
    depths, lists = list(by_depth), list(by_depth.values())
    means = [fmean(values) for values in lists]
    axes.plot(
        depths, means, color=look["color"], linestyle="--", linewidth=1.4, label=f"{prefix}mean (band: worst to best)"
    )
    axes.fill_between(
        depths,
        [min(values) for values in lists],
        [max(values) for values in lists],
        color=look["color"],
        alpha=0.14,
        lw=0,
    )


def _values_by_depth(results: Sequence[SubNetworkResult], metric: str) -> dict[int, list[float]]:
    by_depth: dict[int, list[float]] = {}
    for result in sorted(results, key=lambda result: result.depth):
        by_depth.setdefault(result.depth, []).append(result.metrics[metric])
    return by_depth


def _save(figure: Figure, path: Path) -> Path:
    # without a date in it, the same records give the same bytes
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    picture = io.BytesIO()  # drawn before the file is opened: one that fails leaves no half of it
    figure.savefig(picture, format=path.suffix[1:], dpi=160, metadata=metadata)
    path.write_bytes(picture.getvalue())
    return path


def draw_rates_plot(
    rates_by_stack: Mapping[str, Sequence[float]],
    path_stem: str | os.PathLike[str],
    *,
    target: float | Mapping[str, float] | None = None,
    title: str | None = None,
) -> list[Path]:
    """Draw the drop rate of each layer, write ``path_stem`` + ``.png`` and ``.svg``, and return the two paths.

    Learned rates stand in ``config.hf_layerdrop["learned_rates"]``. A dashed line shows the mean that they were held
    at: ``target``, one for all stacks or by stack, by default the mean of the rates.

    Raises:
        LayerDropConfigError: There are no rates.
        MissingExtraError: Matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib import rc_context

    if not rates_by_stack or not all(rates_by_stack.values()):
        raise LayerDropConfigError(
            "There are no rates to draw: give one a layer, by stack, such as {'encoder': [0.2, 0.3]}."
        )
    means = {name: fmean(rates) for name, rates in rates_by_stack.items()}
    if target is not None:
        means = {**means, **(target if isinstance(target, Mapping) else dict.fromkeys(means, target))}
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_STYLE):
        figure = _draw_rates(rates_by_stack, means, title)
        return [_save(figure, stem.with_name(f"{stem.name}{suffix}")) for suffix in (".png", ".svg")]


def _draw_rates(rates_by_stack: Mapping[str, Sequence[float]], means: Mapping[str, float], title: str | None) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(rates_by_stack), squeeze=False, sharey=True)[0]
    for axes, (name, rates) in zip(panels, rates_by_stack.items(), strict=True):
        axes.bar(range(len(rates)), rates, color=_COLOURS[0], width=0.7)
        axes.axhline(means[name], color=_COLOURS[1], linestyle="--", linewidth=1.4, label=f"mean {means[name]:.3g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel(f"{name} layer")
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel("drop rate")
    if title:
        figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    return figure
