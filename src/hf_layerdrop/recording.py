"""What transformers records of a forward, by hooks on the modules that do the work: a dropped one has to do without.

Neither the collector that the hooks write to nor what a hook records has a public name.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _active_collector, maybe_install_capturing_hooks

# On a model whose modules have the hooks that record.
_INSTALLED = "_output_capturing_hooks_installed"


def recorded_key(hook: Any) -> str:
    """Return what a hook of transformers records, such as ``attentions``; empty for any other hook."""
    if getattr(hook, "__name__", "") != "output_capturing_hook":
        return ""
    return inspect.getclosurevars(hook).nonlocals["key"]


def install_recording(model: nn.Module) -> None:
    """Put the hooks that record on all layers of a model, in place, as transformers does when it first needs them.

    That first time may be while some layers are taken out, which would be without hooks ever after.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in parts:  # the outermost first, since it does so for those inside; none twice
        if not any(getattr(inner, _INSTALLED, False) for inner in part.modules()):
            maybe_install_capturing_hooks(part)


def is_recording() -> bool:
    """Tell whether the forward that is under way records hidden states or attentions of its layers."""
    return bool(_active_collector.get())


def record_no_attentions(attention: nn.Module) -> None:
    """Record None where the weights of an attention that does not run would be recorded."""
    collected = _active_collector.get() or {}
    for key in map(recorded_key, attention._forward_hooks.values()):
        if "attentions" in key and key in collected:
            collected[key].append(None)
