"""Drop by row: each row of a batch drops its own layers, and each layer runs on a fixed number of rows.

DINOv2 (Oquab et al., 2023) drops so: of B rows a layer runs on round(B (1 - rate)), whichever those are, so that the
time of a step is constant. Which rows those are is a function of the counter and the layer alone, as all draws are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_layerdrop.samplers.draws import Mask, integers

Counter = tuple[int, int, int, int, str]


def rows_run(rows: int, rate: float) -> int:
    """Return on how many rows of a batch a layer runs; below rate 1 at least on one, so that every rank runs it."""
    return max(round(rows * (1 - rate)), int(rate < 1))


def kept_rows(counter: Counter, layer: int, rows: int, run: int) -> tuple[int, ...]:
    """Return the rows on which a layer runs, in order: those of the highest numbers."""
    *place, stack = counter
    numbers = integers(*place, f"{stack}/rows/{layer}", rows)  # type: ignore[call-arg, arg-type]
    return tuple(sorted(sorted(range(rows), key=numbers.__getitem__)[rows - run :]))


class RowMask(tuple[bool, ...]):
    """Which layers run in a forward, each on some of the rows, which are drawn when their number is known.

    Attributes:
        rows: How many rows the batch of the forward has; None until a layer has seen it.
        counted_in: The counts of the draw in which the forward counts with all of its rows so far.
        moved: What was made of the rows that are kept, by the device where it lies.
    """

    def __new__(cls, rates: Sequence[float], counter: Counter, running: Mask | None = None) -> RowMask:
        """Draw at these rates; ``running`` says which layers run at all, those below rate 1 if left out."""
        return super().__new__(cls, [rate < 1 for rate in rates] if running is None else running)

    def __init__(self, rates: Sequence[float], counter: Counter, running: Mask | None = None) -> None:
        self._rates, self._counter = tuple(rates), counter
        self.rows: int | None = None
        self.counted_in: list[str] = []
        self.moved: dict[Any, Any] = {}
        self._kept: tuple[tuple[int, ...], ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy by what was given; tuples are copied by their entries else."""
        return type(self), (self._rates, self._counter, tuple(self))

    def running(self, mask: Mask) -> RowMask:
        """Return the same draw with other layers that run at all: one of rate 1 then runs on all rows."""
        return self if mask is self else RowMask(self._rates, self._counter, mask)

    def kept(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """Return for each layer the rows of a batch of so many on which it runs, in order."""
        if len(self._kept) != len(self) or self.rows != rows:
            self.rows = rows
            self._kept = tuple(
                kept_rows(self._counter, layer, rows, rows if rate == 1 else rows_run(rows, rate)) if runs else ()
                for layer, (runs, rate) in enumerate(zip(self, self._rates, strict=True))
            )
        return self._kept
