"""Two or more models side by side: what the evenly spread sub-network of each depth gives, and what any other would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from hf_layerdrop.results import table
from hf_layerdrop.results.fitting_table import FittingTable
from hf_layerdrop.results.plot import find_evenly_spread
from hf_layerdrop.results.record import SubNetworkResult

_TEXTS = ("evenly spread", "model")


@dataclass(frozen=True)
class DepthSummary:
    """What the measured sub-networks of one depth gave.

    Attributes:
        depth: Number of layers.
        spread: The evenly spread set.
        worst: The set with the lowest value.
        best: The set with the highest value.
        mean: Mean value over all measured sets.
        count: Number of measured sets.
    """

    depth: int
    spread: SubNetworkResult
    worst: SubNetworkResult
    best: SubNetworkResult
    mean: float
    count: int


def summarize_depths(results: Sequence[SubNetworkResult], metric: str) -> list[DepthSummary]:
    """Summarize the records of one model by depth, deepest first; a metric of which more is better."""
    summaries = []
    for spread in reversed(find_evenly_spread(results)):
        same = sorted((r for r in results if r.depth == spread.depth), key=lambda result: result.metrics[metric])
        mean = fmean(result.metrics[metric] for result in same)
        summaries.append(DepthSummary(spread.depth, spread, same[0], same[-1], mean, len(same)))
    return summaries


def comparison_rows(series: Mapping[str, Sequence[SubNetworkResult]], metric: str) -> list[list[str]]:
    """Return a header and, for each depth, one row a model: its evenly spread set, and all its sets."""
    rows = [["layers", "evenly spread", "sets", "model", "spread", "mean", "worst", "best"]]
    summaries = {name: summarize_depths(results, metric) for name, results in series.items()}
    for same in zip(*summaries.values(), strict=True):
        for place, (name, summary) in enumerate(zip(summaries, same, strict=True)):
            which = [str(summary.depth), table.format_kept(summary.spread.keep_layers), str(summary.count)]
            found = [summary.spread.metrics[metric], summary.mean, summary.worst.metrics[metric]]
            values = [f"{value:.3f}" for value in (*found, summary.best.metrics[metric])]
            rows.append([*(which if place == 0 else [""] * 3), name, *values])
    return rows


def extreme_rows(series: Mapping[str, Sequence[SubNetworkResult]], metric: str) -> list[list[str]]:
    """Return a header and one row a depth: the sets behind each model's worst and best value."""
    rows = [["layers", *(f"{name} {which}" for name in series for which in ("worst", "best"))]]
    for same in zip(*(summarize_depths(results, metric) for results in series.values()), strict=True):
        sets = [table.format_kept(r.keep_layers) for summary in same for r in (summary.worst, summary.best)]
        rows.append([str(same[0].depth), *sets])
    return rows


def as_table(rows: Sequence[Sequence[str]], title: str | None = None) -> FittingTable:
    """Render rows, the header first, for the terminal."""
    return FittingTable(rows[0], rows[1:], texts=_TEXTS, title=title)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Render rows, the header first, as a Markdown table."""
    return table.as_markdown(rows, texts=_TEXTS)
