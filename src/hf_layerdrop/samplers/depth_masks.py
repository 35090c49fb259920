"""The masks of ``sampler="depth"``: one for each depth that is drawn, and what no choice of depths can reach."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.depth_list import Choice
from hf_layerdrop.samplers.draws import Mask, most_dropped


def masks_by_depth(depth: int, kept: Collection[int], choose: Choice) -> tuple[Mask, ...]:
    """Return for each depth from 1 on which layers the depth sampler runs: those that it keeps, and the protected."""
    sets = [{*choose(size, depth), *kept} for size in range(1, depth + 1)]
    return tuple(tuple(layer in layers for layer in range(depth)) for layers in sets)


def check_drawn(sizes: Sequence[int], draws: Sequence[tuple[Mask, float]], kept: Collection[int], stack: str) -> None:
    """Refuse a listed depth whose draw would run more layers, because ``never_drop`` protects others than its set."""
    for size, (mask, _) in zip(sizes, draws, strict=True):
        if sum(mask) != size:
            raise LayerDropConfigError(
                f"depths names {size}, but with {sorted(kept)} in never_drop it would run {sum(mask)} layers of the "
                f"{stack}: list depths whose sets hold these layers, or leave never_drop out."
            )


def check_depths_reach(rate: float, depth: int, kept: Collection[int], stack: str, choose: Choice) -> None:
    """Refuse a rate that no weights of the depths have as their mean."""
    most = most_dropped(sorted(mask.count(False) for mask in masks_by_depth(depth, kept, choose)))
    if rate * (depth - len(kept)) > most + 1e-9:
        raise LayerDropConfigError(
            f"rate is {rate}, but of the {stack} of {depth} layers with {len(kept)} in never_drop, sampler='depth' can "
            f"drop at most {most:.3g} layers on average; give a lower rate, or other layers to never_drop."
        )
