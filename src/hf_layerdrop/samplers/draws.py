"""Draw which layers run: pure functions of the rates and a counter, without the state of any random generator.

The counter is (seed, step, micro-step, forward, stack); the stack's name begins with the path of its model where a
module holds several. Every process that knows it draws the same mask, a resumed run
draws what the uninterrupted one would have drawn, and no global random generator is read or advanced. The numbers come
from SHAKE-128, which is the same on every platform and takes about two microseconds for 24 layers.

A mask holds one boolean a layer, True where the layer runs.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import shake_128
from itertools import accumulate
from math import ceil, fsum
from operator import ge

Mask = tuple[bool, ...]

# Which draws the samplers make of a counter, written into checkpoints. 1: the depth sampler drew each depth from a
# minimum on alike, which drops the rate that was asked for to within half a layer. 2: it drops that rate exactly.
# 3: its depth of 1 is the last layer, and was the first.
SAMPLER_VERSION = 3

_WHOLE = 2**32
_to_unit = (1 / _WHOLE).__mul__


def integers(seed: int, step: int, micro_step: int, forward: int, stack: str, count: int) -> tuple[int, ...]:
    """Return ``count`` numbers, uniform in 0 to 2^32 - 1, that depend on the arguments alone."""
    counter = struct.pack("<qqqq", seed, step, micro_step, forward) + stack.encode()
    return struct.unpack(f"<{count}I", shake_128(counter).digest(4 * count))


def uniforms(seed: int, step: int, micro_step: int, forward: int, stack: str, count: int) -> tuple[float, ...]:
    """Return ``count`` numbers, uniform in [0, 1), that depend on the arguments alone."""
    return tuple(map(_to_unit, integers(seed, step, micro_step, forward, stack, count)))


def thresholds(rates: Sequence[float]) -> tuple[int, ...]:
    """Return below which of `integers` a layer is dropped: exactly where the number in [0, 1) is below its rate."""
    return tuple(ceil(rate * _WHOLE) for rate in rates)


def bernoulli(rates: Sequence[float], numbers: Sequence[float]) -> Mask:
    """Drop each layer on its own with its own rate (3.2.1): the paper's sampler.

    Takes `thresholds` and `integers` as well, which is what a training step does: a draw for 96 layers then takes a
    third of the time, also because `map` with a function written in C is faster than a loop of Python's own.
    """
    return tuple(map(ge, numbers, rates))


def one_of(masks: Sequence[Mask], number: float) -> Mask:
    """Choose one of the masks, each as likely as any other: the first version of the depth sampler."""
    return masks[int(number * len(masks))]


def weighted(masks: Sequence[Mask], cumulated: Sequence[float], number: float) -> Mask:
    """Choose one of the masks by their weights, of which the sums up to each are given, the last of them 1."""
    return masks[min(bisect_right(cumulated, number), len(masks) - 1)]


def most_dropped(dropped: Sequence[int]) -> float:
    """Return the largest mean number of dropped layers for which `depth_weights` has an answer."""
    mean = sum(dropped) / len(dropped)
    spread = sum((count - mean) ** 2 for count in dropped)
    return mean + spread / (len(dropped) * (mean - dropped[0])) if spread else mean


def depth_weights(dropped: Sequence[int], target: float) -> list[float]:
    """Return how likely each depth is, such that ``target`` layers are dropped on average.

    Depths from the whole model down to a minimum are alike, as far as the target allows: it may lie between two minima,
    whose distributions are then mixed, or beyond the lowest, whose weights then rise with what is dropped.

    Args:
        dropped: How many layers each depth drops, from the whole model on, none fewer than the one before.
        target: The mean, from 0 to `most_dropped`.
    """
    size = len(dropped)
    means = [total / count for count, total in enumerate(accumulate(dropped), 1)]
    if target >= means[-1]:
        spread = sum((count - means[-1]) ** 2 for count in dropped)
        slope = (target - means[-1]) / spread if spread else 0.0
        return [max(1 / size + slope * (count - means[-1]), 0.0) for count in dropped]
    last = bisect_right(means, target)  # the first minimum whose mean is above the target
    share = (target - means[last - 1]) / (means[last] - means[last - 1])
    return [(1 - share) / last * (place < last) + share / (last + 1) * (place <= last) for place in range(size)]


def shares_dropped(masks: Sequence[Mask], weights: Sequence[float]) -> tuple[float, ...]:
    """Return how often each layer is dropped where one of the masks is drawn, each as often as its weight says."""
    return tuple(
        min(fsum(weight for mask, weight in zip(masks, weights, strict=True) if not mask[layer]), 1.0)
        for layer in range(len(masks[0]))
    )


def shallowest_depth(rate: float, depth: int, version: int = SAMPLER_VERSION) -> int:
    """Return the smallest depth that the depth sampler draws, such that it drops a share ``rate`` on average.

    A depth uniform in m..N is (m + N) / 2 on average, and N (1 - rate) for m = N (1 - 2 rate).
    """
    if version > 1:
        return depth - max(place for place, weight in enumerate(depth_weights(range(depth), rate * depth)) if weight)
    return min(max(round(depth * (1 - 2 * rate)), 1), depth)
