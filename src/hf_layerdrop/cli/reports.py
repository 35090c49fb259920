"""What the commands that measure have in common: the option --report, and how metrics are defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import measured_rows
from hf_layerdrop.search.selection import Selection
from hf_layerdrop.tasks.task import Task

Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Also write one HTML file with charts, a map of the kept layers, and lines to copy.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Measured:
    """What a report is about: the metric that stands for the rest, the model's head, and on what it was measured."""

    metric: str
    head: str
    data: str

    @classmethod
    def of(cls, task: Task) -> Measured:
        """Say it of a task."""
        data = f"the validation data of {task.name}" if task.hub_name else "local validation data"
        return cls(task.headline, task.head, data)


def check_wanted(report: Path | None, *, overwrite: bool) -> None:
    """Check what can be known of a wanted report before anything is measured."""
    if report is not None:
        from hf_layerdrop.reports.html import check_report

        check_report(report, overwrite=overwrite)


def write_wanted(
    report: Path | None,
    model: str,
    config: Mapping[str, Any],
    revision: str | None,
    measured: Measured,
    depths: Mapping[str, int],
    *,
    results: Mapping[str, Sequence[SubNetworkResult]] | None = None,
    selection: Selection | None = None,
) -> list[Path]:
    """Write the report, if one is wanted, and return its path; `check_wanted` allowed to overwrite."""
    if report is None:
        return []
    from hf_layerdrop.reports.html import write_report
    from hf_layerdrop.reports.series import learned_rates

    found = (results or {}).values()
    path = write_report(
        report,
        results or {},
        metric=selection.metric if selection else measured.metric,
        model=model,
        model_class=f"AutoLayerDropModelFor{measured.head}",
        revision=revision,
        measured_on=", ".join(
            filter(None, (measured.data, measured_rows([one for series in found for one in series])))
        ),
        selections=[selection] if selection else [],
        layer_scores=learned_rates(config, depths),
        depths=depths,
        overwrite=True,
    )
    return [path]


def print_signatures(console: Console, signatures: Mapping[str, str]) -> None:
    """Print what sacrebleu says of its settings."""
    for name, signature in signatures.items():
        console.print(f"{name}: {signature}", soft_wrap=True)
