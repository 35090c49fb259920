"""The numbers of a report as JSON, CSV and Markdown, by the writers of `hf_layerdrop.results.table`."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_layerdrop.reports.series import Series
from hf_layerdrop.results.escaping import cell, markdown
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import render_markdown, write_results
from hf_layerdrop.search.selection import Selection


def chosen_series(selections: Iterable[Selection]) -> list[Series]:
    """Return the sub-networks that were chosen as series of one record each, named by their strategies."""
    return [Series(selection.strategy, [_as_result(selection)]) for selection in selections]


def as_json(series: Sequence[Series], selections: Sequence[Selection]) -> str:
    """Return all records, and the selections as their own files hold them."""
    runs = [{**_heading(one), "results": json.loads(_written(one.results, ".json"))} for one in series]
    content = {"series": runs, "selections": [selection.to_dict() for selection in selections]}
    return json.dumps(content, indent=1) + "\n"


def as_csv(series: Sequence[Series]) -> str:
    """Return one row a record, with the name and seed of its series behind what `read_results` reads."""
    results = [result for one in series for result in one.results]
    names = [(cell(one.name), "" if one.seed is None else one.seed) for one in series for _ in one.results]
    header, *rows = csv.reader(io.StringIO(_written(results, ".csv"), newline=""))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow([*header, "series", "seed"])
    writer.writerows([*row, *name] for row, name in zip(rows, names, strict=True))
    return stream.getvalue()


def as_markdown(series: Sequence[Series], title: str) -> str:
    """Return one table a series."""
    parts = [f"# {markdown(title)}"]
    for one in series:
        parts += [f"## {markdown(one.name if one.seed is None else f'{one.name}, seed {one.seed}')}"]
        parts += [render_markdown(one.results)]
    return "\n\n".join(parts) + "\n"


def _as_result(selection: Selection) -> SubNetworkResult:
    return SubNetworkResult(
        keep_layers=selection.keep_layers,
        parameters=selection.parameters,
        metrics={selection.metric: selection.score},
        seconds_per_batch=None if selection.latency_ms is None else selection.latency_ms / 1000,
        layer_forwards=selection.layer_forwards,
    )


def _heading(series: Series) -> dict[str, str | int | None]:
    return {"name": series.name, "seed": series.seed, "model": series.model}


def _written(results: Sequence[SubNetworkResult], suffix: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = write_results(results, Path(folder) / f"numbers{suffix}")
        return path.read_bytes().decode("utf-8")  # read_text would translate the line ends of CSV
