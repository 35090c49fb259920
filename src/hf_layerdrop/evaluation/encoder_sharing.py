"""Run the encoder of an encoder-decoder once for every input, however many decoders are tried on it.

Where candidates run one by one (generation, a user's own evaluation), prefixes of layers cannot be shared, but what the
encoder gives can: it depends on its inputs and its layers alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_layerdrop.evaluation.batches import size_in_bytes
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.unchanged import Held
from hf_layerdrop.injection.class_swap import adopt, release
from hf_layerdrop.pruning.prune import Cutter


class EncoderMemory:
    """What an encoder gave for each input, up to a number of bytes; later inputs are computed again each time."""

    def __init__(self, layers: nn.ModuleList, memory_limit: int | None) -> None:
        self._layers = layers
        self._memory_limit = memory_limit
        self._size = 0
        self._of: tuple[int, ...] = ()
        self._outputs: dict[str, Held] = {}

    def forget(self) -> None:
        """Drop all outputs."""
        self._outputs.clear()
        self._size = 0

    def output(self, compute: Callable[[], Any], *inputs: Any) -> Any:
        """Return what the encoder gave for these inputs with the layers that it has now, or compute it."""
        present = tuple(id(layer) for layer in self._layers)
        if present != self._of:
            self.forget()
            self._of = present
        key = fingerprint(*inputs)
        held = self._outputs.get(key)
        if held is None or not held.is_intact:
            output = compute()
            size = 0 if held is not None else size_in_bytes(output)
            if self._memory_limit is not None and self._size + size > self._memory_limit:
                return output
            self._size += size
            self._outputs[key] = held = Held(output)
        return copy.copy(held.value)  # generation expands the fields of what it gets, in place


def encoder_memory(cutter: Cutter, memory_limit: int | None = None) -> EncoderMemory | None:
    """Return an empty memory for the encoder of an encoder-decoder; None for other models."""
    if not {"encoder", "decoder"} <= set(cutter.stacks):
        return None
    return EncoderMemory(cutter.lists["encoder"], memory_limit)


@contextmanager
def shared_encoder(cutter: Cutter, model: nn.Module, memory: EncoderMemory | None) -> Iterator[None]:
    """Make the encoder of a model look into a memory first inside the ``with`` block; without one, change nothing."""
    if memory is None:
        yield
        return
    encoder = cutter.stacks["encoder"].owner(model)
    adopt(encoder, _RememberingEncoder)
    encoder.__dict__["_encoder_memory"] = memory
    try:
        yield
    finally:
        release(encoder, _RememberingEncoder)
        del encoder._encoder_memory


class _RememberingEncoder:
    """Mixin of an encoder: look for the output before computing it, unless it trains or gradients are wanted."""

    _encoder_memory: EncoderMemory

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compute = super().__call__  # type: ignore[misc]
        if torch.is_grad_enabled() or self.training or kwargs.get("return_dict") is False:  # type: ignore[attr-defined]
            return compute(*args, **kwargs)
        return self._encoder_memory.output(lambda: compute(*args, **kwargs), args, kwargs)
