"""Give a model a config of its own before it is changed: another model may have been built from the same object."""

from __future__ import annotations

import copy
import gc
import sys
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.injection.call_stack import callers
from hf_layerdrop.injection.changes import all_or_nothing
from hf_layerdrop.injection.open_blocks import is_in_block

# By model, its config and how many references that had when no other model was found to hold it: to look takes long.
_found_alone: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()


def own_config(model: PreTrainedModel) -> None:
    """Replace the config of a model by a copy, in place, if another model has the same object.

    What the model is a part of goes on sharing it with the model.
    """
    references = sys.getrefcount(model.config) - 1  # without that of the call
    own = sum(value is model.config for part in model.modules() for value in vars(part).values())
    state = (id(model.config), references)
    within = is_in_block(model)  # at whose beginning it got one, and which has layers that hold it put aside
    if references == own or _found_alone.get(model) == state or within:
        return
    if references == own + _in_globals(model.config):
        return
    holders = _holders_of(model.config)
    family = _family_of(model, holders)
    if all(id(holder) in family for holder in holders):
        _found_alone[model] = state
        return
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    with all_or_nothing(model):
        for attributes in family.values():
            held = {name: value for name, value in attributes.items() if isinstance(value, PreTrainedConfig)}
            attributes.update({name: copies[id(value)] for name, value in held.items() if id(value) in copies})


def _holders_of(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the attributes of each module, of whatever model, that holds a config."""
    found = (holder if isinstance(holder, dict) else getattr(holder, "__dict__", {}) for holder in _referrers(config))
    return [attributes for attributes in found if compat.CHILDREN.name in attributes]


def _referrers(config: PreTrainedConfig) -> list[Any]:
    """Return what refers to a config, also of what `gc.freeze` has put aside, where it is not looked for."""
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        return gc.get_referrers(config)
    finally:
        if frozen:
            gc.freeze()


def _in_globals(config: PreTrainedConfig) -> int:
    """Count the global variables of the callers that are a config, as in a script or a notebook."""
    spaces = {id(frame.f_globals): frame.f_globals for frame in callers()}
    return sum(value is config for space in spaces.values() for value in [*space.values()])


def _family_of(model: nn.Module, holders: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the attributes, by their ids, of the modules of a model, and of all that it stands in with its config."""
    family = {id(vars(part)): vars(part) for part in model.modules()}
    for attributes in holders:
        children = [child for child in attributes[compat.CHILDREN.name].values() if child is not None]
        parts = [part for child in children for part in child.modules()]
        if any(part is model for part in parts):
            family |= {id(attributes): attributes} | {id(vars(part)): vars(part) for part in parts}
    return family
