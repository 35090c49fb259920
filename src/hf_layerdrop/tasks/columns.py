"""Columns of a table as found: are they there, and do they hold texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset


JOINED = "+"  # in the name of a column: the texts of several, one after the other


def check_columns(rows: Dataset, task: Task, where: str) -> None:
    """Check that the columns of a task are there, and that there are rows.

    Raises:
        TaskError: If not; the message names the columns that were found.
    """
    found = ", ".join(map(repr, rows.column_names))
    if not task.text_columns:
        raise TaskError(f"No text column was named; give --text-columns, of those that {where} has: {found}.")
    for column in wanted_columns(task):
        if column not in rows.column_names:
            raise TaskError(
                f"{where} has no column {column!r}; it has {found}, so name yours by --text-columns and --label-column."
            )
    if not len(rows):
        raise TaskError(f"{where} has no rows; give a file that has some.")


def wanted_columns(task: Task) -> tuple[str, ...]:
    """Return the columns of a table that a task reads."""
    texts = [part for column in task.text_columns for part in column.split(JOINED)]
    return (*texts, *([task.label_column] if task.label_column else []))


def texts_in(rows: Dataset, column: str, where: str) -> list[str]:
    """Return the texts of a column, or of several that are joined by ``+``.

    Raises:
        TaskError: If a row has none.
    """
    parts = [_texts_of(rows, part, where) for part in column.split(JOINED)]
    return parts[0] if len(parts) == 1 else [" ".join(texts) for texts in zip(*parts, strict=True)]


def _texts_of(rows: Dataset, column: str, where: str) -> list[str]:
    values = list(rows[column])
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise TaskError(f"{where} has {value!r} in row {row} of column {column!r}; every row needs a text.")
    return [str(value) for value in values]


def all_texts(rows: Dataset) -> Iterator[str]:
    """Go through all texts of checked rows, lists of texts too: what a tokenizer is trained on."""
    for column in rows.column_names:
        before = None
        for value in rows[column]:
            if value == before:  # as the same paragraph of many questions
                continue
            before = value
            yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield from value
