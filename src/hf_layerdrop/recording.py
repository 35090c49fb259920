"""What transformers records of a forward, by hooks on the modules that do the work: a dropped one has to do without.

Neither the collector that the hooks write to nor what a hook records has a public name.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.utils.output_capturing import _active_collector


def recorded_key(hook: Any) -> str:
    """Return what a hook of transformers records, such as ``attentions``; empty for any other hook."""
    if getattr(hook, "__name__", "") != "output_capturing_hook":
        return ""
    return inspect.getclosurevars(hook).nonlocals["key"]


def record_no_attentions(attention: nn.Module) -> None:
    """Record None where the weights of an attention that does not run would be recorded."""
    collected = _active_collector.get() or {}
    for key in map(recorded_key, attention._forward_hooks.values()):
        if "attentions" in key and key in collected:
            collected[key].append(None)
