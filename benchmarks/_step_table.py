"""The table of `step`: printed line by line as it is measured, and kept as numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

from benchmarks._rounds import Contender, Ratio, ratio, time_rounds

LONG_STEP_MS = 100.0  # shorter steps say nothing about a bound
BOUNDS = {"rate 0": 1.01, "rate 0.5": 1.03, "bart": 1.01, "depths": 1.03}
SWITCH_MS = 1.0  # at most, to enter and leave a sub-network


class Report:
    """What was measured so far.

    Attributes:
        numbers: The same as the table, as JSON values.
        clock: What times are taken by, a name of `_rounds.CLOCKS`.
    """

    def __init__(self, size: Any, clock: str = "wall") -> None:
        self.clock = clock
        self.numbers: dict[str, Any] = {"comparisons": {}, "bounds": {}}
        self._start = time.perf_counter()
        counted = "" if clock == "wall" else f" Times are {clock} time."
        print(f"One step: forward, backward, AdamW; {size}.{counted}\n")
        print("| what | LayerDrop, ms | beside, ms | ratio (95 % interval) | rounds |")
        print("| :--- | ---: | ---: | :--- | ---: |", flush=True)

    def compare(
        self, name: str, contenders: Mapping[str, Contender], rounds: int, *, other_work: Collection[str] = ()
    ) -> None:
        """Time the first contender beside each other one; the losses of all but ``other_work`` have to be its own."""
        losses: list[dict[str, Any]] = []
        times = time_rounds(contenders, rounds, on_round=losses.append, clock=self.clock)
        ours, *others = times
        for other in others:
            label = f"{name}: against {other}"
            self._add(label, times[ours], times[other], ratio(times[ours], times[other]))
            if other not in other_work:
                same = all(bool(returned[ours] == returned[other]) for returned in losses)
                self.numbers["comparisons"][label]["same_losses"] = same
            if name in BOUNDS:
                self._judge(name, label)
        self.progress(name)

    def _add(self, label: str, ours: list[float], others: list[float], found: Ratio) -> None:
        self.numbers["comparisons"][label] = {
            "ms": median(ours),
            "beside_ms": median(others),
            "rounds": len(ours),
            **{f"ratio_{key}": value for key, value in found.to_dict().items()},
        }
        print(f"| {label} | {median(ours):.1f} | {median(others):.1f} | {found} | {len(ours)} |", flush=True)

    def _judge(self, name: str, label: str) -> None:
        numbers = self.numbers["comparisons"][label]
        self.numbers["bounds"][name] = {
            "at_most": BOUNDS[name],
            "met": numbers["ratio_low"] <= BOUNDS[name],
            "steps_long_enough": min(numbers["ms"], numbers["beside_ms"]) >= LONG_STEP_MS,
        }

    def switches(self, found: float) -> None:
        """Print what it takes to enter and leave a sub-network of a model that stays as it is."""
        self.numbers["switch_ms"] = found
        self.numbers["bounds"]["switch"] = {"at_most": SWITCH_MS, "met": found <= SWITCH_MS}
        print(f"\nTo enter and leave `sub_network`: {found:.3f} ms.", flush=True)

    def memory(self, found: Mapping[float, Mapping[str, float]]) -> None:
        """Print what steps take at their peaks, beside weights and the optimizer's moments."""
        self.numbers["memory"] = dict(found)
        whole = found[0.0]["peak_mb"]
        print("\n| rate | peak of a step, MB, mean | share of rate 0 | cut, MB | largest of the steps, MB |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        for rate, values in found.items():
            peak, cut, worst = values["peak_mb"], values["cut_peak_mb"], values["worst_mb"]
            print(f"| {rate} | {peak:.1f} | {peak / whole:.3f} | {cut:.1f} | {worst:.1f} |", flush=True)

    def progress(self, done: str) -> None:
        """Say on stderr, out of the table's way, how far it has come."""
        print(f"  {done}: done after {time.perf_counter() - self._start:.0f} s", file=sys.stderr, flush=True)
