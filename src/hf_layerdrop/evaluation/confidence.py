"""How far a score on so many rows can be trusted."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

_SHARES = ("accuracy", "exact_match")  # of rows that are right; the intervals of other metrics need each row's part
DEVIATIONS = 1.959963984540054  # standard deviations that hold 95 % of a normal distribution


class Rows(NamedTuple):
    """How many rows were scored, and whether each has one label: else a share of labels is none of rows."""

    number: int = 0
    one_label: bool = False


NO_ROWS = Rows()


def rows_of(labels: Any) -> Rows:
    """Count the rows of collected labels (rows, or rows x labels); what is no single array says nothing."""
    return Rows(len(labels), labels.ndim == 1) if isinstance(labels, np.ndarray) and labels.ndim else NO_ROWS


def interval_of(metric: str, value: float, rows: Rows) -> tuple[float, float] | None:
    """Return where a share of rows lies with 95 % confidence; None for a metric that is none."""
    if metric not in _SHARES or not rows.one_label or not rows.number or not 0 <= value <= 1:
        return None
    right = value * rows.number
    return wilson(value, rows.number) if abs(right - round(right)) < 1e-6 * rows.number else None


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of ``count`` independent rows, with 95 % confidence."""
    square = DEVIATIONS**2 / count
    middle = share + square / 2
    half = DEVIATIONS * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))
