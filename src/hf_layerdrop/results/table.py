"""Results as a table: for the terminal, for Markdown, and as files that are read back."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import IO, Any

from rich.table import Table

from hf_layerdrop.checkpoints.outputs import whole_file
from hf_layerdrop.checkpoints.strangers import LARGEST, Unreadable, admitting, parsed, read_text
from hf_layerdrop.errors import CheckpointError, LayerDropConfigError
from hf_layerdrop.results.escaping import markdown
from hf_layerdrop.results.fitting_table import FittingTable
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import format_keep_layers

RESULTS_FILE = "depth_results.json"  # what sweep and train write, with all records

_METRIC_COLUMN = "metric."
_FORMATS = (".json", ".csv")
_LEFT_ALIGNED = ("kept layers", "root's layers")


def render_table(
    results: Sequence[SubNetworkResult], *, title: str | None = None, root: Mapping[str, Sequence[int]] | None = None
) -> Table:
    """Render one row a sub-network, in the given order.

    The speed-up compares with the deepest sub-network that was timed. In a narrow terminal losses, times and parameters
    are left out, in this order, before the kept layers or another metric lose their room; a line says so.

    Args:
        results: The records to show.
        title: A line above the table.
        root: Root checkpoint's index of every layer of the measured model, by stack. Adds a column when the measured
            model was itself cut out of another one.
    """
    names = metric_names(results)
    losses = [name for name in names[::-1] if name.startswith("loss") and name != names[0]]
    spare = [*losses, "speed-up", "ms/batch", "parameters"]
    return FittingTable(_columns(results, root), _rows(results, root), texts=_LEFT_ALIGNED, spare=spare, title=title)


def render_markdown(
    results: Sequence[SubNetworkResult], *, root: Mapping[str, Sequence[int]] | None = None, marked: int | None = None
) -> str:
    """Render the same table as Markdown, the row number ``marked`` in bold."""
    columns = _columns(results, root)
    rows = _rows(results, root)
    if marked is not None:
        rows[marked] = [f"**{cell}**" for cell in rows[marked]]
    return as_markdown([columns, *rows], texts=_LEFT_ALIGNED)


def as_markdown(rows: Sequence[Sequence[str]], texts: Collection[str] = ()) -> str:
    """Render rows, the header first, as a Markdown table: columns of numbers to the right, those of ``texts`` not."""
    rule = [":---" if name in texts else "---:" for name in rows[0]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (map(markdown, rows[0]), rule, *rows[1:]))


def format_parameters(count: int) -> str:
    """Shorten a number of parameters to three digits: ``22.7M``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 1000 * size else f"{count / size:.0f}{unit}"
    return str(count)


def format_score(result: SubNetworkResult, metric: str) -> str:
    """Write a metric, with its 95 % interval where it has one: ``0.9014 (0.880-0.919)``."""
    interval = result.intervals.get(metric)
    score = _number(result.metrics.get(metric), lambda value: f"{value:.4f}", zero_is_missing=False)
    return score if interval is None else f"{score} ({interval[0]:.3f}-{interval[1]:.3f})"


def measured_rows(results: Sequence[SubNetworkResult]) -> str:
    """Say on how many rows records were measured, such as ``9,815 and 9,832 rows``; empty if nobody knows."""
    counts = dict.fromkeys(count for result in results for count in result.rows.values())
    told = " and ".join(f"{count:,}" for count in counts)
    brackets = ", 95 % intervals in brackets" if any(result.intervals for result in results) else ""
    return told and f"{told} {'row' if told == '1' else 'rows'}{brackets}"


def render_html(results: Sequence[SubNetworkResult], *, marked: int | None = None) -> str:
    """Render the same table as HTML, for notebooks and pages, the row number ``marked`` as the current one."""
    header, *rows = [_columns(results, None), *_rows(results, None)]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    current = (' aria-current="true"' if place == marked else "" for place in range(len(rows)))
    body = "".join(f"<tr{mark}>{row}</tr>" for mark, row in zip(current, cells, strict=True))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def format_kept(keep_layers: Mapping[str, Sequence[int]]) -> str:
    """Write kept layers for a reader: ``0, 2, 5``, ``0-4, 7``, with the stack's name where there are several."""
    lists = {stack: ", ".join(_runs(kept)) for stack, kept in keep_layers.items()}
    if len(lists) == 1:
        return next(iter(lists.values()))
    return "; ".join(f"{stack} {kept}" for stack, kept in lists.items())


def _runs(layers: Sequence[int]) -> list[str]:
    """Write each run of three or more neighbours as its ends."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [part for run in runs for part in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))]


def _depth_column(results: Sequence[SubNetworkResult]) -> str:
    """Title the column of depths; of several stacks it names them, in the order of the depths."""
    stacks = list(dict.fromkeys(stack for result in results for stack in result.keep_layers))
    return "depth" if len(stacks) < 2 else f"depth, {' + '.join(stacks)}"


def _depth(result: SubNetworkResult) -> str:
    """Write how deep a sub-network is; of several stacks the depth of each, in their order."""
    return " + ".join(str(len(kept)) for kept in result.keep_layers.values())


def metric_names(results: Sequence[SubNetworkResult]) -> list[str]:
    """List the metrics that occur, in order of first appearance."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def write_results(results: Sequence[SubNetworkResult], path: str | os.PathLike[str]) -> Path:
    """Write the records as ``.json`` or ``.csv`` (without rows and intervals); it appears whole or not at all."""
    path = Path(path)
    write = {".json": _write_json, ".csv": _write_csv}[_format_of(path)]
    with whole_file(path, newline="") as file:
        write(results, file)
    return path


def read_results(path: str | os.PathLike[str]) -> list[SubNetworkResult]:
    """Read what `write_results` wrote.

    Raises:
        CheckpointError: The file is missing or holds something else.
    """
    path = Path(path)
    read = {".json": _read_json, ".csv": _read_csv}[_format_of(path)]
    try:
        text = read_text(path, LARGEST)
    except Unreadable as error:
        raise CheckpointError(
            f"The results file {str(path)!r} cannot be read ({error}): give a file that sweep wrote."
        ) from error
    with admitting(lambda reason: CheckpointError(_no_results(path, reason))):
        return read(text)


def _no_results(path: Path, reason: str) -> str:
    return f"The file {str(path)!r} does not hold results of sub-networks ({reason}): give a file that sweep wrote."


def _columns(results: Sequence[SubNetworkResult], root: Mapping[str, Sequence[int]] | None) -> list[str]:
    kept = ["kept layers", "root's layers"] if root else ["kept layers"]
    timed = ["ms/batch", "speed-up"] if any(result.seconds_per_batch for result in results) else []
    return [_depth_column(results), *kept, "parameters", *metric_names(results), *timed]


def _rows(results: Sequence[SubNetworkResult], root: Mapping[str, Sequence[int]] | None) -> list[list[str]]:
    slowest = _seconds_of_deepest(results)
    cells: dict[str, Callable[[SubNetworkResult], str]] = {
        _depth_column(results): _depth,
        "kept layers": lambda result: format_kept(result.keep_layers),
        "root's layers": lambda result: format_kept(_in_root(result, root or {})),
        "parameters": lambda result: format_parameters(result.parameters),
        "ms/batch": lambda result: _number(result.seconds_per_batch, lambda seconds: f"{1000 * seconds:.1f}"),
        "speed-up": lambda result: _number(result.seconds_per_batch, lambda seconds: f"{slowest / seconds:.2f}x"),
    }

    def cell(column: str, result: SubNetworkResult) -> str:
        if column in cells:
            return cells[column](result)
        return format_score(result, column)

    return [[cell(column, result) for column in _columns(results, root)] for result in results]


def _number(value: float | None, form: Callable[[float], str], *, zero_is_missing: bool = True) -> str:
    missing = value is None or (zero_is_missing and value == 0)
    return "-" if missing or value is None else form(value)


def _seconds_of_deepest(results: Sequence[SubNetworkResult]) -> float:
    timed = [result for result in results if result.seconds_per_batch]
    return max(timed, key=lambda result: result.depth).seconds_per_batch or 0.0 if timed else 0.0


def _in_root(result: SubNetworkResult, root: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {
        stack: [root[stack][index] if stack in root else index for index in kept]
        for stack, kept in result.keep_layers.items()
    }


def _format_of(path: Path) -> str:
    if path.suffix.lower() not in _FORMATS:
        raise LayerDropConfigError(f"Results cannot be kept in {path.name!r}: name a file that ends in .json or .csv.")
    return path.suffix.lower()


def _write_json(results: Sequence[SubNetworkResult], file: IO[str]) -> None:
    records = [result.to_dict() for result in results]
    for record in records:
        # JSON has no NaN (Matthews' correlation of a constant answer): null is what other readers understand
        record["metrics"] = {name: _finite_or_none(value) for name, value in record["metrics"].items()}
    json.dump(records, file, indent=2, allow_nan=False)
    file.write("\n")


def _read_json(text: str) -> list[SubNetworkResult]:
    results = [SubNetworkResult.from_dict(record) for record in parsed(text)]
    return [_with_metrics(result, result.metrics) for result in results]


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_metrics(result: SubNetworkResult, metrics: Mapping[str, float | None]) -> SubNetworkResult:
    numbers = {name: math.nan if value is None else value for name, value in metrics.items()}
    return SubNetworkResult.from_dict({**result.to_dict(), "metrics": numbers})


def _write_csv(results: Sequence[SubNetworkResult], file: IO[str]) -> None:
    metrics = metric_names(results)
    columns = ["depth", "keep_layers", "parameters", "seconds_per_batch", "layer_forwards"]
    writer = csv.DictWriter(file, [*columns, *(_METRIC_COLUMN + name for name in metrics)], restval="")
    writer.writeheader()
    for result in results:
        scores = {_METRIC_COLUMN + name: repr(value) for name, value in result.metrics.items()}
        kept = ";".join(f"{stack}={format_keep_layers({stack: kept})}" for stack, kept in result.keep_layers.items())
        seconds = "" if result.seconds_per_batch is None else repr(result.seconds_per_batch)
        values = (result.depth, kept, result.parameters, seconds, result.layer_forwards)
        writer.writerow({**dict(zip(columns, values, strict=True)), **scores})


def _read_csv(text: str) -> list[SubNetworkResult]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if "keep_layers" not in (reader.fieldnames or ()):
        raise ValueError("no column keep_layers")
    return [_from_csv(row) for row in reader]


def _from_csv(row: Mapping[str, Any]) -> SubNetworkResult:
    stacks = (part.partition("=") for part in row["keep_layers"].split(";"))
    values = {
        "keep_layers": {stack: [int(item) for item in kept.split(",") if item] for stack, _, kept in stacks},
        "parameters": int(row["parameters"]),
        "metrics": {
            column.removeprefix(_METRIC_COLUMN): float(value)
            for column, value in row.items()
            if column.startswith(_METRIC_COLUMN) and value
        },
        "seconds_per_batch": float(row["seconds_per_batch"]) if row["seconds_per_batch"] else None,
        "layer_forwards": int(row["layer_forwards"]),
    }
    return SubNetworkResult.from_dict(values)
