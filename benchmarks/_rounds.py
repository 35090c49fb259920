"""Time contenders in rounds: each does the same step once a round, in turning order; ratios are taken in a round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

RESAMPLES = 2000


class Contender(Protocol):
    """What takes part: `prepare` is not timed, `run` is."""

    def prepare(self, step: int) -> None:
        """Get ready for a step: cut a model, set a mask or a seed."""

    def run(self) -> Any:
        """Do the step; what it returns is compared between contenders by whoever asked for the rounds."""


@dataclass(frozen=True)
class Ratio:
    """One contender's time over another's: the median over rounds, and a bootstrap interval of 95 % of that median."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f} to {self.high:.4f})"

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def time_rounds(
    contenders: Mapping[str, Contender],
    rounds: int,
    *,
    warm_up: int = 3,
    on_round: Callable[[dict[str, Any]], None] | None = None,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Return the milliseconds of each contender by round; ``on_round`` gets what they returned.

    The order turns from round to round, so that nobody always runs after the same neighbour; garbage is collected
    between steps and not inside them. On a machine that others use too, the clock ``cpu`` counts the time that this
    process computed; that of several threads adds up.
    """
    now = CLOCKS[clock]
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(-warm_up, rounds):
            turn = number % len(names)
            returned: dict[str, Any] = {}
            for name in names[turn:] + names[:turn]:
                contenders[name].prepare(number + warm_up)
                start = now()
                returned[name] = contenders[name].run()
                elapsed = 1000 * (now() - start)
                if number >= 0:
                    times[name].append(elapsed)
            if on_round is not None:
                on_round(returned)
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    return times


def ratio(times: Sequence[float], others: Sequence[float], seed: int = 0) -> Ratio:
    """Compare two contenders round by round: the work of a round is the same for both, that of two rounds is not."""
    import numpy as np

    shares = np.asarray(times) / np.asarray(others)
    picks = np.random.default_rng(seed).integers(0, len(shares), (RESAMPLES, len(shares)))
    low, high = np.percentile(np.median(shares[picks], axis=1), [2.5, 97.5])
    return Ratio(float(median(shares)), float(low), float(high))
