"""Which sub-networks there are: all that keep a given number of layers of each stack and that can be cut.

Plain transformers cannot rebuild every set of layers of every model. The sets that it can are the possible ones; what
is asked of a `Space` is one of them, or some, or all, wherever layers are chosen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import comb, prod
from random import Random
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.samplers.keep_layers import evenly_spread, is_encoder_decoder

Layers = Mapping[str, tuple[int, ...]]
Key = tuple[tuple[int, ...], ...]
Weights = Mapping[str, Sequence[float]]
TRIES = 100

# Up to so many sets, all are tried for one that is possible; and above, an exhaustive search wants to be asked for: 8
# of 16 layers are 12,870 sets.
MAX_SETS = 20_000

# Up to so many sets, all are compared for the heaviest one.
FEW_SETS = 1_000


class Draws(NamedTuple):
    """Sub-networks drawn at random, and the share of the draws that were possible."""

    sets: list[Layers]
    share_possible: float


@dataclass(frozen=True)
class Space:
    """The sub-networks of a model with ``depths`` layers that keep ``target`` of them, both by stack.

    ``can_cut`` tells those that are possible from those that are not; all are, if it is None.
    """

    depths: Mapping[str, int]
    target: Mapping[str, int]
    can_cut: Callable[[Layers], bool] | None = None

    def count(self) -> int:
        """Count the sets, also those that are not possible: to try each of them may take too long."""
        return prod(comb(depth, self.target[stack]) for stack, depth in self.depths.items())

    def is_possible(self, kept: Layers) -> bool:
        """Tell whether a set, which need not be of this depth, can be cut."""
        return self.can_cut is None or self.can_cut(kept)

    def conceivable_sets(self) -> Iterator[Layers]:
        """Yield all sets in walking order, also those that are not possible."""
        choices = [combinations(range(depth), self.target[stack]) for stack, depth in self.depths.items()]
        return (dict(zip(self.depths, layers, strict=True)) for layers in product(*choices))

    def every_set(self) -> Iterator[Layers]:
        """Yield all sub-networks, in walking order."""
        return self._possible(self.conceivable_sets())

    def some_set(self) -> Layers | None:
        """Return a sub-network, the evenly spread one if it is possible; None if none was found.

        Up to `MAX_SETS` sets there is none then.
        """
        spread = self.spread()
        if self.is_possible(spread):
            return spread
        return self.heaviest({stack: [0.0] * depth for stack, depth in self.depths.items()})

    def heaviest(self, weights: Weights) -> Layers | None:
        """Return the sub-network whose layers weigh most in all, of equal ones the earlier; None if none was found.

        Where the heaviest layers of each stack are no possible set, and there are too many to compare them all, sets
        are built up from the front, as what a model can be cut to begins with what it can be cut to as well; or else
        layers are taken away one by one. What is found so may not be the very heaviest.
        """
        top = {stack: _heaviest_layers(numbers, self.target[stack]) for stack, numbers in weights.items()}
        if self.is_possible(top):
            return top
        if self.count() > FEW_SETS:
            grown = {stack: self._grown(stack, numbers) for stack, numbers in weights.items()}
            if all(grown.values()) and self.is_possible(grown):
                return grown
        if self.count() <= MAX_SETS:
            return max(self.every_set(), key=lambda kept: _weight_of(kept, weights), default=None)
        return self._thinned(weights) or next(iter(self.random_sets(1, Random(0))), None)

    def _grown(self, stack: str, weights: Sequence[float]) -> tuple[int, ...]:
        """Add layer by layer of one stack, the others whole; of the sets that end alike, follow the heaviest."""
        rest, depth, count = whole(self.depths), self.depths[stack], self.target[stack]
        if count == depth:
            return rest[stack]
        ends: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for place in range(count):
            longer: list[tuple[float, tuple[int, ...]]] = []
            for layer in range(place, depth - count + place + 1):
                options = [(weight - weights[layer], (*kept, layer)) for weight, kept in ends if kept[-1:] < (layer,)]
                possible = (option for option in sorted(options) if self.is_possible({**rest, stack: option[1]}))
                longer.extend(islice(possible, 1))
            ends = longer
        return min(ends, default=(0.0, ()))[1]

    def _thinned(self, weights: Weights) -> Layers | None:
        """Take away layer by layer, the lightest that can go."""
        kept: Layers | None = whole(self.depths)
        for _ in range(sum(self.depths.values()) - sum(self.target.values())):
            left = self.without_one(kept) if kept else []
            kept = max(left, key=lambda kept: _weight_of(kept, weights), default=None)
        return kept

    def random_sets(self, count: int, random: Random, without: Collection[Key] = ()) -> list[Layers]:
        """Draw different sub-networks at random, none of those in ``without``; all of them if there are no more."""
        return self.draw(count, random, without).sets

    def draw(self, count: int, random: Random, without: Collection[Key] = ()) -> Draws:
        """Draw as `random_sets` does, and say which share of all sets seems to be possible."""
        if count >= self.count() - len(without):
            every = list(self.every_set())
            return Draws([layers for layers in every if key_of(layers) not in without], len(every) / self.count())
        drawn: dict[Key, Layers] = {}
        tries = possible = 0
        while len(drawn) < count and tries < TRIES * count:
            tries += 1
            layers = {
                stack: tuple(sorted(random.sample(range(depth), self.target[stack])))
                for stack, depth in self.depths.items()
            }
            if key_of(layers) in without:
                possible += 1
            elif self.is_possible(layers):
                possible += 1
                drawn[key_of(layers)] = layers
        missing = count - len(drawn)
        if missing and self.count() <= MAX_SETS:  # of a model that can hardly be cut
            others = [kept for kept in self.every_set() if key_of(kept) not in drawn and key_of(kept) not in without]
            drawn |= {key_of(kept): kept for kept in random.sample(others, min(missing, len(others)))}
        return Draws(list(drawn.values()), possible / tries)

    def spread(self) -> Layers:
        """Return the evenly spread set, whether it is possible or not."""
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

    def _possible(self, kept: Iterable[Layers]) -> Iterator[Layers]:
        return (layers for layers in kept if self.is_possible(layers))


def no_set_of(model: object, reason: str) -> str:
    """Say that no set of a depth can be cut out of a model, and why the last one that was tried cannot."""
    return f"No set of so many layers that was tried can be cut out of this {type(model).__name__}. {reason}"


def _heaviest_layers(weights: Sequence[float], count: int) -> tuple[int, ...]:
    order = sorted(range(len(weights)), key=lambda layer: -weights[layer])
    return tuple(sorted(order[:count]))


def _weight_of(kept: Layers, weights: Weights) -> float:
    return sum(weights[stack][layer] for stack, layers in kept.items() for layer in layers)


def whole(depths: Mapping[str, int]) -> Layers:
    """Return the sub-network that is the whole model."""
    return {stack: tuple(range(depth)) for stack, depth in depths.items()}


def key_of(kept: Layers) -> Key:
    """Return what tells sub-networks of one model apart, and orders them."""
    return tuple(tuple(layers) for layers in kept.values())


def distinct(kept: list[Layers]) -> list[Layers]:
    """Name each sub-network once."""
    return list({key_of(layers): layers for layers in kept}.values())


Depth: TypeAlias = SupportsIndex | str | Mapping[str, SupportsIndex | str]
"""A number of layers to keep, or one by stack."""


def parse_depth(depth: Depth, depths: Mapping[str, int]) -> dict[str, int]:
    """Return how many layers of each stack to keep: ``6``, ``"6"``, ``{"decoder": 3}`` or ``"encoder=6;decoder=3"``.

    Stacks that are not named stay whole; a depth without a name is one of both stacks of an encoder-decoder.

    Raises:
        KeepLayersError: If it cannot be read, names a stack that does not exist, or is not from 1 to its depth.
    """
    if isinstance(depth, str) and "=" in depth:
        parts = (part.partition("=") for part in depth.split(";"))
        depth = {stack.strip(): value for stack, _, value in parts}
    if not isinstance(depth, Mapping):
        if len(depths) > 1 and not is_encoder_decoder(depths):
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
