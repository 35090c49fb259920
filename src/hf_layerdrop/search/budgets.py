"""Budgets: the depths whose sub-networks are fast, few or small enough.

Layers of a stack are mostly of one kind, so what a sub-network costs is decided by its depths. Where layers differ in
size, the dearest possible set of a depth counts, and the cheapest if nobody can meet the budget. A depth of which no
set is possible fits no budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import nn

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.evaluation.parameter_counts import parameters_of
from hf_layerdrop.pruning.prune import Cutter, count_parameters
from hf_layerdrop.search.latency import LatencyMeter
from hf_layerdrop.search.space import Layers, Space

Target = Mapping[str, int]


@dataclass(frozen=True)
class Budget:
    """The most that a sub-network may cost; None is no limit."""

    max_latency_ms: float | None = None
    max_parameters: int | None = None
    max_size_mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            wrong = isinstance(value, bool) or not isinstance(value, int | float)
            if value is not None and (wrong or not value > 0):
                raise LayerDropConfigError(f"{name} is {value!r}: give a number above 0.")

    @property
    def asks(self) -> bool:
        """Whether there is any limit."""
        return any(value is not None for value in vars(self).values())


class Costs:
    """What sub-networks of a model cost; parameters and size are exact, times are measured once a depth."""

    def __init__(self, model: Any, cutter: Cutter, meter: LatencyMeter | None) -> None:
        self._model = model
        self._cutter = cutter
        self._meter = meter
        self._milliseconds: dict[tuple[int, ...], float] = {}

    def parameters(self, kept: Layers) -> int:
        """Count the parameters, tied weights once."""
        return parameters_of(self._cutter, self._model, kept)

    def size_mb(self, kept: Layers) -> float:
        """Add up the weights that are saved, tied ones once, in 10^6 bytes."""
        with self._cutter.sub_network(kept):
            return size_in_mb(self._model)

    def latency_ms(self, kept: Layers) -> float | None:
        """Return the time of a forward, measured on the first sub-network of the same depths; None without a meter."""
        if self._meter is None:
            return None
        depths = tuple(len(layers) for layers in kept.values())
        if depths not in self._milliseconds:
            self._milliseconds[depths] = self._meter.milliseconds(kept)
        return self._milliseconds[depths]

    def measured_ms(self, kept: Layers) -> float | None:
        """Measure the time of this very sub-network; None without a meter."""
        return self._meter.milliseconds(kept) if self._meter else None

    def extreme_set(self, target: Target, *, dearest: bool) -> Layers | None:
        """Return the possible set of the largest or smallest layers, spread where they are alike; None without one."""
        space = Space(self._cutter.depths, target, self._cutter.can_cut)
        sign, spread = 1 if dearest else -1, space.spread()
        return space.heaviest(
            {
                stack: [sign * size + (layer in spread[stack]) / (1 + len(sizes)) for layer, size in enumerate(sizes)]
                for stack, sizes in self._layer_sizes.items()
            }
        )

    @cached_property
    def _layer_sizes(self) -> dict[str, list[int]]:
        """The parameters of each layer, by stack."""
        return {stack: [count_parameters(layer) for layer in layers] for stack, layers in self._cutter.lists.items()}

    @property
    def last_refusal(self) -> str:
        """Why a set that was looked at cannot be cut; empty if all could."""
        return self._cutter.last_refusal

    def excess(self, budget: Budget, kept: Layers) -> str | None:
        """Say which limit a sub-network exceeds, and by what; None if it fits."""
        found: list[tuple[str, Callable[[Layers], float | None], float | None, str]] = [
            ("max_parameters", self.parameters, budget.max_parameters, "{:,} parameters"),
            ("max_size_mb", self.size_mb, budget.max_size_mb, "{:.4g} MB"),
            ("max_latency_ms", self.latency_ms, budget.max_latency_ms, "{:.3g} ms on this machine"),
        ]
        for name, cost, limit, text in found:
            value = None if limit is None else cost(kept)
            if value is not None and limit is not None and value > limit:
                return f"{name} is {limit:,}, but {{}} has {text.format(value)}"
        return None


def targets_within(budget: Budget, costs: Costs, depths: Mapping[str, int]) -> list[Target]:
    """Return the deepest numbers of layers by stack that fit: none of them can be deepened without leaving the budget.

    Raises:
        LayerDropConfigError: If not even the fewest layers that are possible fit; the message says what they cost.
    """
    *outer, last = depths
    fitting = []
    for counts in product(*(range(1, depths[stack] + 1) for stack in outer)):
        targets: list[Target] = [
            {**dict(zip(outer, counts, strict=True)), last: count} for count in range(1, depths[last] + 1)
        ]
        dearest = [kept for target in targets if (kept := costs.extreme_set(target, dearest=True))]
        fitting += [{stack: len(layers) for stack, layers in kept.items()} for kept in _deepest(budget, costs, dearest)]
    if not fitting:
        raise LayerDropConfigError(_nothing_fits(budget, costs, depths))
    return [target for target in fitting if not any(_deeper(other, target) for other in fitting)]


def _nothing_fits(budget: Budget, costs: Costs, depths: Mapping[str, int]) -> str:
    every_count = product(*(range(1, depth + 1) for depth in depths.values()))
    targets = [dict(zip(depths, counts, strict=True)) for counts in every_count]
    targets.sort(key=lambda target: sum(target.values()))
    cheapest = next(kept for target in targets if (kept := costs.extreme_set(target, dearest=False)))
    named = ", ".join(f"{len(cheapest[stack])} of the {depth} {stack} layers" for stack, depth in depths.items())
    excess = costs.excess(budget, cheapest) or "no depth fits the budget, and {} does so only with chosen layers"
    refused = any(len(layers) > 1 for layers in cheapest.values())
    reason = f" Fewer are not possible: {costs.last_refusal}" if refused else ""
    return excess.format(f"the cheapest possible ({named})") + ": raise the budget." + reason


def next_deeper(target: Target, depths: Mapping[str, int]) -> Iterator[Target]:
    """Yield the targets with one more layer in one stack."""
    return ({**target, stack: count + 1} for stack, count in target.items() if count < depths[stack])


def size_in_mb(model: nn.Module) -> float:
    """Add up the weights and buffers that are saved, tied ones once, in 10^6 bytes."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict(keep_vars=True).values() if tensor.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6


def _deepest(budget: Budget, costs: Costs, dearest: Sequence[Layers]) -> Sequence[Layers]:
    """Return the last of the sets that fits, if one does, by bisection: deeper is never cheaper."""
    low, high = 0, len(dearest)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if costs.excess(budget, dearest[middle - 1]) is None else (low, middle - 1)
    return dearest[max(0, low - 1) : low]


def _deeper(one: Target, other: Target) -> bool:
    return one != other and all(one[stack] >= other[stack] for stack in other)
