"""Budgets: the depths whose sub-networks are fast, few or small enough.

Layers of a stack are of one kind, so what a sub-network costs is decided by its depths. Where layers differ in size,
the dearest set of a depth counts, and the cheapest if nobody can meet the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import nn

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.evaluation import parameters_of
from hf_layerdrop.pruning import Cutter, count_parameters
from hf_layerdrop.selection.latency import LatencyMeter
from hf_layerdrop.selection.space import Layers, Space

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

    def layer_sizes(self) -> dict[str, list[int]]:
        """Count the parameters of each layer, by stack."""
        return {stack: [count_parameters(layer) for layer in layers] for stack, layers in self._cutter.lists.items()}

    @cached_property
    def needed(self) -> Mapping[str, frozenset[int]]:
        """The layers of each stack without which the model cannot be cut."""
        return Space(self._cutter.depths, self._cutter.depths, self._cutter.can_cut).needed()

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
        LayerDropConfigError: If not even one layer a stack fits; the message says what that costs.
    """
    *outer, last = depths
    fitting = []
    for counts in product(*(range(1, depths[stack] + 1) for stack in outer)):
        target = dict(zip(outer, counts, strict=True))
        deepest = _deepest(lambda count: _fits(budget, costs, depths, {**target, last: count}), depths[last])  # noqa: B023
        if deepest:
            fitting.append({**target, last: deepest})
    if not fitting:
        cheapest = _extreme_set(costs, Space(depths, dict.fromkeys(depths, 1)), dearest=False)
        named = ", ".join(f"1 of the {depth} {stack} layers" for stack, depth in depths.items())
        excess = costs.excess(budget, cheapest) or "no depth fits the budget, and {} does so only with a chosen layer"
        raise LayerDropConfigError(excess.format(f"the cheapest possible ({named})") + ": raise the budget.")
    return [target for target in fitting if not any(_deeper(other, target) for other in fitting)]


def next_deeper(target: Target, depths: Mapping[str, int]) -> Iterator[Target]:
    """Yield the targets with one more layer in one stack."""
    return ({**target, stack: count + 1} for stack, count in target.items() if count < depths[stack])


def size_in_mb(model: nn.Module) -> float:
    """Add up the weights and buffers that are saved, tied ones once, in 10^6 bytes."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict(keep_vars=True).values() if tensor.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6


def _fits(budget: Budget, costs: Costs, depths: Mapping[str, int], target: Target) -> bool:
    return costs.excess(budget, _extreme_set(costs, Space(depths, target), dearest=True)) is None


def _extreme_set(costs: Costs, space: Space, *, dearest: bool) -> Layers:
    """Return the set of the largest or smallest layers; the evenly spread one where they are all alike.

    Layers that the model cannot be cut without come first.
    """
    sizes = costs.layer_sizes()
    kept = {}
    for stack, spread in space.spread().items():
        order = sorted(range(space.depths[stack]), key=lambda layer: sizes[stack][layer], reverse=dearest)
        order.sort(key=lambda layer: layer not in costs.needed[stack])
        kept[stack] = tuple(sorted(order[: len(spread)])) if len(set(sizes[stack])) > 1 else spread
    return kept


def _deepest(fits: Callable[[int], bool], depth: int) -> int:
    """Return the largest number from 1 that fits, 0 if none does, by bisection: deeper is never cheaper."""
    low, high = 0, depth
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _deeper(one: Target, other: Target) -> bool:
    return one != other and all(one[stack] >= other[stack] for stack in other)
