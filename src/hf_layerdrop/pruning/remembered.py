"""Remember what was looked up of a model while the model stays as it is, for loops that switch at every step.

To see that it stays takes a fraction of the time of looking again: the same modules of the same classes in the same
order, the same states of LayerDrop, configs that hold the same, and nobody else who got hold of the model's config.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY
from hf_layerdrop.injection.injected import STATE_ATTRIBUTE

T = TypeVar("T")

_CHILDREN = compat.CHILDREN.name
# By model: how it was, and what was found. What is found must not hold the model itself.
_found: WeakKeyDictionary[nn.Module, tuple[_Look, Any]] = WeakKeyDictionary()


def remembered(model: PreTrainedModel, look: Callable[[PreTrainedModel], T]) -> T:
    """Return what ``look`` finds of a model, or what it found when the model was last asked about and as it is now."""
    known = _found.get(model)
    if known is not None and known[0].holds(model):
        return known[1]
    known = None
    _found.pop(model, None)
    found = look(model)
    look_now = _Look(model)
    _found[model] = (look_now, found)
    look_now.note_references(model)
    return found


def forget(model: PreTrainedModel) -> None:
    """Hold nothing of a model any longer, such as the layers that are cut away for good."""
    _found.pop(model, None)


class _Look:
    """How a model was."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules, configs = _walk(model)
        self._configs = [(ref(config), copy.deepcopy(_fields(config))) for config in configs]
        self._references = 0

    def note_references(self, model: PreTrainedModel) -> None:
        """Note how many hold the model's config, when all that is kept here does."""
        self._references = _references(model)

    def holds(self, model: PreTrainedModel) -> bool:
        """Tell whether the model is still so."""
        if _references(model) != self._references:
            return False
        modules, configs = _walk(model)
        if modules != self._modules or len(configs) != len(self._configs):
            return False
        return all(
            config is noted() and _fields(config) == fields
            for config, (noted, fields) in zip(configs, self._configs, strict=True)
        )


def _references(model: PreTrainedModel) -> int:
    return sys.getrefcount(model.config)


def _walk(model: nn.Module) -> tuple[list[Any], list[PreTrainedConfig]]:
    """Return the modules with their classes and states, in order, and the configs that they hold."""
    modules: list[Any] = []
    configs: dict[int, PreTrainedConfig] = {}
    waiting, seen = [model], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        held = module.__dict__
        modules += (ref(module), module.__class__, held.get(STATE_ATTRIBUTE))
        config = held.get("config")
        if config is not None and id(config) not in configs and isinstance(config, PreTrainedConfig):
            configs[id(config)] = config
        waiting += [child for child in held[_CHILDREN].values() if child is not None]
    return modules, [*configs.values()]


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config says, without what we note in it ourselves, which is read anew each time."""
    return {name: value for name, value in vars(config).items() if name != CONFIG_KEY}
