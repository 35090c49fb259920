"""Measurements that are kept one by one, so that the same command goes on after an interrupt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any


class Journal:
    """Measurements by key, each one line of a file; without a file they are gone at the end."""

    def __init__(self, path: str) -> None:
        """Read what is there; a line that was cut off by the interrupt is measured again."""
        self._path = Path(path) if path else None
        text = self._path.read_text() if self._path and self._path.exists() else ""
        if self._path and text and not text.endswith("\n"):  # or the next one would be glued to it
            self._path.write_text(text[: text.rfind("\n") + 1])
        self._known = {row["key"]: row for row in map(json.loads, text.splitlines()[: text.count("\n")])}

    def measured(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is noted under a key, or measure it and note it."""
        if key not in self._known:
            self._known[key] = {"key": key, **measure()}
            if self._path:
                with self._path.open("a") as file:
                    file.write(json.dumps(self._known[key]) + "\n")
        return self._known[key]


def mean_and_sd(values: list[float]) -> dict[str, float | None]:
    """Return the mean over seeds, and the standard deviation where there are two or more."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}


def shown(found: dict[str, float | None] | None, digits: int = 3) -> str:
    """Write them for a table; nothing for what was not measured."""
    if found is None:
        return ""
    return f"{found['mean']:.{digits}f}" + (f" ({found['sd']:.{digits}f})" if found["sd"] is not None else "")
