"""Random streams, held at one moment and put back: a measurement draws what it draws, and nobody notices."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch

Generator = torch.Generator | np.random.Generator | random.Random

# Where a data loader keeps what draws for it.
_PARTS = ("sampler", "batch_sampler", "base_dataloader", "dataset", "collate_fn")


class RandomStreams:
    """What Python, numpy, torch and its accelerators would draw next, and what a loader's own generators would."""

    def __init__(self, loader: Any = None) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._accelerators = _of_accelerators()
        self.own = [_state_of(generator) for generator in generators_of(loader)]

    def restore(self, loader: Any = None) -> None:
        """Go back to that moment; the generators of a loader that was built anew are those of the same places."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._accelerators is not None:
            torch.get_device_module().set_rng_state_all(self._accelerators)
        self.restore_own(loader)

    def with_own_of(self, loader: Any) -> RandomStreams:
        """Return these streams together with those of a loader, as they are now."""
        both = copy(self)
        both.own = RandomStreams(loader).own
        return both

    def restore_own(self, loader: Any) -> None:
        """Go back with the generators of a loader alone."""
        for generator, state in zip(generators_of(loader), self.own, strict=False):
            _set_state(generator, state)


@contextmanager
def unmoved_streams() -> Iterator[None]:
    """Put every random stream back at the end of the ``with`` block."""
    before = RandomStreams()
    try:
        yield
    finally:
        before.restore()


def seeded_streams(seed: int) -> RandomStreams:
    """Return streams that begin with a seed, the same in every process; those in use are not moved."""
    with unmoved_streams():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return RandomStreams()


def generators_of(loader: Any) -> list[Generator]:
    """Find the generators that a data loader, its samplers, its data and its collator hold of their own."""
    found: dict[int, Generator] = {}
    waiting, seen = [loader], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        found.update({id(value): value for value in vars(part).values() if isinstance(value, Generator)})
        waiting += [vars(part)[name] for name in _PARTS if name in vars(part)]
    return list(found.values())


def _of_accelerators() -> Sequence[torch.Tensor] | None:
    module = torch.get_device_module()
    if not hasattr(module, "get_rng_state_all") or not module.is_initialized():
        return None
    return module.get_rng_state_all()


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
