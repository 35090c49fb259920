"""Draw which layers run: pure functions of the rates and a counter, without the state of any random generator.

The counter is (seed, step, micro-step, forward, stack). Every process that knows it draws the same mask, a resumed run
draws what the uninterrupted one would have drawn, and no global random generator is read or advanced. The numbers come
from SHAKE-128, which is the same on every platform and takes about two microseconds for 24 layers.

A mask holds one boolean a layer, True where the layer runs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import shake_128
from math import ceil
from operator import ge

Mask = tuple[bool, ...]

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
    """Choose one of the masks, each as likely as any other; the depth sampler hands in one mask a depth."""
    return masks[int(number * len(masks))]


def shallowest_depth(rate: float, depth: int) -> int:
    """Return the smallest depth that the depth sampler draws, such that it drops a share ``rate`` on average.

    A depth uniform in m..N is (m + N) / 2 on average, and N (1 - rate) for m = N (1 - 2 rate).
    """
    return min(max(round(depth * (1 - 2 * rate)), 1), depth)
