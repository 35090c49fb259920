"""What a report shows: records in named series, and numbers by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_layerdrop.checkpoints.provenance import own_provenance
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import metric_names
from hf_layerdrop.search.selection import Selection


@dataclass(frozen=True)
class Series:
    """Sub-networks that belong together; series of the same name are seeds of one, and share a line and its band.

    Attributes:
        name: What tells them apart, e.g. the strategy, or how the model was trained.
        results: The records.
        model: Checkpoint that they were measured on, where it is not the report's.
        seed: The seed behind them.
    """

    name: str
    results: Sequence[SubNetworkResult]
    model: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class LayerScores:
    """A number for every layer: learned rates, or how much a layer matters.

    Attributes:
        name: What the number is, e.g. ``Learned rates``.
        values: The numbers by stack; None where there is none.
        unit: What the axis says.
    """

    name: str
    values: Mapping[str, Sequence[float | None]]
    unit: str = "importance"


def as_series(series: Mapping[str, Sequence[SubNetworkResult]] | Iterable[Series]) -> list[Series]:
    """Return a list of series, also from a dict of records by name."""
    if isinstance(series, Mapping):
        return [Series(name, results) for name, results in series.items()]
    return list(series)


def known_metrics(series: Sequence[Series], selections: Sequence[Selection]) -> list[str]:
    """List the metrics that occur, in order of first appearance."""
    names = metric_names([result for one in series for result in one.results])
    return list(dict.fromkeys([*names, *(selection.metric for selection in selections)]))


def find_depths(series: Sequence[Series], selections: Sequence[Selection]) -> dict[str, int]:
    """Count the layers of each stack: as the selections say, else up to the highest index that any record keeps."""
    depths: dict[str, int] = {}
    for selection in selections:
        depths.update(selection.depths)
    for result in (result for one in series for result in one.results):
        for stack, kept in result.keep_layers.items():
            depths[stack] = max(depths.get(stack, 0), 1 + max(kept, default=-1))
    return depths


def learned_rates(config: Mapping[str, Any], depths: Mapping[str, int]) -> list[LayerScores]:
    """Return the drop rates that a checkpoint's config says were learned, where they are those of its own layers."""
    rates = own_provenance(config).get("learned_rates") or {}
    known = {stack: values for stack, values in rates.items() if len(values) == depths.get(stack)}
    return [LayerScores("Learned drop rates", known, unit="rate")] if known else []


def check_metric(metric: str, series: Sequence[Series], selections: Sequence[Selection]) -> None:
    """Refuse a metric that no record has, and a report of nothing.

    Raises:
        LayerDropConfigError: No record has it.
    """
    known = known_metrics(series, selections)
    if not known:
        raise LayerDropConfigError("There is nothing to report: give at least one record that has a metric.")
    if metric not in known:
        raise LayerDropConfigError(f"No result has the metric {metric!r}: choose {' or '.join(known)}.")
