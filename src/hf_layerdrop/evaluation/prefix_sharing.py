"""Share work between sub-networks: those that begin with the same layers run them once a batch.

Each layer is asked to remember its output, and what it was given. Sub-networks are run in the order of a walk over the
tree of their prefixes, so only the outputs on the path to the present one are held, one hidden state a level. An output
is handed out again only where that is proven to be what the layer would compute: it is given the same to the bit, and
nobody has written into the output, or into what it was made of. On a device, which each proof would wait for, one proof
for all comes after the last batch, and if it fails all is run again without sharing. So results equal those of each
sub-network alone to the bit, and a model that writes into a hidden state (``hidden_states += ...``) pays with a layer
forward. A layer with hooks, or whose hidden states are recorded (a vision part that hands on one of them), is run
again: its hooks may do anything.

All 63 sub-networks of six layers take 63 layer runs in place of 192; all 924 of 6 out of 12 layers take 1,715 in place
of 5,544. What does not fit into a memory limit is not held, and is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from hf_layerdrop import compat
from hf_layerdrop.evaluation.batches import size_in_bytes
from hf_layerdrop.evaluation.stopwatch import OF_THE_HOST, Stopwatch
from hf_layerdrop.evaluation.unchanged import Comparison, Doubts, Held
from hf_layerdrop.injection.class_swap import adopt, release
from hf_layerdrop.injection.recorded_outputs import is_recording, recorded_key
from hf_layerdrop.pruning.prune import Cutter

Kept = Mapping[str, Sequence[int]]
# What a batch is: a digest, or, where it lies on a device for which that would wait, the batch as it is.
Content = str | Held | None
Result = TypeVar("Result")


@dataclass
class Run:
    """What one run of a sub-network cost.

    Attributes:
        own: Its own time.
        recalled: The times of the layers whose outputs were remembered.
        layer_forwards: Layers that ran.
    """

    own: Stopwatch
    recalled: list[Stopwatch]
    layer_forwards: int
    _alone: float | None = None

    def settle(self) -> None:
        """Read the times, which waits for the device if it is not done, and let its marks go."""
        self._alone = self.seconds_alone
        self.recalled.clear()

    @property
    def seconds_alone(self) -> float:
        """The time it would have taken alone."""
        if self._alone is not None:
            return self._alone
        return self.own.seconds + sum(watch.seconds for watch in self.recalled)


@dataclass
class _Step:
    layer: nn.Module
    given: Held | None  # None if the output is not held
    output: Held | None
    size: int  # in bytes; 0 if the output is not held
    watch: Stopwatch


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
        self._held_over: dict[Hashable, tuple[Content, list[_Step]]] = {}
        self._position = 0
        self._recalled: list[Stopwatch] = []
        self._layer_forwards = 0
        self._doubts = Doubts()
        self._comparison = Comparison(self._doubts)
        self._is_running = False

    @property
    def holds_over(self) -> bool:
        """Whether outputs of other batches are held."""
        return bool(self._held_over)

    def shared_wrongly(self) -> bool:
        """Wait, and tell whether since it was last asked a layer's output was shared that another input would give.

        Then nothing is shared from here on, and what was run is to be run again.
        """
        if wrong := self._doubts.were_right():
            self._path, self._held_over, self.memory_limit = [], {}, 0
        return wrong

    def turn_to(self, batch: Hashable, content: Content = None) -> None:
        """Drop the outputs of the batch before, and take up what was held over of this one if it is still the same."""
        held_content, steps = self._held_over.pop(batch, (None, []))
        self._path = steps if self._is_same(content, held_content) else []

    def _is_same(self, content: Content, held: Content) -> bool:
        if isinstance(content, Held) and isinstance(held, Held):
            return held.is_intact and Comparison(self._doubts).same(content.value, held.value)
        return content == held

    def hold_over(self, batch: Hashable, content: Content, kept: Kept) -> None:
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
        room = _size_of(self._path) + _size_of(steps) + _size_of_content(content) + self._size_held_over()
        if steps and (self.memory_limit is None or room <= self.memory_limit):
            self._held_over[batch] = (content, steps)
        self._path = []

    def run(self, kept: Kept, forward: Callable[[], Result]) -> tuple[Result, Run]:
        """Call ``forward`` with the model cut to ``kept``, and return its result and what it cost."""
        self._position, self._recalled, self._layer_forwards = 0, [], 0
        self._comparison = Comparison(self._doubts)
        with self._cutter.sub_network(kept), self._running():
            watch = Stopwatch(self._device)
            result = forward()
            watch.stop()
        return result, Run(watch, self._recalled, self._layer_forwards)

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            self._is_running = True
            yield
        finally:
            self._is_running = False

    def layer_output(self, layer: nn.Module, compute: Callable[[], Any], *given: Any) -> Any:
        """Return the remembered output of the layer that is called if it is proven the same, else compute it."""
        if not self._is_running:
            return compute()
        position, self._position = self._position, self._position + 1
        step = self._path[position] if position < len(self._path) and self._path[position].layer is layer else None
        if step is None:
            del self._path[position:]
        elif (output := self._recalled_output(step, given)) is not None:
            self._recalled.append(step.watch)
            return output.value
        held = Held(self._comparison.snapshot(given)) if self.memory_limit != 0 else None
        watch = Stopwatch(self._device_of(layer))
        value = compute()
        self._path[position : position + 1] = [self._step(position, layer, held, value, watch.stop())]
        self._layer_forwards += 1
        return value

    def _device_of(self, layer: nn.Module) -> torch.device:
        """Return where a layer runs, of a model that lies on several devices; offloaded weights do not say it."""
        device = next((weight.device for weight in layer.parameters()), self._device)
        return self._device if device.type in OF_THE_HOST else device

    def _recalled_output(self, step: _Step, given: Any) -> Held | None:
        if step.given is None or step.output is None or is_recording() or _has_hooks(step.layer):
            return None
        intact = step.given.is_intact and step.output.is_intact
        return step.output if intact and self._comparison.same(given, step.given.value) else None

    def _step(self, position: int, layer: nn.Module, given: Held | None, value: Any, watch: Stopwatch) -> _Step:
        size = size_in_bytes(value) + self._size_of_new(position, given)
        total = size + _size_of(self._path) + self._size_held_over()
        if given is None or (self.memory_limit is not None and total > self.memory_limit):
            return _Step(layer, None, None, 0, watch)
        self.peak = max(self.peak, total)
        return _Step(layer, given, Held(value), size, watch)

    def _size_of_new(self, position: int, given: Held | None) -> int:
        """Return the bytes of a hidden state that is not held as the output before it; masks are the same for all."""
        hidden = next(given.tensors, None) if given is not None else None
        before = self._path[position - 1].output if position else None
        if hidden is None or (before is not None and any(hidden is tensor for tensor in before.tensors)):
            return 0
        return size_in_bytes(hidden)

    def _size_held_over(self) -> int:
        return sum(_size_of(steps) + _size_of_content(content) for content, steps in self._held_over.values())


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
        return self._prefix_runner.layer_output(self, lambda: compute(*args, **kwargs), args, kwargs)  # type: ignore[arg-type]


def _size_of(steps: Iterable[_Step]) -> int:
    return sum(step.size for step in steps)


def _size_of_content(content: Content) -> int:
    return size_in_bytes(content.value) if isinstance(content, Held) else 0


def _has_hooks(layer: nn.Module) -> bool:
    """Tell whether a layer has other hooks than those by which transformers records, now and then."""
    hooks = (getattr(layer, kind.name).values() for kind in (compat.FORWARD_HOOKS, compat.FORWARD_PRE_HOOKS))
    return any(not recorded_key(hook) for of_kind in hooks for hook in of_kind)
