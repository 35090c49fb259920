"""Share work between sub-networks: those that begin with the same layers run them once a batch.

Each layer is asked to remember its output. Sub-networks are run in the order of a walk over the tree of their
prefixes, so only the outputs on the path to the present one are held, one hidden state a level. A remembered output is
the very tensor that the layer would compute again, so results equal those of each sub-network alone to the bit. A layer
whose hidden states are recorded (a vision part that hands on one of them) is run again: its hooks make the record.

All 63 sub-networks of six layers take 63 layer runs in place of 192; all 924 of 6 out of 12 layers take 1,715 in place
of 5,544. What does not fit into a memory limit is not held, and is computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from hf_layerdrop.injection.class_swap import adopt, release
from hf_layerdrop.injection.recorded_outputs import is_recording
from hf_layerdrop.pruning.prune import Cutter

Kept = Mapping[str, Sequence[int]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """What one run of a sub-network cost: its own time and layer forwards, and the time it would have taken alone."""

    seconds: float
    seconds_alone: float
    layer_forwards: int


@dataclass
class _Step:
    layer: nn.Module
    output: Any
    size: int  # in bytes; 0 if the output is not held
    held: bool
    seconds: float


class PrefixRunner:
    """Run sub-networks of a model on the same inputs, each prefix once; see `shared_prefixes`.

    Attributes:
        memory_limit: How many bytes of outputs may be held; None for as many as there are.
        peak: The most bytes of outputs that were held at once.
    """

    def __init__(self, cutter: Cutter, device: torch.device, memory_limit: int | None = None) -> None:
        self.memory_limit = memory_limit
        self.peak = 0
        self._cutter = cutter
        self._device = device
        self._layers = {name: list(layers) for name, layers in cutter.lists.items()}
        self._path: list[_Step] = []
        self._held_over: dict[Hashable, tuple[Hashable, list[_Step]]] = {}
        self._position = 0
        self._recalled = 0.0
        self._layer_forwards = 0

    @property
    def holds_over(self) -> bool:
        """Whether outputs of other batches are held."""
        return bool(self._held_over)

    def turn_to(self, batch: Hashable, content: Hashable = None) -> None:
        """Drop the outputs of the batch before, and take up what was held over of this one if it is still the same."""
        held_content, steps = self._held_over.pop(batch, (None, []))
        self._path = steps if held_content == content else []

    def hold_over(self, batch: Hashable, content: Hashable, kept: Kept) -> None:
        """Hold the outputs of the prefix that ``kept`` shares, for the next time that this batch is turned to.

        They are held only if the memory limit leaves room for a whole path beside them.
        """
        layers = (layer for name, stack in self._layers.items() for layer in (stack[index] for index in kept[name]))
        shared = 0
        for step, layer in zip(self._path, layers, strict=False):
            if step.layer is not layer:
                break
            shared += 1
        steps = self._path[:shared]
        room = _size_of(self._path) + _size_of(steps) + self._size_held_over()
        if steps and (self.memory_limit is None or room <= self.memory_limit):
            self._held_over[batch] = (content, steps)
        self._path = []

    def run(self, kept: Kept, forward: Callable[[], Result]) -> tuple[Result, Run]:
        """Call ``forward`` with the model cut to ``kept``, and return its result and what it cost."""
        self._position, self._recalled, self._layer_forwards = 0, 0.0, 0
        with self._cutter.sub_network(kept):
            start = self._now()
            result = forward()
            seconds = self._now() - start
        return result, Run(seconds, seconds + self._recalled, self._layer_forwards)

    def layer_output(self, layer: nn.Module, compute: Callable[[], Any]) -> Any:
        """Return the remembered output of the layer that is called if the path so far is the same, else compute it."""
        position, self._position = self._position, self._position + 1
        known = position < len(self._path) and self._path[position].layer is layer
        if known and self._path[position].held and not is_recording():
            self._recalled += self._path[position].seconds
            return self._path[position].output
        if not known:
            del self._path[position:]
        start = self._now()
        output = compute()
        self._path[position : position + 1] = [self._step(layer, output, self._now() - start)]
        self._layer_forwards += 1
        return output

    def _step(self, layer: nn.Module, output: Any, seconds: float) -> _Step:
        size = size_in_bytes(output)
        total = size + _size_of(self._path) + self._size_held_over()
        if self.memory_limit is not None and total > self.memory_limit:
            return _Step(layer, None, 0, held=False, seconds=seconds)
        self.peak = max(self.peak, total)
        return _Step(layer, output, size, held=True, seconds=seconds)

    def _size_held_over(self) -> int:
        return sum(_size_of(steps) for _, steps in self._held_over.values())

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def shared_prefixes(cutter: Cutter, device: torch.device, memory_limit: int | None = None) -> Iterator[PrefixRunner]:
    """Make the layers of a model remember their outputs, up to a number of bytes, inside the ``with`` block."""
    runner = PrefixRunner(cutter, device, memory_limit)
    layers = [layer for layers in cutter.lists.values() for layer in layers]
    for layer in layers:
        adopt(layer, _RememberingLayer)
        layer.__dict__["_prefix_runner"] = runner
    try:
        yield runner
    finally:
        for layer in layers:
            release(layer, _RememberingLayer)
            del layer._prefix_runner


def in_walking_order(kept: Sequence[Kept]) -> list[int]:
    """Return the positions of sub-networks in the order in which they share most: a walk over their tree."""
    return sorted(range(len(kept)), key=lambda place: [tuple(layers) for layers in kept[place].values()])


class _RememberingLayer:
    """Mixin of a layer: look for the output before computing it."""

    _prefix_runner: PrefixRunner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compute = super().__call__  # type: ignore[misc]
        return self._prefix_runner.layer_output(self, lambda: compute(*args, **kwargs))  # type: ignore[arg-type]


def _size_of(steps: Iterable[_Step]) -> int:
    return sum(step.size for step in steps)


def size_in_bytes(output: Any) -> int:
    """Add up the tensors of an output, which is one in most layers and a tuple in some older ones."""
    if torch.is_tensor(output):
        return output.numel() * output.element_size()
    if isinstance(output, Mapping | list | tuple):
        return sum(size_in_bytes(part) for part in (output.values() if isinstance(output, Mapping) else output))
    return 0
