"""Results and selections as one HTML file that needs no network: charts, a map of the kept layers, lines to copy.

The charts are plotly's, whose JavaScript lies compressed in the file. The page's own security policy allows exactly
the two scripts written here, by their hashes, and no request at all: names that come from the network stay text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_layerdrop.checkpoints.outputs import check_above, check_writable, write_whole
from hf_layerdrop.errors import LayerDropConfigError, OutputExistsError, require
from hf_layerdrop.reports.numbers import as_csv, as_json, as_markdown, chosen_series
from hf_layerdrop.reports.points import Checkpoint, finite, selection_points, series_points
from hf_layerdrop.reports.series import LayerScores, Series, as_series, check_metric, find_depths, known_metrics
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import format_kept, format_parameters
from hf_layerdrop.search.objective import find_objective
from hf_layerdrop.search.selection import Selection

_PAGE = Path(__file__).with_name("page")
_SCRIPTS = ("state.js", "charts.js", "keyboard.js", "panel.js", "map.js", "main.js")


def write_report(
    path: str | os.PathLike[str],
    series: Mapping[str, Sequence[SubNetworkResult]] | Iterable[Series],
    *,
    metric: str,
    model: str,
    model_class: str = "AutoLayerDropModel",
    revision: str | None = None,
    measured_on: str | None = None,
    selections: Sequence[Selection] = (),
    layer_scores: Sequence[LayerScores] = (),
    depths: Mapping[str, int] | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report and return its path; it appears whole or not at all.

    Args:
        path: File to write, ending in ``.html``.
        series: Records by name, or `Series`, of which those of one name are seeds of it.
        metric: The metric that is shown first; a reader can switch to the others.
        model: Checkpoint (folder or Hub id) that the lines to copy load.
        model_class: The class of this package that loads it with its head.
        revision: Branch, tag or commit of a model on the Hub.
        measured_on: The data behind the numbers, in words.
        selections: What `search_layers` returned; runner-ups and importances are shown as well.
        layer_scores: More numbers by layer, such as learned rates.
        depths: Layers of the measured model by stack; by default what the records show.
        title: Heading; by default the model's name.
        overwrite: Replace a report that exists.

    Raises:
        LayerDropConfigError: No record has the metric, or the path does not end in ``.html``.
        OutputExistsError: The file exists and ``overwrite`` was not given.
        MissingExtraError: The library that draws the charts is not installed.
    """
    file = check_report(path, overwrite=overwrite)
    given, chosen = as_series(series), list(selections)
    check_metric(metric, given, chosen)
    heading = title or PurePath(model.replace("\\", "/")).name or model
    data = {
        "metric": metric,
        "depths": dict(depths or find_depths(given, chosen)),
        **_points(given, chosen, Checkpoint(model, model_class, revision)),
        "metrics": [_metric(name, chosen) for name in known_metrics(given, chosen)],
        "layerScores": [_scores(scores) for scores in [*layer_scores, *_importances(chosen)]],
    }
    measured = [*given, *chosen_series(chosen)]
    numbers = {
        "JSON": _data_url("application/json", as_json(given, chosen)),
        "CSV": _data_url("text/csv", as_csv(measured)),
        "Markdown": _data_url("text/markdown", as_markdown(measured, heading)),
    }
    facts = {"title": heading, "model": model, "measured_on": measured_on, "selections": chosen, "numbers": numbers}
    write_whole(file, _render(data, facts))
    return file


def check_report(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check all that can be known before anything is measured for a report.

    Raises:
        LayerDropConfigError: The path does not end in ``.html``.
        OutputExistsError: The file exists and ``overwrite`` was not given, it is a folder, or cannot be written.
        MissingExtraError: The library that draws the charts is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in (".html", ".htm"):
        raise LayerDropConfigError(f"The report is one HTML file, not {file.name!r}: name a file that ends in .html.")
    check_above(file)
    if file.is_dir():
        raise OutputExistsError(f"The report {str(file)!r} is a folder: give another name.")
    if file.exists() and not overwrite:
        raise OutputExistsError(f"The report {str(file)!r} exists: give another name, or allow to overwrite it.")
    check_writable(file)
    require("plotly")
    return file


def _points(series: Sequence[Series], selections: Sequence[Selection], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all points, numbered, and the names they go by."""
    by_batch = any(result.seconds_per_batch for one in series for result in one.results)
    points = [point for one in series for point in series_points(one, checkpoint)]
    for selection in selections:
        found = selection_points(selection, checkpoint, timed=not by_batch)
        points += [point for point in found if point not in points]  # the whole model is in every selection
    return {
        "points": [{"id": number, **point} for number, point in enumerate(points)],
        "series": list(dict.fromkeys(point["series"] for point in points)),
        "time": "ms a batch" if by_batch else "ms a forward",
    }


def _metric(name: str, selections: Sequence[Selection]) -> dict[str, Any]:
    told = next((selection.greater_is_better for selection in selections if selection.metric == name), None)
    return {"name": name, "greaterIsBetter": find_objective(name, {name: 0.0}, told).greater_is_better}


def _importances(selections: Sequence[Selection]) -> list[LayerScores]:
    return [LayerScores(one.strategy, one.importances) for one in selections if one.importances]


def _scores(scores: LayerScores) -> dict[str, Any]:
    values = {stack: [finite(value) for value in numbers] for stack, numbers in scores.values.items()}
    return {"name": scores.name, "unit": scores.unit, "values": values}


def _render(data: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    script = "".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    plotly = get_plotlyjs().replace("\r\n", "\n")  # as a browser normalizes it, or the hash would not fit
    environment = Environment(loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(
        **facts,
        format_kept=format_kept,
        format_parameters=format_parameters,
        style=(_PAGE / "page.css").read_text(encoding="utf-8"),
        script=script,
        allowed=" ".join(_source_hash(text) for text in (script, plotly)),
        plotly=base64.b64encode(gzip.compress(plotly.encode(), 9, mtime=0)).decode("ascii"),
        data=_json_for_script(data),
        file_name=re.sub(r"[^\w.-]+", "-", facts["title"]).strip("-.") or "report",
    )


def _json_for_script(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the element it stands in, whatever names it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII, so no line separators either
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _data_url(media_type: str, text: str) -> str:
    return f"data:{media_type};charset=utf-8;base64,{base64.b64encode(text.encode()).decode('ascii')}"
