"""Find the linear layer by which a block adds to the residual stream last, whatever the model calls it.

No name is known: a linear layer that ran on all positions is nudged, and what the block gives has to move by the same,
neither more nor less. In a pre-norm block (Llama, GPT-2, ViT) that is seen in its output, in a post-norm one (BERT,
BART) in what goes into its last LayerNorm. Where the output is scaled or normalized on its way into the sum (Gemma 2,
OLMo 2, Granite, layer scale), or several experts give it (Mixtral), nothing passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Linear: TypeAlias = "nn.Linear | Conv1D"
Call = tuple[tuple[Any, ...], dict[str, Any]]

_CLOSE = 0.02  # of the nudge, that bfloat16 may lose of it


@dataclass(frozen=True)
class Projection:
    """The last thing that a block adds.

    Attributes:
        linear: The output projection of its feed-forward part.
        norm: The LayerNorm of the sum, in a post-norm block; None in a pre-norm one.
    """

    linear: Linear
    norm: nn.LayerNorm | None


@dataclass
class _Trace:
    """What a block gave, and which of its parts gave what."""

    output: torch.Tensor
    linears: dict[Linear, torch.Tensor]
    norms: dict[nn.LayerNorm, tuple[torch.Tensor, torch.Tensor]]  # what went in, what came out


def find_projection(layer: nn.Module, call: Call) -> Projection | None:
    """Return the projection of a block; None if there is none that adds to the stream as it is.

    Args:
        layer: The block, in eval mode.
        call: The arguments that it was called with; it runs on them again, a few times.
    """
    with torch.no_grad():
        before = _trace(layer, call)
        norm = next((norm for norm, (_, out) in before.norms.items() if torch.equal(out, before.output)), None)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(before.output.shape, generator=generator).to(before.output)
        nudge = noise * before.output.std()
        for linear in reversed(before.linears):  # the last to run is the likeliest
            with _nudged(linear, nudge.reshape(before.linears[linear].shape)):
                after = _trace(layer, call)
            if norm is not None and _moved_by(nudge, before.norms[norm][0], after.norms[norm][0]):
                return Projection(linear, norm)
            if norm is None and _moved_by(nudge, before.output, after.output):
                return Projection(linear, None)
    return None


def first_tensor(output: Any) -> torch.Tensor:
    """Return the hidden states of what a block returns, which may have more beside them."""
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def recorded_calls(layers: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Call]]:
    """Record with which arguments modules are called inside the block, by their keys."""
    calls: dict[Any, Call] = {}

    def recorder(key: Any) -> Any:
        return lambda module, args, kwargs: calls.update({key: (args, kwargs)})

    hooks = [layer.register_forward_pre_hook(recorder(key), with_kwargs=True) for key, layer in layers.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _trace(layer: nn.Module, call: Call) -> _Trace:
    linears: dict[Linear, torch.Tensor] = {}
    norms: dict[nn.LayerNorm, tuple[torch.Tensor, torch.Tensor]] = {}
    twice: set[Linear] = set()

    def note(module: Linear | nn.LayerNorm, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.LayerNorm):
            norms[module] = (args[0], output)
        elif module in linears:
            twice.add(module)
        else:
            linears[module] = output

    kinds = (nn.Linear, Conv1D, nn.LayerNorm)
    hooks = [part.register_forward_hook(note) for part in layer.modules() if isinstance(part, kinds)]
    try:
        output = first_tensor(layer(*call[0], **call[1]))
    finally:
        for hook in hooks:
            hook.remove()
    fitting = {one: out for one, out in linears.items() if one not in twice and _fits(one, out, output)}
    return _Trace(output, fitting, norms)


def _fits(linear: Any, output: Any, states: torch.Tensor) -> bool:
    """Tell a linear layer that gives hidden states at all positions, and whose weight is a matrix of numbers.

    Batch and positions may be one dimension there, as in OPT.
    """
    weight = linear.weight
    plain = weight.dim() == 2 and weight.is_floating_point()  # quantized weights are packed
    given = torch.is_tensor(output) and output.numel() == states.numel() and output.shape[-1] == states.shape[-1]
    return plain and given


@contextmanager
def _nudged(linear: nn.Module, nudge: torch.Tensor) -> Iterator[None]:
    hook = linear.register_forward_hook(lambda module, args, output: output + nudge)
    try:
        yield
    finally:
        hook.remove()


def _moved_by(nudge: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> bool:
    lost = (after.float() - before.float() - nudge.float()).abs().mean()
    return bool(lost <= _CLOSE * nudge.float().abs().mean())
