"""Drop layers by a tensor (``execution="mask"``): every layer is computed, and what a dropped one gives is discarded.

A compiled model cannot skip a layer without another graph for each set of layers that run. Here the graph is always the
same: which layers run is a tensor in it. An operator that the compiler does not look into fills that tensor, and draws
in Python each time that the graph runs. So the draws are those of ``execution="skip"``, wherever the compiled region
begins: at the model, at a wrapper around it, or nowhere.

The price is that a dropped layer costs what every layer costs, and that its gradients are zeros instead of None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection import recomputation
from hf_layerdrop.injection.compiling import refuse_recording
from hf_layerdrop.injection.passthrough import name_of_hidden_states
from hf_layerdrop.injection.ranks.ddp import refuse_replica
from hf_layerdrop.injection.recorded_outputs import correct_record
from hf_layerdrop.injection.stack_draw import StackDraw, holds_tokens, shown_with


class Place:
    """A layer's place in the mask: ``keep`` is a tensor of one entry in a forward that may drop layers, else None."""

    def __init__(self, argument: str, draw: StackDraw) -> None:
        self.argument = argument  # the name of the layer's hidden states, where they are given by name
        self.draw = draw
        self.keep: torch.Tensor | None = None


class MaskedStack:
    """Put the draws of a stack into tensors.

    Attributes:
        key: The number by which a graph, which holds no Python objects, finds the draw.
        keep: The mask of the forward that is running, a tensor of one boolean a layer; None where nothing can drop.
            Where what layers add is scaled, it holds the factors, 0 for a layer that is dropped.
    """

    def __init__(self, draw: StackDraw, owner: nn.Module, layers: Iterable[nn.Module]) -> None:
        self.draw = draw
        self.owner = owner
        self.places = [Place(name_of_hidden_states(layer), draw) for layer in layers]
        self.keep: torch.Tensor | None = None
        self._enter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy a number of its own."""
        self.__dict__.update(state)
        self._enter()

    def begin(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Return the mask of the forward that begins with these inputs: a new tensor, since autograd keeps it."""
        refuse_recording(training=True)
        kind = torch.float32 if self.draw.scales else torch.bool
        keep = torch.empty(len(self.places), dtype=kind, device=_device_of(inputs, self.owner))
        has_cache = any(holds_tokens(value) for value in inputs)
        torch.ops.hf_layerdrop.draw(keep, self.key, torch.is_grad_enabled(), has_cache)
        return keep

    def draw_mask(self, has_cache: bool) -> Sequence[float]:
        """Draw for the forward that runs, and count it; return what stands in ``keep``."""
        self.draw.begin(self.owner, [_FilledCache()] if has_cache else [])
        mask, self.draw.mask = self.draw.mask, None
        if mask is None:
            return (True,) * self.draw.depth
        factors = self.draw.factors if self.draw.scales else mask
        return [factor if runs else 0 for factor, runs in zip(factors, mask, strict=True)]

    def use(self, keep: torch.Tensor | None) -> None:
        """Show a mask to the layers, each its own part, so that they share a graph where they are compiled alone."""
        self.keep = keep
        for index, place in enumerate(self.places):
            place.keep = None if keep is None else keep[index]

    def _enter(self) -> None:
        self.key = next(_keys)
        _stacks[self.key] = self


_keys = count()
_stacks: WeakValueDictionary[int, MaskedStack] = WeakValueDictionary()


# The tensor is an argument that is written to, rather than a result, because a compiler may run an operator without
# side effects once where a graph has two forwards. A CUDA graph would never run it again.
@torch.library.custom_op("hf_layerdrop::draw", mutates_args=("keep",), tags=(torch.Tag.cudagraph_unsafe,))
def _draw(keep: torch.Tensor, key: int, with_gradient: bool, has_cache: bool) -> None:
    stack = _stacks.get(key)
    if stack is None:
        raise LayerDropStateError(
            "A compiled graph draws for a model that is gone; compile the model that LayerDrop is injected in again."
        )
    with torch.set_grad_enabled(with_gradient):  # what runs a graph switches gradients off
        mask = stack.draw_mask(has_cache)
    keep.copy_(torch.tensor(mask, dtype=keep.dtype, pin_memory=keep.is_cuda), non_blocking=True)


@_draw.register_fake
def _(keep: torch.Tensor, key: int, with_gradient: bool, has_cache: bool) -> None:
    return None


class MaskedStackOwner:
    """Mixin of the module that loops over a stack: one mask for each of its forwards."""

    _layerdrop_draws: list[MaskedStack]
    training: bool

    def extra_repr(self) -> str:
        """Say what is dropped here."""
        return shown_with(super().extra_repr(), [stack.draw for stack in self._layerdrop_draws])  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw, and run."""
        stacks = self._layerdrop_draws
        refuse_replica(self)  # type: ignore[arg-type]
        compiling = torch.compiler.is_compiling()
        outer = [stack.keep for stack in stacks]
        running = [] if compiling else [stack.draw.running for stack in stacks]
        for stack in stacks:
            stack.use(stack.begin((*args, *kwargs.values())) if self.training and stack.draw.active else None)
            if not compiling:
                stack.draw.running = True
                if not stack.draw.active:
                    stack.draw.begin(self, ())  # type: ignore[arg-type] # nothing to draw, but to count and to compare
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            for stack, keep in zip(stacks, outer, strict=True):
                stack.use(keep)
            for stack, was_running in zip(stacks, running, strict=False):
                stack.draw.running = was_running


class MaskedLayer:
    """Mixin of a layer: run, then hand on the output or the input, as the mask says.

    A dropped layer is computed from zeros, so that no overflow in it can turn its zero gradients into NaN.
    """

    _layerdrop_place: Place
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer, and choose."""
        keep = self._layerdrop_place.keep
        if not torch.compiler.is_compiling():
            keep = _bound_to_checkpoint(self._layerdrop_place, keep)
            if keep is None and self.training:
                self._layerdrop_place.draw.warn_if_passed_by()
        if keep is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        name = None if args else self._layerdrop_place.argument
        states = args[0] if name is None else kwargs[name]
        factor = keep.to(states.device)
        runs = factor != 0
        shown = torch.where(runs, states, torch.zeros_like(states))
        if name is None:
            output = super().__call__(shown, *args[1:], **kwargs)  # type: ignore[misc]
        else:
            output = super().__call__(**{**kwargs, name: shown})  # type: ignore[misc]
        computed = output[0] if isinstance(output, tuple) else output
        added = _scaled(states, computed, factor) if factor.is_floating_point() else computed
        handed_on = torch.where(runs, added, states.to(computed.dtype))
        correct_record(((shown, states), (computed, handed_on)))
        return (handed_on, *output[1:]) if isinstance(output, tuple) else handed_on


def _scaled(before: torch.Tensor, after: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return ``before + (after - before) * factor``, computed in no less than the precision of the factor."""
    kind = torch.promote_types(after.dtype, factor.dtype)
    return torch.lerp(before.to(kind), after.to(kind), factor.to(kind)).to(after.dtype)


class _FilledCache:
    """Stands for the cache that a forward was given, which an operator cannot take as an argument."""

    def get_seq_length(self) -> int:
        return 1


def _device_of(inputs: Sequence[Any], owner: nn.Module) -> torch.device:
    """Return the device that a forward computes on: that of its inputs, since parameters may rest elsewhere."""
    tensor = next((value for value in inputs if isinstance(value, torch.Tensor)), None)
    return tensor.device if tensor is not None else next(owner.parameters()).device


def _bound_to_checkpoint(place: Place, keep: torch.Tensor | None) -> torch.Tensor | None:
    """Return what the layer was told when a checkpoint around it alone ran for the first time, if this is the second.

    In a compiled graph, a checkpoint keeps its inputs itself.
    """
    if recomputation.in_backward():
        return keep if keep is not None else _kept_on(recomputation.second_run_record()).get(id(place))
    record = recomputation.first_run_record() if keep is not None else None
    if record is not None:
        record._layerdrop_kept = {**_kept_on(record), id(place): keep}
    return keep


def _kept_on(record: Any) -> dict[int, torch.Tensor]:
    return getattr(record, "_layerdrop_kept", {})
