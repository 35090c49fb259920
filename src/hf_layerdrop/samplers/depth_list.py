"""A list of depths to train: ``depths=[12, 6, 4, 3]``, or with weights ``{12: 2, 6: 1}``, or a list for each stack.

Training on a short fixed list of sub-networks, in place of all, is what Starbucks (Zhuang et al., 2024) and "one
deterministic sub-network a depth" (Wang et al., 2020) do. Of several stacks, the depths at one place of their lists are
drawn together, so that each is one sub-network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.draws import Mask, shares_dropped
from hf_layerdrop.samplers.frozen_dict import FrozenDict
from hf_layerdrop.samplers.keep_layers import evenly_spread

DepthList: TypeAlias = tuple[int, ...] | Mapping[int, float] | Mapping[str, tuple[int, ...]]
"""Depths that are drawn alike, depths with the share of draws of each, or depths by stack."""

Choice: TypeAlias = Callable[[int, int], Collection[int]]
"""From a depth and the number of layers to those that it keeps."""


def as_depth_list(value: Any) -> DepthList | None:
    """Check a list of depths, and freeze it; weights become shares of 1.

    Raises:
        LayerDropConfigError: If it is none, is empty, names a depth twice, or the lists of stacks differ in length.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and value and all(_is_stack(key) for key in value):
        lists = {str(stack): _depths(depths, f"depths of the {stack}") for stack, depths in value.items()}
        if len(set(map(len, lists.values()))) > 1:
            raise LayerDropConfigError(
                f"depths lists {' and '.join(f'{len(depths)} of the {stack}' for stack, depths in lists.items())}; "
                "those at one place are drawn together, so list as many of each."
            )
        return FrozenDict(lists)
    if isinstance(value, Mapping):
        sizes = _depths(value, "depths")
        _check_once(sizes)
        weights = dict(zip(sizes, map(_weight, value.values()), strict=True))
        total = sum(weights.values())
        # In an order of its own, since what reads and writes JSON may change that of a dict.
        return FrozenDict({depth: weights[depth] / total for depth in sorted(weights, reverse=True)})
    depths = _depths(value, "depths")
    _check_once(depths)
    return depths


def draws_of(
    depths: DepthList, stack: str, depth: int, kept: Collection[int], choose: Choice = evenly_spread
) -> list[tuple[Mask, float]]:
    """Return the masks that are drawn of a stack of ``depth`` layers, in the order of the list, with their shares.

    Layers of ``kept`` run in each, beside those that ``choose`` gives. A stack that is not named stays whole.

    Raises:
        LayerDropConfigError: If a depth is more than the stack has.
    """
    sizes = sizes_of(depths, stack, depth)
    if deeper := [size for size in sizes if size > depth]:
        raise LayerDropConfigError(
            f"depths names {deeper[0]}, but the {stack} has {depth} layers; give depths from 1 to {depth}."
        )
    shares = [*depths.values()] if _is_weighted(depths) else [1 / len(sizes)] * len(sizes)
    sets = [{*choose(size, depth), *kept} for size in sizes]
    masks = [tuple(layer in layers for layer in range(depth)) for layers in sets]
    return list(zip(masks, shares, strict=True))


def of_these_stacks(depths: DepthList, stacks: Collection[str]) -> DepthList:
    """Leave out the depths of stacks that a model does not have."""
    return {stack: own for stack, own in depths.items() if stack in stacks} if _is_by_stack(depths) else depths


def describe(depths: DepthList) -> str:
    """Write a list of depths for a reader: ``12, 6, 3``; ``12 (50 %), 6 (50 %)``; ``encoder 6, 3; decoder 6, 3``."""
    if _is_by_stack(depths):
        return "; ".join(f"{stack} {', '.join(map(str, own))}" for stack, own in depths.items())
    if _is_weighted(depths):
        return ", ".join(f"{depth} ({share:.0%})" for depth, share in depths.items())
    return ", ".join(map(str, depths))


def unknown_stacks(depths: DepthList, stacks: Collection[str]) -> list[str]:
    """Return the names of stacks in the list that a model does not have."""
    return sorted(set(depths) - set(stacks)) if _is_by_stack(depths) else []


def rates_of(draws: Sequence[tuple[Mask, float]]) -> tuple[float, ...]:
    """Return how often each layer is dropped by these draws."""
    return shares_dropped(*zip(*draws, strict=True))


def mean_share_dropped(depths: DepthList) -> float:
    """Return the mean share of layers that are dropped, if the deepest of the list is the whole model."""
    if _is_weighted(depths):
        return 1 - sum(depth * share for depth, share in depths.items()) / max(depths)
    lists = [*depths.values()] if _is_by_stack(depths) else [sizes_of(depths, "", 0)]
    return sum(1 - sum(each) / len(each) / max(each) for each in lists) / len(lists)


def sizes_of(depths: DepthList, stack: str, depth: int) -> Sequence[int]:
    """Return the depths that are drawn of a stack of ``depth`` layers, in the order of the list."""
    if _is_by_stack(depths):
        return depths[stack] if stack in depths else [depth] * len(next(iter(depths.values())))
    return [*depths] if _is_weighted(depths) else tuple(map(int, depths))


def _is_by_stack(depths: DepthList) -> TypeGuard[Mapping[str, tuple[int, ...]]]:
    return isinstance(depths, Mapping) and all(isinstance(key, str) for key in depths)


def _is_weighted(depths: DepthList) -> TypeGuard[Mapping[int, float]]:
    return isinstance(depths, Mapping) and not _is_by_stack(depths)


def _is_stack(key: Any) -> bool:
    return isinstance(key, str) and not key.isdecimal()  # JSON writes the depths of a dict as text


def _depths(values: Any, what: str) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise LayerDropConfigError(f"{what} is {values!r}; list some, such as [12, 6, 3].")
    depths = [value.item() if hasattr(value, "item") else value for value in values]
    depths = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in depths]
    if wrong := [value for value in depths if isinstance(value, bool) or not isinstance(value, int) or value < 1]:
        raise LayerDropConfigError(f"{what} holds {wrong[0]!r}; depths are whole numbers from 1 on.")
    if not depths:
        raise LayerDropConfigError(f"{what} is empty; list some, such as [12, 6, 3].")
    return tuple(depths)


def _check_once(depths: Sequence[int]) -> None:
    if len(set(depths)) < len(depths):
        twice = next(depth for depth in depths if depths.count(depth) > 1)
        raise LayerDropConfigError(f"depths names {twice} twice; give it more weight as in {{{twice}: 2, ...}}.")


def _weight(value: Any) -> float:
    try:
        weight = float(value) if not isinstance(value, bool | str) else math.nan
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise LayerDropConfigError(f"depths has the weight {value!r}; weights are numbers above 0.")
    return weight
