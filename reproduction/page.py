"""The page of an experiment: Markdown, and one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_layerdrop.checkpoints.outputs import write_whole
from hf_layerdrop.results.table import as_markdown as markdown_table
from reproduction.experiment import Experiment, Side
from reproduction.figures import as_svg, draw_experiment, shown_cuts
from reproduction.journal import Record, records_of
from reproduction.study import Study
from reproduction.summary import Quantity, Reading, precondition, quantity_of, read_experiment_claims

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True)
class Table:
    """Cells as text, under columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_pages(
    experiment: Experiment, studies: Mapping[str, Study], size: str, records: Sequence[Record], folder: Path
) -> list[Path]:
    """Write ``<experiment>-<size>.md`` and ``.html``, each whole or not at all, and return their paths."""
    figure = draw_experiment(experiment, studies, size, records)
    svg = None if figure is None else as_svg(figure)
    tables = [*result_tables(experiment, studies, size, records), *reading_tables(experiment, studies, size, records)]
    stem = f"{experiment.name}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{stem}.md": _markdown(experiment, size, tables, f"{stem}.svg" if svg else None)}
    if svg is not None:
        files[f"{stem}.svg"] = svg
    files[f"{stem}.html"] = _html(experiment, size, tables, svg)
    for name, text in files.items():
        write_whole(folder / name, text)
    return [folder / name for name in files]


def result_tables(
    experiment: Experiment, studies: Mapping[str, Study], size: str, records: Sequence[Record]
) -> list[Table]:
    """Return a table of arms and cuts for each study: mean and spread over seeds, and what the training took."""
    return [
        Table(
            f"{studies[name].title}: {studies[name].metric}",
            ["arm", *shown_cuts(experiment, studies[name], size), "layer forwards", "CPU seconds", "seeds"],
            list(_result_rows(experiment, studies[name], size, records)),
        )
        for name in experiment.studies_at(size)
        if size in studies[name].sizes
    ]


def _result_rows(experiment: Experiment, study: Study, size: str, records: Sequence[Record]) -> Iterator[list[str]]:
    for arm in (name for name in experiment.arms if name in study.arms):
        found = records_of(records, study.name, arm, size)
        cells = [show(quantity_of(records, study, size, Side(arm, cut))) for cut in shown_cuts(experiment, study, size)]
        costs = [show(_cost(found, name)) for name in ("layer_forwards", "cpu_seconds")]
        yield [arm, *cells, *costs, ", ".join(str(record["seed"]) for record in found) or "none yet"]


def _cost(found: Sequence[Record], name: str) -> Quantity:
    return Quantity({record["seed"]: record[name] for record in found})


def reading_tables(
    experiment: Experiment, studies: Mapping[str, Study], size: str, records: Sequence[Record]
) -> list[Table]:
    """Return the readings of the claims, and whether depth pays."""
    names = [name for name in experiment.studies_at(size) if size in studies[name].sizes]
    about_depth = [name for name in names if any(claim.about_depth for claim in experiment.claims_of(name))]
    paying = [reading for name in about_depth for reading in precondition(studies[name], size, records)]
    claims = read_experiment_claims(experiment, studies, size, records)
    tables = (("Does depth pay", paying), ("What the paper says, and what was measured", claims))
    return [_readings(title, readings) for title, readings in tables if readings]


def _readings(title: str, readings: Sequence[Reading]) -> Table:
    rows = [[reading.says, reading.study, reading.verdict, reading.because] for reading in readings]
    return Table(title, ["claim", "study", "reading", "measurement"], rows)


def show(quantity: Quantity) -> str:
    """Write mean and spread."""
    if not quantity.by_seed:
        return "-"
    mean = _number(quantity.mean)
    return mean if quantity.spread is None else f"{mean} ± {quantity.spread:.2g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _heading(experiment: Experiment, size: str) -> str:
    return f"{experiment.name.replace('-', ' ').capitalize()}, {size} size: {experiment.title}"


def as_markdown(table: Table, level: int = 2) -> str:
    """Write a table under its title."""
    body = markdown_table([table.columns, *table.rows], texts=table.columns)
    return f"{'#' * level} {table.title}\n\n{body}\n"


def _markdown(experiment: Experiment, size: str, tables: Sequence[Table], picture: str | None) -> str:
    parts = [f"# {_heading(experiment, size)}\n", *([f"![{experiment.title}]({picture})\n"] if picture else [])]
    return "\n".join([*parts, *(as_markdown(table) for table in tables)])


def _html(experiment: Experiment, size: str, tables: Sequence[Table], svg: str | None) -> str:
    from jinja2 import Environment, StrictUndefined

    template: Any = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = template.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return page.render(heading=_heading(experiment, size), tables=tables, svg=svg)
