"""Memory of a training step, counted exactly: every tensor that torch allocates and frees, weights not counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._contenders import CutStep, Size, Step, batch_of, bert, layerdrop_step
from hf_layerdrop import set_rates


def memory_by_rate(size: Size, rates: Sequence[float], steps: int) -> dict[float, dict[str, float]]:
    """Return megabytes at their peak, mean over steps, for each rate: with LayerDrop, and cut to the same layers."""
    return {rate: _peaks(size, rate, steps) for rate in rates}


def _peaks(size: Size, rate: float, steps: int) -> dict[str, float]:
    batch, model = batch_of(size), bert(size)
    ours, mask_of = layerdrop_step(model, batch, rate)
    set_rates(model, 0.0)
    cut = CutStep(bert(size), batch, mask_of)
    contenders: dict[str, Step] = {"peak_mb": ours, "cut_peak_mb": cut}
    for step in contenders.values():  # the optimizer's moments of all layers are no part of what a step takes
        step.prepare(0)
        step.run()
    set_rates(model, rate)
    peaks: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(steps):
        for name, step in contenders.items():
            step.prepare(number)
            peaks[name].append(peak_bytes(step.run) / 1e6)
    return {name: sum(values) / steps for name, values in peaks.items()} | {"worst_mb": max(peaks["peak_mb"])}


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return how many bytes of tensors live at once while ``run`` runs, above those that lived before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results: Any = recorded.profiler
    living = peak = 0
    for event in sorted(results.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            living += event.nbytes()
            peak = max(peak, living)
    return peak


def _check() -> None:
    allocated = peak_bytes(lambda: torch.zeros(1_000_000))
    if not 4_000_000 <= allocated < 4_100_000:
        raise AssertionError(f"this torch counted {allocated} bytes for a tensor of 4,000,000")


_check()
