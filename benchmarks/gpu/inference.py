"""Latency (one row) and throughput (many rows) of inference against depth: evenly spread cuts of one model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu._device import BUILDERS, Cuts, milliseconds, model_and_batch
from benchmarks.gpu.part import Measurement
from hf_layerdrop import parse_keep_layers

SHARES = (1, 0.75, 0.5, 0.25)


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """Each model at all of its layers, three quarters, half, a quarter."""
    for name in BUILDERS:
        whole: list[Any] = []
        for share in SHARES:
            yield f"{name}, {share:g} of the layers", partial(_measure, whole, name, share, device, short)


def _measure(whole: list[Any], name: str, share: float, device: str, short: bool) -> dict[str, Any]:
    if not whole:
        model, batch = model_and_batch(name, device, short)
        whole += [model.eval(), batch, Cuts(model)]
    model, batch, cuts = whole
    depths = {stack: len(layers) for stack, layers in cuts.layers.items()}
    kept = parse_keep_layers({stack: max(1, round(share * depth)) for stack, depth in depths.items()}, depths)
    cuts.to({stack: [number in kept[stack] for number in range(depth)] for stack, depth in depths.items()})
    tokens = batch["input_ids"]
    many = tokens if short else tokens.repeat(4, 1)
    one_ms, many_ms = (_median_ms(model, inputs, device, 3 if short else 30) for inputs in (tokens[:1], many))
    return {
        "layers": sum(map(len, kept.values())),
        "one_row_ms": one_ms,
        "rows": len(many),
        "rows_a_second": 1000 * len(many) / many_ms,
    }


def _median_ms(model: Any, tokens: torch.Tensor, device: str, rounds: int) -> float:
    with torch.no_grad():
        return median([milliseconds(lambda: model(input_ids=tokens), device) for _ in range(rounds + 5)][5:])
