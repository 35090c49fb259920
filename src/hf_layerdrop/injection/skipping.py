"""Run a layer or hand its input on: what ``execution="skip"`` puts in front of the classes of layers and their owner.

The module that loops over a stack draws one mask when its forward begins; each layer looks at its place in that mask
before anything of its own runs, hooks included. `masking.py` is the other way to drop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from hf_layerdrop import compat
from hf_layerdrop.injection.compiling import (
    direct,
    in_compiled_region,
    outside_of_graphs,
    refuse_recording,
    untraced,
    warn_of_whole_model,
)
from hf_layerdrop.injection.passthrough import handed_on, hidden_states_of_call
from hf_layerdrop.injection.ranks.ddp import refuse_replica, with_zero_gradients
from hf_layerdrop.injection.ranks.zero3 import clear_stale_gradients
from hf_layerdrop.injection.recorded_outputs import correct_record, record_dropped
from hf_layerdrop.injection.stack_draw import StackDraw, masks_of, shown_with

_COMPILED_CALL = compat.COMPILED_CALL.name


class SkippingStackOwner:
    """Mixin of the module that loops over a stack, or over several: one draw for each of its forwards."""

    _layerdrop_draws: list[StackDraw]
    training: bool

    def extra_repr(self) -> str:
        """Say what is dropped here."""
        return shown_with(super().extra_repr(), self._layerdrop_draws)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw, and run the stack; in a compiled region outside of its graphs."""
        if not (is_compiling() or in_compiled_region()):
            return self._draw_and_run(*args, **kwargs)
        if is_compiling():
            if not self._may_draw():
                return super().__call__(*args, **kwargs)  # type: ignore[misc]
            refuse_recording(self.training)
        return self._draw_outside_and_run(*args, **kwargs)

    def _may_draw(self) -> bool:
        return any(draw.may_drop(self.training) for draw in self._layerdrop_draws)

    def _draw_and_run(self, *args: Any, **kwargs: Any) -> Any:
        draws = self._layerdrop_draws
        call = untraced if in_compiled_region() else direct
        call(refuse_replica, self)
        if (call is untraced or getattr(self, _COMPILED_CALL) is not None) and call(self._may_draw):
            untraced(warn_of_whole_model)
        outer = call(masks_of, draws)
        try:
            for draw in draws:
                call(draw.begin, self, (*args, *kwargs.values()))
            output = super().__call__(*args, **kwargs)  # type: ignore[misc]
            for draw in draws:
                call(draw.check_heeded)
            return output
        finally:
            for draw, before in zip(draws, outer, strict=True):
                draw.go_on(*before)

    _draw_outside_and_run = outside_of_graphs(_draw_and_run)


class SkippableLayer:
    """Mixin of a layer: run, or hand the input on."""

    _layerdrop_place: tuple[StackDraw, int]
    _layerdrop_handed_on: tuple[str, ...] = ()  # arguments that it returns, where reading it cannot tell
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, or hand its input on."""
        if not is_compiling():
            draw, index = self._layerdrop_place
            if draw.known[index]:
                draw.heeded = True
                return super().__call__(*args, **kwargs)  # type: ignore[misc]
            if not in_compiled_region():
                return self._run_or_drop(*args, **kwargs)
        elif not self._layerdrop_place[0].may_drop(self.training):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        return self._run_or_drop_outside(*args, **kwargs)

    def _run_or_drop(self, *args: Any, **kwargs: Any) -> Any:
        draw, index = self._layerdrop_place
        call = untraced if in_compiled_region() else direct
        if call(draw.runs, index, self.training):
            output = super().__call__(*args, **kwargs)  # type: ignore[misc]
            if draw.learner is not None:
                call(self._note_activation, args, kwargs, output)
            return call(self._scaled, args, kwargs, output) if draw.scales else output
        return call(self._drop, args, kwargs)

    _run_or_drop_outside = outside_of_graphs(_run_or_drop)

    def _scaled(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Divide what the layer adds to its input by the chance that it runs (arXiv 2609.05275)."""
        draw, index = self._layerdrop_place
        if (factor := draw.factor_of(index)) == 1:
            return output
        after = _hidden_states_of(output)
        before = hidden_states_of_call(self, args, kwargs)  # type: ignore[arg-type]
        scaled = torch.lerp(before.to(after), after, factor)
        correct_record([(after, scaled)])
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    def _note_activation(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        draw, index = self._layerdrop_place
        before = hidden_states_of_call(self, args, kwargs)  # type: ignore[arg-type]
        draw.note_activation(index, before, _hidden_states_of(output))

    def _drop(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        layer: nn.Module = self  # type: ignore[assignment]
        clear_stale_gradients(layer)
        output = handed_on(layer, args, kwargs, self._layerdrop_handed_on)
        record_dropped(layer, _hidden_states_of(output), args, kwargs)
        if isinstance(output, tuple):
            return (with_zero_gradients(output[0], *self._layerdrop_place, layer), *output[1:])
        return with_zero_gradients(output, *self._layerdrop_place, layer)


def _hidden_states_of(output: Any) -> torch.Tensor:
    """Return what a layer hands on: its output, or the first part of it in older models."""
    return output[0] if isinstance(output, tuple) else output
