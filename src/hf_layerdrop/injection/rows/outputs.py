"""Put what a layer gave for some rows back between the others, which hand their input on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_layerdrop.injection.passthrough import names_handed_on
from hf_layerdrop.injection.recorded_outputs import collected_outputs, forward_hooks, recorded_key
from hf_layerdrop.injection.rows.arguments import Call
from hf_layerdrop.injection.rows.refusal import cannot


class Part:
    """A layer that runs on some rows: what it is called with, and what is made of its output."""

    def __init__(self, layer: nn.Module, whole: Call, cut: Call, kept: torch.Tensor, handed_on: Sequence[str]) -> None:
        self._layer, self._whole, self._cut, self._kept, self._handed_on = layer, whole, cut, kept, handed_on
        self._recorded = {key: len(entries) for key, entries in _records().items()}

    @property
    def args(self) -> tuple[Any, ...]:
        """What is given by position."""
        return self._cut.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """What is given by name."""
        return self._cut.kwargs

    def put_back(self, output: Any) -> Any:
        """Return the output for all rows, in the form that the layer gave it.

        Raises:
            UnsupportedModelError: If the output, or what was recorded, holds more than can be put together.
        """
        if any(len(copy) != length for copy, length in self._cut.copied):
            raise cannot(self._layer, "it writes into a list or a dict that it is given, for other layers to read")
        computed = output[0] if isinstance(output, tuple) else output
        before, shown = self._whole.values[self._whole.states], self._cut.values[self._cut.states]
        if not isinstance(computed, torch.Tensor) or computed.shape != shown.shape:
            raise cannot(self._layer, "it gives hidden states of another shape than it takes")
        before = before.to(computed.device, computed.dtype)
        after = before.index_copy(0, self._kept.to(computed.device), computed)
        self._correct_record(before, after)
        return (after, *self._beside(output[1:])) if isinstance(output, tuple) else after

    def _beside(self, entries: Sequence[Any]) -> list[Any]:
        """Return what stands for the other entries of an output: arguments as they were given, and else None."""
        names = names_handed_on(self._layer, self._handed_on) or ()
        return [self._entry(entry, names[place] if place < len(names) else "") for place, entry in enumerate(entries)]

    def _entry(self, entry: Any, name: str) -> Any:
        if entry is None:
            return None
        given, shown = self._whole.values.get(name), self._cut.values.get(name)
        if entry is shown or name in self._handed_on:  # a bias that each block can compute for its own rows
            return given
        if isinstance(entry, torch.Tensor) and entry.dim() == 4 and len(entry) == len(self._kept):
            return None  # the weights of an attention
        raise cannot(self._layer, f"it gives {name or 'more'} beside its hidden states, of these rows alone")

    def _correct_record(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Let recorded hidden states be those of all rows, and attentions None, as of a layer that is dropped."""
        own = {recorded_key(hook) for hook in forward_hooks(self._layer).values()}
        for key, entries in _records().items():
            new = range(self._recorded.get(key, 0), len(entries))
            if key == "hidden_states" and key in own:
                for place, states in zip(reversed(new), (after, before), strict=False):
                    entries[place] = states if entries[place] is not None else None
            elif "attentions" in key:
                for place in new:
                    entries[place] = None
            elif new:
                raise cannot(self._layer, f"{key} are recorded, which a loss may take of all rows")


def _records() -> Mapping[str, list[Any]]:
    return {key: entries for key, entries in (collected_outputs() or {}).items() if isinstance(entries, list)}
