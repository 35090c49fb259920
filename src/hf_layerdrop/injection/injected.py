"""Find the models inside of a module in which LayerDrop is injected: one, or any number of them beside each other."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch import nn

from hf_layerdrop import compat

STATE_ATTRIBUTE = "_layerdrop"

# What torch puts around modules in place: the draws of a model are the same with and without it.
_OF_WRAPPERS = {wrapper.name for wrapper in compat.WRAPPED_IN_PLACE}


def injected_models(module: nn.Module) -> dict[str, nn.Module]:
    """Return the injected models inside of ``module``, itself included, by their paths.

    Paths begin where they differ, so that they are the same inside of a wrapper (DDP); that of an only one is empty.
    """
    modules = module.named_modules() if isinstance(module, nn.Module) else ()
    found = [(path.split("."), part) for path, part in modules if STATE_ATTRIBUTE in part.__dict__]
    by_level = zip(*(path for path, _ in found), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, by_level))
    return {".".join(name for name in path[shared:] if name not in _OF_WRAPPERS): part for path, part in found}


def find_injected(module: nn.Module) -> nn.Module | None:
    """Return the first injected model inside of ``module``, itself included; None if there is none."""
    modules = module.modules() if isinstance(module, nn.Module) else ()
    return next((part for part in modules if STATE_ATTRIBUTE in part.__dict__), None)


def states_of(module: nn.Module) -> dict[str, Any]:
    """Return the `LayerDropState` of each injected model inside of ``module`` by path."""
    return {path: getattr(model, STATE_ATTRIBUTE) for path, model in injected_models(module).items()}


def placed_states(module: nn.Module) -> dict[str, Any]:
    """Tell each injected model inside of ``module``, which trains, where it stands among them; return their states."""
    states = states_of(module)
    for path, state in states.items():
        state.stand_at(path, beside=list(states.values()))
    return states
