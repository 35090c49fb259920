"""What a step costs: how many layers it runs, so that arms can be given equal layer forwards; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.schedules import read_schedule
from reproduction.study import WHOLE, Arm, Size

_POINTS = 1000  # of a schedule, for its mean


def layerdrop_of(size: Size, arm: Arm, seed: int = 0) -> LayerDropConfig:
    """Return what an arm drops, where the library's `model_for_arm` does not know it."""
    if arm.start == "depths":
        return LayerDropConfig.for_depths(_listed(size), seed=seed, **arm.drop)
    if arm.drop:
        return LayerDropConfig(**arm.drop, seed=seed)
    sampler = "depth" if arm.start == "depth" else "bernoulli"
    rate = arm.rate if arm.start in ("depth", "layerdrop") else 0.0
    return LayerDropConfig(rate, sampler=sampler, structure=arm.structure, seed=seed)


def depths_of_a_step(size: Size) -> list[Any]:
    """Return the depths of a size one by one, as `DepthTraining` takes them."""
    listed = _listed(size)
    if not isinstance(listed, Mapping):
        return list(listed)
    return [dict(zip(listed, one, strict=True)) for one in zip(*listed.values(), strict=True)]


def layers_a_step(size: Size, arm: Arm) -> float:
    """Return how many layers a step runs in the mean: of all depths that it trains, teachers left out."""
    whole = sum(size.layers.values())
    if arm.start == "together":
        sizes = [_layers(size, depth) for depth in depths_of_a_step(size)]
        return (
            float(sum(sizes))
            if arm.together.get("per_step") == len(sizes)
            else sizes[0] + sizes[-1] + fmean(sizes[1:-1])
        )
    if arm.cut != WHOLE:
        return _layers(size, size.cuts[arm.cut])
    config = layerdrop_of(size, arm)
    dropped = sum(map(sum, config.rates_for(size.layers).values()))
    if config.schedule is not None:
        schedule = read_schedule(config.schedule)
        dropped *= fmean(schedule(place / _POINTS) for place in range(_POINTS))
    return whole - dropped


def _listed(size: Size) -> Any:
    return (
        {stack: list(own) for stack, own in size.depths.items()}
        if isinstance(size.depths, Mapping)
        else list(size.depths)
    )


def _layers(size: Size, cut: Any) -> int:
    from hf_layerdrop.samplers.keep_layers import parse_keep_layers

    return sum(map(len, parse_keep_layers(cut, size.layers).values()))
