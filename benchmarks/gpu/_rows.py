"""Rows of results: appended to a file as they come, and laid out as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_row(journal: Path, row: Row) -> None:
    """Append a row as one line."""
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(journal: Path) -> list[Row]:
    """Return the rows that a journal holds: of each name the last, and no line that was cut off in mid writing."""
    rows: dict[str, Row] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.pop(row["what"], None)
        rows[row["what"]] = row
    done = any(row.get("done") for row in rows.values())
    return [row for name, row in rows.items() if not (done and name in ("the rest", "all of it"))]


def markdown(results: dict[str, Any]) -> str:
    """Lay the results out: a table for each part, with the columns that its rows have."""
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items()) or "no device was reached"
    lines = [
        f"# On {results['device']}{' (short: the figures mean nothing)' if results['short'] else ''}",
        "",
        about,
        "",
    ]
    for part, rows in results["parts"].items():
        shown = [row for row in rows if not row.get("done")]
        if shown:
            lines += [f"## {part}", "", *_table(shown), ""]
    return "\n".join(lines)


def _table(rows: list[Row]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = [
        f"| {' | '.join(name.replace('_', ' ') for name in columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
    ]
    return head + [f"| {' | '.join(_shown(row.get(name, '')) for name in columns)} |" for row in rows]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
