"""Which sub-networks there are: all that keep a given number of layers of each stack."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from random import Random
from typing import Any

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.keep import evenly_spread

Layers = Mapping[str, tuple[int, ...]]
Key = tuple[tuple[int, ...], ...]
TRIES = 100


@dataclass(frozen=True)
class Space:
    """All sub-networks of a model with ``depths`` layers that keep ``target`` of them, both by stack.

    ``can_cut`` tells those that plain transformers can rebuild from those that it cannot; all can be, if it is None.
    """

    depths: Mapping[str, int]
    target: Mapping[str, int]
    can_cut: Callable[[Layers], bool] | None = None

    def count(self) -> int:
        """Count the sub-networks, also those that cannot be cut: to try each of them would take too long."""
        return prod(comb(depth, self.target[stack]) for stack, depth in self.depths.items())

    def every_set(self) -> Iterator[Layers]:
        """Yield all sub-networks, in walking order."""
        choices = [combinations(range(depth), self.target[stack]) for stack, depth in self.depths.items()]
        return self._possible(dict(zip(self.depths, layers, strict=True)) for layers in product(*choices))

    def random_sets(self, count: int, random: Random, without: Collection[Key] = ()) -> list[Layers]:
        """Draw different sub-networks at random, none of those in ``without``; all of them if there are no more."""
        if count >= self.count() - len(without):
            return [layers for layers in self.every_set() if key_of(layers) not in without]
        drawn: dict[Key, Layers] = {}
        for _ in range(TRIES * count):  # of a model that can hardly be cut there may be fewer
            layers = {
                stack: tuple(sorted(random.sample(range(depth), self.target[stack])))
                for stack, depth in self.depths.items()
            }
            if key_of(layers) not in without and any(self._possible([layers])):
                drawn[key_of(layers)] = layers
            if len(drawn) == count:
                break
        return list(drawn.values())

    def spread(self) -> Layers:
        """Return the evenly spread sub-network."""
        return {stack: evenly_spread(self.target[stack], depth) for stack, depth in self.depths.items()}

    def without_one(self, kept: Layers) -> list[Layers]:
        """List what is left of a sub-network after one more layer is removed from a stack that is too deep yet."""
        return list(
            self._possible(
                {**kept, stack: tuple(other for other in layers if other != layer)}
                for stack, layers in kept.items()
                if len(layers) > self.target[stack]
                for layer in layers
            )
        )

    def with_one_more(self, kept: Layers) -> list[Layers]:
        """List what a sub-network becomes by one more layer in a stack that is not deep enough yet."""
        return list(
            self._possible(
                {**kept, stack: tuple(sorted((*layers, layer)))}
                for stack, layers in kept.items()
                if len(layers) < self.target[stack]
                for layer in range(self.depths[stack])
                if layer not in layers
            )
        )

    def with_one_swapped(self, kept: Layers) -> list[Layers]:
        """List the sub-networks that keep one other layer of a stack instead of one of these."""
        return list(
            self._possible(
                {**kept, stack: tuple(sorted({*layers, other} - {layer}))}
                for stack, layers in kept.items()
                for other in range(self.depths[stack])
                if other not in layers
                for layer in layers
            )
        )

    def needed(self) -> dict[str, frozenset[int]]:
        """Return by stack the layers without which the model cannot be cut at all, each tried alone."""
        everything = whole(self.depths)
        return {
            stack: frozenset(
                layer
                for layer in layers
                if not any(self._possible([{**everything, stack: tuple(other for other in layers if other != layer)}]))
            )
            for stack, layers in everything.items()
        }

    def _possible(self, kept: Iterable[Layers]) -> Iterator[Layers]:
        return (layers for layers in kept if self.can_cut is None or self.can_cut(layers))


def whole(depths: Mapping[str, int]) -> Layers:
    """Return the sub-network that is the whole model."""
    return {stack: tuple(range(depth)) for stack, depth in depths.items()}


def key_of(kept: Layers) -> Key:
    """Return what tells sub-networks of one model apart, and orders them."""
    return tuple(tuple(layers) for layers in kept.values())


def distinct(kept: list[Layers]) -> list[Layers]:
    """Name each sub-network once."""
    return list({key_of(layers): layers for layers in kept}.values())


def parse_depth(depth: Any, depths: Mapping[str, int]) -> dict[str, int]:
    """Return how many layers of each stack to keep: ``6``, ``"6"``, ``{"decoder": 3}`` or ``"encoder=6;decoder=3"``.

    Stacks that are not named stay whole.

    Raises:
        KeepLayersError: If it cannot be read, names a stack that does not exist, or is not from 1 to its depth.
    """
    if isinstance(depth, str) and "=" in depth:
        parts = (part.partition("=") for part in depth.split(";"))
        depth = {stack.strip(): value for stack, _, value in parts}
    if not isinstance(depth, Mapping):
        if len(depths) > 1:
            example = ";".join(f"{stack}={max(1, count // 2)}" for stack, count in depths.items())
            raise KeepLayersError(
                f"depth is {depth!r}, but this model has the stacks {_listed(depths)}: say which, for example "
                f"{example!r}."
            )
        depth = dict.fromkeys(depths, depth)
    for stack in depth:
        if stack not in depths:
            raise KeepLayersError(f"depth names the stack {stack!r}, but this model has {_listed(depths)}: use these.")
    return {stack: _count(depth.get(stack, count), stack, count) for stack, count in depths.items()}


def _count(value: Any, stack: str, of: int) -> int:
    text = value.strip() if isinstance(value, str) else None
    try:
        count = int(text) if text and text.isdecimal() and len(text) < 10 else operator.index(value)
    except TypeError:
        count = 0
    if isinstance(value, bool) or not 1 <= count <= of:
        raise KeepLayersError(
            f"depth is {value!r}, but the stack {stack!r} has {of} layers: give a whole number from 1 to {of}."
        )
    return count


def _listed(depths: Mapping[str, int]) -> str:
    return " and ".join(f"{stack!r} ({depth} layers)" for stack, depth in depths.items())
