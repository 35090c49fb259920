"""Drop sub-layers and heads: what the parts of a layer do when the mask says that they are dropped (3.2.1).

As with whole layers, the classes of the modules are changed (see `class_swap.py`), and each looks at its place in the
mask before anything of its own runs.

A dropped sub-layer computes as if the last projection of its branch were zero: the residual passes, and a norm that
follows it is still applied. A dropped head computes as if its slice of the output projection were zero, so that its
slices of queries, keys and values get gradients of zero. Whole sub-layers save time, heads do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from hf_layerdrop.architectures.structures import (
    ATTEND,
    FINDERS,
    PASS,
    RESIDUAL,
    ZERO,
    Heads,
    SubLayer,
    attention_values,
    is_norm,
)
from hf_layerdrop.injection.class_swap import adopt, release
from hf_layerdrop.injection.compiling import (
    direct,
    in_compiled_region,
    outside_of_graphs,
    refuse_recording,
    untraced,
    warn_of_whole_model,
)
from hf_layerdrop.injection.ranks.ddp import refuse_replica, with_zero_gradients
from hf_layerdrop.injection.recorded_outputs import record_no_attentions
from hf_layerdrop.injection.stack_draw import StackDraw, masks_of, shown_with


class StructureDrop:
    """The parts of a stack's layers that are dropped beside or in place of whole layers.

    Attributes:
        groups: How many there are in each layer, by structure.

    Raises:
        UnsupportedModelError: If they are not found in a layer.
    """

    def __init__(self, layers: nn.ModuleList, structures: Sequence[str]) -> None:
        self._layers = layers
        self._found = {name: [FINDERS[name](layer) for layer in layers] for name in structures if name in FINDERS}
        self.groups = {name: [sum(map(_count, parts)) for parts in found] for name, found in self._found.items()}
        self._draws: dict[str, StackDraw] = {}

    def adopt_owner(self, owner: nn.Module, draws: Sequence[StackDraw]) -> None:
        """Let the module that loops over the layers draw for their parts, after it has drawn for the layers."""
        self._draws = {draw.structure: draw for draw in draws if draw.structure in self._found}
        if self._draws:
            others = owner.__dict__.get("_layerdrop_parts", ())  # of another stack of the same owner
            if not others:
                adopt(owner, _PartsOwner)
            owner.__dict__["_layerdrop_parts"] = (*others, *self._draws.values())  # no weight, so past nn.Module

    def adopt_parts(self) -> None:
        """Let the parts be dropped; after the layers, since DDP is told of them before a layer is dropped."""
        for name, found in self._found.items():
            first = 0
            for layer, parts in zip(self._layers, found, strict=True):
                for part in parts:
                    _adopt_part(layer, part, self._draws[name], first)
                    first += _count(part)


def release_owner(owner: nn.Module) -> None:
    """Undo `StructureDrop.adopt_owner`."""
    if "_layerdrop_parts" in owner.__dict__:
        release(owner, _PartsOwner)
        del owner._layerdrop_parts


def release_parts(layers: nn.ModuleList) -> None:
    """Undo `StructureDrop.adopt_parts`."""
    for layer in layers:
        if "_layerdrop_sub_layers" in layer.__dict__:
            release(layer, _PartedLayer)
            del layer._layerdrop_sub_layers
        for part in layer.modules():
            if "_layerdrop_part" in part.__dict__:
                release(part, part.__dict__["_layerdrop_part"][-1])
                del part._layerdrop_part


def _count(part: SubLayer | Heads) -> int:
    return part.count if isinstance(part, Heads) else 1


def _adopt_part(layer: nn.Module, part: SubLayer | Heads, draw: StackDraw, first: int) -> None:
    if isinstance(part, Heads):
        _adopt(part.projection, _JoinedHeads, draw, first, part.count)
        return
    if "_layerdrop_sub_layers" not in layer.__dict__:
        adopt(layer, _PartedLayer)
        layer.__dict__["_layerdrop_sub_layers"] = []
    layer.__dict__["_layerdrop_sub_layers"].append((draw, first, part.weights))
    for module, instead in part.parts:
        _adopt(module, _MIXINS[instead], draw, first)


def _adopt(module: nn.Module, mixin: type, *place: Any) -> None:
    adopt(module, mixin)
    module.__dict__["_layerdrop_part"] = (*place, mixin)


class _PartsOwner:
    """Mixin of the module that loops over a stack: one draw for each structure and forward."""

    _layerdrop_parts: tuple[StackDraw, ...]
    training: bool

    def extra_repr(self) -> str:
        """Say what is dropped here."""
        return shown_with(super().extra_repr(), self._layerdrop_parts)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (is_compiling() or in_compiled_region()):
            return self._draw_parts_and_run(*args, **kwargs)
        if is_compiling():
            if not any(draw.may_drop(self.training) for draw in self._layerdrop_parts):
                return super().__call__(*args, **kwargs)  # type: ignore[misc]
            refuse_recording(self.training)
        return self._draw_parts_outside_and_run(*args, **kwargs)

    def _draw_parts_and_run(self, *args: Any, **kwargs: Any) -> Any:
        draws = self._layerdrop_parts
        call = untraced if in_compiled_region() else direct
        call(refuse_replica, self)
        if call is untraced:
            untraced(warn_of_whole_model)
        outer = call(masks_of, draws)
        try:
            for draw in draws:
                call(draw.begin, self, (*args, *kwargs.values()))
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            for draw, before in zip(draws, outer, strict=True):
                draw.go_on(*before)

    _draw_parts_outside_and_run = outside_of_graphs(_draw_parts_and_run)


class _PartedLayer:
    """Mixin of a layer whose sub-layers can be dropped: DDP gets the gradients that it waits for.

    It stands outside of a checkpoint around the layer's ``forward``, inside of which DDP would not be seen.
    """

    _layerdrop_sub_layers: list[tuple[StackDraw, int, nn.ModuleList]]
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (is_compiling() or in_compiled_region()):
            return self._touch_and_run(*args, **kwargs)
        if is_compiling() and not any(draw.may_drop(self.training) for draw, *_ in self._layerdrop_sub_layers):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return self._touch_outside_and_run(*args, **kwargs)

    def _touch_and_run(self, *args: Any, **kwargs: Any) -> Any:
        call = untraced if in_compiled_region() else direct
        args, kwargs = call(_touched, self._layerdrop_sub_layers, args, kwargs)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    _touch_outside_and_run = outside_of_graphs(_touch_and_run)


def _touched(
    sub_layers: Sequence[tuple[StackDraw, int, nn.ModuleList]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a layer is called with; where DDP waits for gradients of its dropped parts, they become zero."""
    for draw, index, weights in sub_layers:
        if draw.mask is not None and not draw.mask[index]:
            if args:
                args = (with_zero_gradients(args[0], draw, index, weights), *args[1:])
            else:
                touched = with_zero_gradients(kwargs["hidden_states"], draw, index, weights)
                kwargs = {**kwargs, "hidden_states": touched}
    return args, kwargs


class _Part:
    """Mixin of a part of a sub-layer: run, or do what `structures` says in place of it."""

    _layerdrop_part: tuple[Any, ...]
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (is_compiling() or in_compiled_region()):
            return self._run_or_replace(*args, **kwargs)
        if is_compiling() and not self._layerdrop_part[0].may_drop(self.training):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return self._run_or_replace_outside(*args, **kwargs)

    def _run_or_replace(self, *args: Any, **kwargs: Any) -> Any:
        call = untraced if in_compiled_region() else direct
        if call(_runs, *self._layerdrop_part[:2], self.training):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return call(self._dropped, *args, **kwargs)

    _run_or_replace_outside = outside_of_graphs(_run_or_replace)

    def _dropped(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def _runs(draw: StackDraw, index: int, training: bool) -> bool:
    mask = draw.in_force()
    if mask is None and training:
        draw.warn_if_passed_by()
    return mask is None or mask[index]


class _Zero(_Part):
    def _dropped(self, *args: Any, **kwargs: Any) -> Any:
        return torch.zeros_like(_inputs(args, kwargs)[0])


class _Pass(_Part):
    def _dropped(self, *args: Any, **kwargs: Any) -> Any:
        return _inputs(args, kwargs)[0].detach()


class _Attend(_Part):
    """Mixin of an attention: no output, no weights; where those are recorded, they are None."""

    def _dropped(self, *args: Any, **kwargs: Any) -> Any:
        record_no_attentions(self)  # type: ignore[arg-type]
        output = torch.zeros_like(_inputs(args, kwargs)[0])
        others = attention_values(type(self)) - 1
        return (output, *[None] * others) if others else output


class _Residual(_Part):
    """Mixin of a part that adds the residual and applies the norm after it."""

    def _dropped(self, *args: Any, **kwargs: Any) -> Any:
        residual = _inputs(args, kwargs)[1]
        norms = [child for child in self.children() if is_norm(child)]  # type: ignore[attr-defined]
        return norms[0](residual) if norms else residual


def _inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[torch.Tensor]:
    """Return what a part is called with, in order: the hidden states first, then the residual where it adds that."""
    return [*args, *kwargs.values()]


class _JoinedHeads:
    """Mixin of an output projection: the slices of dropped heads in its input are zero."""

    _layerdrop_part: tuple[Any, ...]
    training: bool

    def __call__(self, joined: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (is_compiling() or in_compiled_region()):
            return self._mask_and_run(joined, *args, **kwargs)
        if is_compiling() and not self._layerdrop_part[0].may_drop(self.training):
            return super().__call__(joined, *args, **kwargs)  # type: ignore[misc]
        return self._mask_outside_and_run(joined, *args, **kwargs)

    def _mask_and_run(self, joined: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        call = untraced if in_compiled_region() else direct
        return super().__call__(call(_without_dropped, joined, *self._layerdrop_part[:3]), *args, **kwargs)  # type: ignore[misc]

    _mask_outside_and_run = outside_of_graphs(_mask_and_run)


def _without_dropped(joined: torch.Tensor, draw: StackDraw, first: int, count: int) -> torch.Tensor:
    """Return the joined heads with those zero that the mask drops."""
    mask = draw.in_force()
    kept = mask[first : first + count] if mask is not None else ()
    return joined if all(kept) else _masked(joined, kept)


_MIXINS: Mapping[str, type] = {ATTEND: _Attend, ZERO: _Zero, PASS: _Pass, RESIDUAL: _Residual}


def _masked(joined: torch.Tensor, kept: Sequence[bool]) -> torch.Tensor:
    """Set the slices of dropped heads to zero in a copy, without a mask that a device would have to wait for."""
    heads = joined.unflatten(-1, (len(kept), -1)).clone()
    for stays, run in groupby(range(len(kept)), key=kept.__getitem__):
        if not stays:
            dropped = list(run)
            heads.narrow(-2, dropped[0], len(dropped)).zero_()
    return heads.flatten(-2)
