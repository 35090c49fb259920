"""Labels as found in a file -> class numbers, or plain numbers for a regression."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.task import Task


def class_names(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """Name the classes of a user's own data: its distinct labels, whole numbers by size and text by the alphabet.

    Raises:
        TaskError: If the labels are not classes, or all the same.
    """
    whole = _whole(values)
    for value in whole:
        if not isinstance(value, str | int):
            raise TaskError(f"{where} has the label {value!r}; classes must be text or whole numbers.")
    distinct = set(whole)
    if len(distinct) < 2:
        raise TaskError(f"{where} has only one label, {distinct.pop()!r}; a classification needs at least two classes.")
    return tuple(map(str, sorted(distinct)))


def label_numbers(values: Sequence[Any], task: Task, where: str) -> list[int] | list[float]:
    """Turn labels into what the model is trained on.

    Raises:
        TaskError: If a label is missing, hidden (-1), not one of the task's classes, or outside its range.
    """
    return _regression(values, task, where) if task.label_range else _classes(values, task, where)


def _classes(values: Sequence[Any], task: Task, where: str) -> list[int]:
    numbers = _numbers_by_label(task)
    whole = _whole(values)
    for row, value in enumerate(whole):
        if not isinstance(value, Hashable) or value not in numbers:
            raise TaskError(f"{where} has the label {value!r} in row {row}; {_expected(value, task)}.")
    return [numbers[value] for value in whole]


def _numbers_by_label(task: Task) -> dict[Any, int]:
    """Accept a class by its name and by its number, as int or text; where a name is itself a number, only by name."""
    numbers: dict[Any, int] = {}
    if not any(_is_whole_text(name) for name in task.label_names):
        numbers.update({number: number for number in range(task.num_labels)})
        numbers.update({str(number): number for number in range(task.num_labels)})
    for number, name in enumerate(task.label_names):
        numbers[name] = number
        if _is_whole_text(name):
            numbers[int(name)] = number
    return numbers


def _expected(value: Any, task: Task) -> str:
    if value == -1 or value == "-1":
        return "-1 marks labels that are hidden, as in GLUE's test sets, so take a split with labels"
    listed = ", ".join(f"{number} ({name})" for number, name in enumerate(task.label_names[:20]))
    own = ", or leave --task out for classes of your own" if task.hub_name is not None else ""
    return f"{task.name} has the classes {listed}: give these{own}"


def _regression(values: Sequence[Any], task: Task, where: str) -> list[float]:
    assert task.label_range is not None
    low, high = task.label_range
    numbers = []
    for row, value in enumerate(values):
        number = _float(value)
        if not low <= number <= high:
            raise TaskError(
                f"{where} has the label {value!r} in row {row}; {task.name} needs numbers from {low:g} to {high:g}."
            )
        numbers.append(number)
    return numbers


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _whole(values: Sequence[Any]) -> list[Any]:
    """Read 1.0 as 1: a column of whole numbers becomes one of floats in files with gaps. True and False stay words."""
    return [_whole_value(value) for value in values]


def _whole_value(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_whole_text(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
