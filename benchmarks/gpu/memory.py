"""Memory of a training step at its peak, above weights and the optimizer's moments, against the rate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import mean
from typing import Any

import torch

from benchmarks._memory import peak_bytes
from benchmarks.gpu._device import BUILDERS, model_and_batch
from benchmarks.gpu.part import Measurement
from benchmarks.gpu.steps import RATES, _step
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_rates, set_step


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """Each model, all rates in one row."""
    for name in BUILDERS:
        yield name, partial(_measure, name, device, short)


def _measure(name: str, device: str, short: bool) -> dict[str, Any]:
    model, batch = model_and_batch(name, device, short)
    inject_layerdrop(model, LayerDropConfig(0.0, seed=0))
    step = _step(model, batch)
    step()  # the optimizer's moments of all layers are no part of what a step takes
    found = {}
    for rate in RATES:
        set_rates(model, rate)
        peaks = []
        for number in range(2 if short else 16):
            set_step(model, number)
            peaks.append(_peak(step, device) / 1e6)
        found[f"rate_{rate}_MB"] = mean(peaks)
        worst = max(peaks)
    return found | {"largest at 0.5, MB": worst}


def _peak(step: Any, device: str) -> float:
    """Return the most bytes that live at once in a step above those before it."""
    if not device.startswith("cuda"):
        return peak_bytes(step)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)
