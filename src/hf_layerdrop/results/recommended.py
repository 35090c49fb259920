"""Records of measurements as recommended sets of a checkpoint, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from hf_layerdrop.checkpoints.recommended import RecommendedSet, RecommendedSets
from hf_layerdrop.results.escaping import markdown
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import as_markdown, format_kept, format_parameters, format_score

_COLUMNS = ("depth", "kept layers", "chosen by", "parameters", "score", "ms/batch")
_TEXTS = ("kept layers", "chosen by")


def as_recommended(result: SubNetworkResult, chosen_by: str, machine: str | None) -> RecommendedSet:
    """Return a record as a recommended set; a score that is no number is none."""
    return RecommendedSet(
        keep_layers={stack: list(kept) for stack, kept in result.keep_layers.items()},
        chosen_by=chosen_by,
        parameters=result.parameters,
        metrics={name: value if math.isfinite(value) else None for name, value in result.metrics.items()},
        rows=dict(result.rows),
        intervals=dict(result.intervals),
        seconds_per_batch=result.seconds_per_batch,
        machine=machine if result.seconds_per_batch else None,
    )


def as_results(table: RecommendedSets) -> list[SubNetworkResult]:
    """Return recommended sets as records, the deepest first; what running them took is not known any more."""
    return [_as_result(table, one) for one in _deepest_first(table)]


def _deepest_first(table: RecommendedSets) -> list[RecommendedSet]:
    return sorted(table.sets, key=lambda one: -sum(one.depths.values()))


def _as_result(table: RecommendedSets, one: RecommendedSet) -> SubNetworkResult:
    return SubNetworkResult(
        keep_layers={stack: tuple(one.keep_layers[stack]) for stack in table.depths},
        parameters=one.parameters,
        metrics={name: math.nan if value is None else value for name, value in one.metrics.items()},
        seconds_per_batch=one.seconds_per_batch,
        layer_forwards=0,
        rows=one.rows,
        intervals=one.intervals,
    )


def recommended_markdown(table: RecommendedSets) -> str:
    """Render recommended sets as Markdown, the deepest first."""
    return as_markdown([_titles(table), *([*map(markdown, row)] for row in _rows(table))], texts=_TEXTS)


def recommended_table(table: RecommendedSets) -> Table:
    """Render recommended sets for the terminal, the deepest first."""
    shown = Table(title="recommended sets (layerdrop.json)", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in _titles(table):
        shown.add_column(name, overflow="fold")
    for row in _rows(table):
        shown.add_row(*row)
    return shown


def _titles(table: RecommendedSets) -> Sequence[str]:
    return [table.metric if name == "score" else name for name in _COLUMNS]


def _rows(table: RecommendedSets) -> list[list[str]]:
    rows = []
    for one in _deepest_first(table):
        result = _as_result(table, one)
        time = "-" if not result.seconds_per_batch else f"{1000 * result.seconds_per_batch:.1f}"
        depth = " + ".join(str(len(kept)) for kept in result.keep_layers.values())
        kept = format_kept(result.keep_layers)
        parameters = format_parameters(result.parameters)
        rows.append([depth, kept, one.chosen_by, parameters, format_score(result, table.metric), time])
    return rows
