"""What transformers records of a forward, by hooks on the modules that do the work: a dropped one has to do without.

Neither the collector that the hooks write to nor what a hook records has a public name.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.utils.output_capturing import _active_collector

# On a model whose modules have the hooks that record.
_INSTALLED, _HOOK = "_output_capturing_hooks_installed", "output_capturing_hook"
_IMPLEMENTATION = "_attn_implementation"


def recorded_key(hook: Any) -> str:
    """Return what a hook of transformers records, such as ``attentions``; empty for any other hook."""
    if getattr(hook, "__name__", "") != _HOOK:
        return ""
    return inspect.getclosurevars(hook).nonlocals["key"]


def recording_models(model: nn.Module) -> set[nn.Module]:
    """Return the models in ``model``, itself included, whose modules have the hooks that record."""
    return {part for part in model.modules() if getattr(part, _INSTALLED, False)}


def take_back_recording(model: nn.Module, before: set[nn.Module]) -> None:
    """Remove the hooks that were put on since ``before``, in place.

    Transformers does so when it first needs them, and only then. While some layers are taken out, those would go
    without ever after; so what a sub-network got is taken back, and the whole model gets its own.
    """
    for part in recording_models(model) - before:
        for module in part.modules():
            for number, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__name__", "") == _HOOK:
                    del module._forward_hooks[number]
        delattr(part, _INSTALLED)


def is_recording() -> bool:
    """Tell whether the forward that is under way records hidden states or attentions of its layers."""
    return bool(_active_collector.get())


def gives_weights(attention: nn.Module) -> bool:
    """Tell whether an attention returns its weights; of one that does not, transformers records nothing at all."""
    configs = (getattr(part, "config", None) for part in attention.modules())
    implementation = next((found for config in configs if (found := getattr(config, _IMPLEMENTATION, None))), "")
    return not any(name in implementation for name in ("sdpa", "flash"))


def record_no_attentions(attention: nn.Module) -> None:
    """Record None where the weights of an attention that does not run would be recorded."""
    collected = _active_collector.get()
    if not collected or not gives_weights(attention):
        return
    for key in map(recorded_key, attention._forward_hooks.values()):
        if "attentions" in key and key in collected:
            collected[key].append(None)
