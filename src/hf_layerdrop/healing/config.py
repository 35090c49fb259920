"""The settings of healing, and which layers each round keeps: plain values, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_layerdrop.errors import HealingError
from hf_layerdrop.samplers.keep_layers import evenly_spread

METHODS = ("map", "lora", "whole", "distill")
NONE = "none"  # cut and measure, and nothing else
TRAINED = METHODS[1:]

Kept = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class HealingConfig:
    """What is done after the cut, in which order.

    Attributes:
        methods: ``map`` (a linear map in place of removed layers, without training), ``lora``, ``whole`` (all weights),
            ``distill`` (all weights, from the model before the cut), each at most once; or ``none`` alone.
        rounds: Cut in so many steps, healing after each; None for two where over half of the layers are removed and a
            method trains (Minitron, arXiv 2407.14679), else one.
        rows: Training rows that a map is fitted on; as many others decide whether it helps.
        ridge: How near a map stays to the plain cut, see `merge_linear_maps`.
        lora_rank: Rank of LoRA's matrices, in all linear layers of the stacks.
        lora_factor: LoRA learns at so many times the learning rate.
    """

    methods: tuple[str, ...] = ("map",)
    rounds: int | None = None
    rows: int = 256
    ridge: float = 0.1
    lora_rank: int = 16
    lora_factor: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        methods = tuple(self.methods)
        object.__setattr__(self, "methods", methods)
        known = f"choose of {', '.join(METHODS)}, in their order such as map,distill, or {NONE} alone"
        if unknown := [name for name in methods if name not in (*METHODS, NONE)]:
            raise HealingError(f"There is no way to heal called {unknown[0]!r}: {known}.")
        if not methods or len(set(methods)) < len(methods) or (NONE in methods and len(methods) > 1):
            raise HealingError(f"The methods are {', '.join(methods) or 'empty'}: {known}, each once.")
        for name in ("rows", "lora_rank", *(["rounds"] if self.rounds is not None else [])):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise HealingError(f"{name} is {value!r}; it must be a whole number, 1 or more.")
        for name in ("ridge", "lora_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise HealingError(f"{name} is {value!r}; it must be a finite number above 0.")

    @property
    def trains(self) -> bool:
        """Whether a method trains."""
        return any(name in TRAINED for name in self.methods)


def planned_cuts(kept: Kept, depths: Mapping[str, int], healing: HealingConfig) -> list[Kept]:
    """Return what each round keeps, in the numbering of the whole model; the last is what is wanted.

    What a round before the last keeps besides is spread evenly over what will be removed.

    Raises:
        HealingError: If nothing is removed, or less than a layer a round.
    """
    removed = {stack: [one for one in range(depth) if one not in kept[stack]] for stack, depth in depths.items()}
    count = sum(map(len, removed.values()))
    if not count:
        every = " and ".join(f"all {depth} layers of the {stack}" for stack, depth in depths.items())
        raise HealingError(f"keep_layers keeps {every}, so that there is nothing to heal; keep fewer.")
    rounds, most = healing.rounds, max(map(len, removed.values()))
    if rounds is None:
        rounds = 2 if healing.trains and 2 * count > sum(depths.values()) and most > 1 else 1
    if rounds > most:
        raise HealingError(f"{count} layers cannot be removed in {rounds} rounds; give fewer rounds.")
    cuts: list[Kept] = []
    left: Mapping[str, Sequence[int]] = removed
    for number in range(1, rounds + 1):  # each within the one before
        counts = {stack: len(gone) * (rounds - number) // rounds for stack, gone in removed.items()}
        left = {stack: _spread_over(layers, counts[stack]) for stack, layers in left.items()}
        cuts.append({stack: tuple(sorted({*kept[stack], *layers})) for stack, layers in left.items()})
    return cuts


def _spread_over(layers: Sequence[int], count: int) -> list[int]:
    return [layers[place] for place in evenly_spread(count, len(layers))] if count else []


def numbered_within(kept: Kept, earlier: Kept) -> Kept:
    """Return a cut in the numbering of an earlier one, of which it is a part."""
    return {stack: tuple(earlier[stack].index(layer) for layer in layers) for stack, layers in kept.items()}
