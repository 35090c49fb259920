"""What transformers records of a forward, by hooks on the modules that do the work: a dropped one has to do without.

Neither the collector that the hooks write to nor what a hook records has a public name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_layerdrop import compat

# What transformers collects in the forward that runs, by key, such as ``attentions``; None or empty if nothing.
collected_outputs = compat.ACTIVE_COLLECTOR.value
_HOOK, _HOOKS = compat.OUTPUT_HOOK.code, compat.FORWARD_HOOKS.name
# On a model whose modules have the hooks that record.
_INSTALLED = compat.HOOKS_INSTALLED.name


def recorded_key(hook: Any) -> str:
    """Return what a hook of transformers records, such as ``attentions``; empty for any other hook."""
    return compat.OUTPUT_HOOK.of_closure(hook) if _records(hook) else ""


def recorded_keys(module: nn.Module) -> list[str]:
    """Return what the hooks on a module record."""
    return [recorded_key(hook) for hook in forward_hooks(module).values()]


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """Return the hooks that run after a module's forward, by number."""
    return getattr(module, _HOOKS)


def recording_models(models: Iterable[nn.Module]) -> set[nn.Module]:
    """Return those of the models, which may be parts of one another, whose modules have the hooks that record."""
    return {part for part in models if getattr(part, _INSTALLED, False)}


def take_back_recording(models: Iterable[nn.Module], before: set[nn.Module]) -> None:
    """Remove the hooks that were put on since ``before``, in place.

    Transformers does so when it first needs them, and only then. While some layers are taken out, those would go
    without ever after; so what a sub-network got is taken back, and the whole model gets its own.
    """
    for part in recording_models(models) - before:
        for module in part.modules():
            hooks = forward_hooks(module)
            for number in [number for number, hook in hooks.items() if _records(hook)]:
                del hooks[number]
        delattr(part, _INSTALLED)


def correct_record(replacements: Sequence[tuple[Any, Any]]) -> None:
    """Let recorded hidden states be those that were handed on, where a layer was shown or has computed others."""
    states = (collected_outputs() or {}).get("hidden_states") or []
    for position in {0, len(states) - 1} if states else ():
        for recorded, correct in replacements:
            if states[position] is recorded:
                states[position] = correct


def is_recording() -> bool:
    """Tell whether the forward that is under way records hidden states or attentions of its layers."""
    return bool(collected_outputs())


def gives_weights(attention: nn.Module) -> bool:
    """Tell whether an attention returns its weights; of one that does not, transformers records nothing at all."""
    configs = (getattr(part, "config", None) for part in attention.modules())
    kinds = (getattr(config, compat.ATTENTION_KIND.name, None) for config in configs)
    implementation = next(filter(None, kinds), "")
    return not any(name in implementation for name in ("sdpa", "flash"))


def record_dropped(
    layer: nn.Module, hidden_states: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Keep the per-layer outputs as long as at rate 0: the hidden state is repeated, attentions hold None.

    The hooks that record hang on the modules that a dropped layer does not run, so the record is made by hand.
    Where the attention that runs returns no weights, at rate 0 there are none, and so here.
    """
    collected = collected_outputs()
    if not collected:
        return
    for hook in forward_hooks(layer).values():
        if recorded_key(hook) == "hidden_states":
            hook(layer, (hidden_states,), hidden_states)
    given = inspect.signature(layer.forward).bind_partial(*args, **kwargs).arguments
    crosses = given.get("encoder_hidden_states") is not None
    if not gives_weights(layer):
        return
    for part in layer.modules():
        for key in recorded_keys(part):
            if "attentions" in key and key in collected and (crosses or "cross" not in key):
                collected[key].append(None)


def record_no_attentions(attention: nn.Module) -> None:
    """Record None where the weights of an attention that does not run would be recorded."""
    collected = collected_outputs()
    if not collected or not gives_weights(attention):
        return
    for key in recorded_keys(attention):
        if "attentions" in key and key in collected:
            collected[key].append(None)


def _records(hook: Any) -> bool:
    return getattr(hook, "__code__", None) is _HOOK
