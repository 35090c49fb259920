"""Every sub-network of a report as one point: its numbers, what a reader is told, and the lines that load it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from hf_layerdrop.reports.series import Series
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import format_kept, format_parameters, format_score
from hf_layerdrop.samplers.keep_layers import format_keep_layers
from hf_layerdrop.search.selection import Selection

Layers = Mapping[str, tuple[int, ...]]
Fact = tuple[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """What the lines that load a sub-network have to name.

    Attributes:
        name: Folder or Hub id.
        model_class: Our class that loads it.
        revision: Branch, tag or commit on the Hub.
    """

    name: str
    model_class: str
    revision: str | None = None

    def command(self, kept: Layers) -> str:
        """Return the command that writes the sub-network as a plain checkpoint."""
        depth = sum(len(layers) for layers in kept.values())
        output = f"{PurePath(self.name.replace(chr(92), '/')).name or 'model'}-{depth}-layers"
        revision = ["--revision", self.revision] if self.revision else []
        words = ["prune", self.name, "--keep-layers", format_keep_layers(kept), "--output", output, *revision]
        return shlex.join(["hf-layerdrop", *words])

    def python(self, kept: Layers) -> str:
        """Return the line that loads the sub-network, after its import."""
        lists = {stack: list(layers) for stack, layers in kept.items()}
        keep_layers = next(iter(lists.values())) if len(lists) == 1 else lists
        revision = f", revision={self.revision!r}" if self.revision else ""
        call = f"{self.model_class}.from_pretrained({self.name!r}, keep_layers={keep_layers}{revision})"
        return f"from hf_layerdrop import {self.model_class}\nmodel = {call}"

    def at(self, name: str | None) -> Checkpoint:
        """Return the same for another folder or id; a revision belongs to the one it was given for."""
        return self if name in (None, self.name) else Checkpoint(str(name), self.model_class)


def series_points(series: Series, checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """Yield one point a record."""
    slowest = _seconds_of_deepest(series.results)
    own = checkpoint.at(series.model)
    for result in series.results:
        seed = [] if series.seed is None else [("seed", str(series.seed))]
        scores = [(name, format_score(result, name)) for name in result.metrics]
        facts = [*scores, _parameters_fact(result.parameters), *_time_facts(result, slowest)]
        yield {
            **_point(series.name, "result", result.keep_layers, result.metrics, [*facts, *seed], own),
            "parameters": result.parameters,
            "ms": None if not result.seconds_per_batch else 1000 * result.seconds_per_batch,
        }


def selection_points(selection: Selection, checkpoint: Checkpoint, *, timed: bool) -> Iterator[dict[str, Any]]:
    """Yield the chosen sub-network, the whole model, the runner-ups and what was just outside of the budget.

    Args:
        selection: The selection.
        checkpoint: The model that was searched.
        timed: Whether to place points by the selection's latency: it is of one input of its own, and cannot stand
            beside times of a batch.
    """

    def point(role: str, kept: Layers, score: float, facts: Sequence[Fact] = (), ms: float | None = None) -> dict:
        shown = [*_metric_facts({selection.metric: score}), *facts]
        found = _point(selection.strategy, role, kept, {selection.metric: score}, shown, checkpoint)
        return {**found, "ms": ms if timed else None}

    cost = _cost_facts(selection.parameters, selection.size_mb, selection.latency_ms)
    facts = [*_choice_facts(selection), *cost]
    chosen = point("chosen", selection.keep_layers, selection.score, facts, selection.latency_ms)
    yield {**chosen, "parameters": selection.parameters}
    whole = {stack: tuple(range(depth)) for stack, depth in selection.depths.items()}
    if whole != {stack: tuple(kept) for stack, kept in selection.keep_layers.items()}:
        yield point("whole", whole, selection.whole_score, _separate(selection.whole_test_score))
    for scored in selection.runner_ups:
        size = [] if scored.parameters is None else [_parameters_fact(scored.parameters)]
        runner_up = point("runner-up", scored.keep_layers, scored.score, [*_separate(scored.test_score), *size])
        yield {**runner_up, "parameters": scored.parameters}
    for other in selection.outside:
        costs = _cost_facts(other.parameters, other.size_mb, other.latency_ms)
        outside = point("outside", other.keep_layers, other.score, costs, other.latency_ms)
        yield {**outside, "parameters": other.parameters}


def finite(value: float | None) -> float | None:
    """Return None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def _point(
    series: str, role: str, kept: Layers, metrics: Mapping[str, float], facts: Sequence[Fact], checkpoint: Checkpoint
) -> dict[str, Any]:
    return {
        "series": series,
        "role": role,
        "depth": sum(len(layers) for layers in kept.values()),
        "keep": {stack: list(layers) for stack, layers in kept.items()},
        "kept": format_kept(kept),
        "metrics": {name: finite(value) for name, value in metrics.items()},
        "facts": [list(fact) for fact in facts],
        "parameters": None,
        "ms": None,
        "command": checkpoint.command(kept),
        "python": checkpoint.python(kept),
    }


def _metric_facts(metrics: Mapping[str, float]) -> list[Fact]:
    return [(name, f"{value:.4f}" if math.isfinite(value) else "-") for name, value in metrics.items()]


def _parameters_fact(parameters: int) -> Fact:
    return "parameters", f"{format_parameters(parameters)} ({parameters:,})"


def _time_facts(result: SubNetworkResult, slowest: float) -> list[Fact]:
    if not result.seconds_per_batch:
        return []
    return [("time", f"{1000 * result.seconds_per_batch:.1f} ms a batch ({slowest / result.seconds_per_batch:.2f}x)")]


def _cost_facts(parameters: int, size_mb: float, latency_ms: float | None) -> list[Fact]:
    time = [] if latency_ms is None else [("latency", f"{latency_ms:.3g} ms a forward")]
    return [_parameters_fact(parameters), ("size", f"{size_mb:.4g} MB"), *time]


def _choice_facts(selection: Selection) -> list[Fact]:
    how = "a batch" if selection.shared else "in all"
    return [
        *_separate(selection.test_score),
        ("as good", selection.as_good),
        ("found by", f"{selection.evaluations:,} evaluations, {selection.layer_forwards:,} layer forwards {how}"),
    ]


def _separate(score: float | None) -> list[Fact]:
    return [] if score is None else [("on separate data", f"{score:.4f}")]


def _seconds_of_deepest(results: Sequence[SubNetworkResult]) -> float:
    timed = [result for result in results if result.seconds_per_batch]
    return max(timed, key=lambda result: result.depth).seconds_per_batch or 0.0 if timed else 0.0
