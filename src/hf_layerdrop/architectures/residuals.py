"""Find out whether layers hand their input on with something added to it, as those of pre-norm models do.

A layer of a pre-norm model gives ``x + f(norm(x))``; what it adds can be scaled: ``x + f(norm(x)) / keep``. One of a
post-norm model gives ``norm(x + f(x))``, where nothing was added that could be told apart. No config says which it is,
so the layers are run on the meta device, and the way from what comes out back to what went in is followed: it has to
lead over sums alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.architectures.moved_layers import Call, calls_of, streams_untouched
from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.errors import LayerDropConfigError

# What a step of a computation is called that hands on one of its inputs as it is, or adds to it.
_HAND_ON = ("Add", "ToCopy", "Clone", "View", "UnsafeView", "Alias", "Unsqueeze", "Squeeze", "Transpose", "Permute")


def check_residuals(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> None:
    """Refuse stacks whose layers do not add to their input; nothing of the model is run or changed.

    Raises:
        LayerDropConfigError: If there is one, or that cannot be found out.
    """
    for name, stack in stacks.items():
        try:
            others = _layers_that_do_not_add(model, stack)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise LayerDropConfigError(
                f"scale='kept' needs layers that add to their input, and whether those of the {name} of a "
                f"{type(model).__name__} do could not be tried ({reason}); give scale='none'."
            ) from error
        if others:
            raise LayerDropConfigError(
                f"scale='kept' divides what a layer adds to its input, but the {name} of a {type(model).__name__} is "
                f"post-norm: layer {others[0]} does not hand its input on as it is, with something added; give "
                "scale='none'."
            )


def _layers_that_do_not_add(model: PreTrainedModel, stack: Stack) -> list[int]:
    whole = built_on_meta(_own_class(model), model.config)
    whole.to("meta").eval()  # a few weights are made past the device that was asked for
    whole.set_attn_implementation("eager")  # others want a device
    layers = list(stack.layers(whole))
    for layer in layers:
        for part in layer.children():
            part.forward = _or_made_up(part.forward)
    with streams_untouched(), torch.device("meta"):
        with torch.no_grad():
            calls = calls_of(whole, stack, len(layers) - 1)
        return [place for place, layer in enumerate(layers) if not _adds(layer, calls[place])]


def _own_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the model's class without what this package has put in front of it."""
    ours = __name__.partition(".")[0]
    return next(
        cls for cls in type(model).__mro__ if all(base.__module__.partition(".")[0] != ours for base in cls.__mro__)
    )


def _or_made_up(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make up the output of a part that cannot be run without numbers, such as experts, to which a router sends."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            return 2 * (args[0] if args else next(iter(kwargs.values())))  # no sum of its input and something more

    return run


def _adds(layer: nn.Module, call: Call) -> bool:
    """Tell whether what a layer gives is what it was given, and something more."""
    args, kwargs = call
    name = next(iter(inspect.signature(layer.forward).parameters))
    before = torch.empty_like(args[0] if args else kwargs[name], requires_grad=True)
    with torch.enable_grad():
        output = layer(before, *args[1:], **kwargs) if args else layer(**{**kwargs, name: before})
    after = output[0] if isinstance(output, tuple | list) else output
    return after.shape == before.shape and _leads_to(after.grad_fn, before)


def _leads_to(step: Any, leaf: torch.Tensor) -> bool:
    """Tell whether a leaf reaches the result of a step over sums alone."""
    steps, seen = [step], set()
    while steps:
        step = steps.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if getattr(step, "variable", None) is leaf:
            return True
        if step.name().removesuffix("0").removesuffix("1").removesuffix("Backward") in _HAND_ON:
            steps += [before for before, _ in step.next_functions]
    return False
