"""A model's own LayerDrop: found wherever the model may read it, switched off, taken over, and put back.

Models keep its rate in fields of their configs, some read it from there in every forward, others from an attribute of
the module that loops over the layers, and adapters beside the stack have their own. All of them are looked at: in the
configs that any module holds, with their parts, and in the attributes of every module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop.architectures.families import NATIVE_RATE, NATIVE_RATE_ATTRIBUTE
from hf_layerdrop.architectures.forward_source import names_in_forward
from hf_layerdrop.architectures.stacks import find_stacks

# Where a rate stands: the path of the module, that of the config from there (None for an attribute), and its name.
Place = tuple[str, tuple[str, ...] | None, str]


def switch_off_native(model: PreTrainedModel) -> dict[Place, float]:
    """Set the model's own LayerDrop rates to 0, in all its modules and configs, and return what they were."""
    places = list(_places(model))
    found = {place: getattr(holder, place[2]) for place, holder in places}
    for place, holder in places:
        setattr(holder, place[2], 0.0)
    return found


def restore_native(model: PreTrainedModel, rates: dict[Place, float]) -> None:
    """Undo `switch_off_native`."""
    for place, holder in list(_places(model)):
        if place in rates:
            setattr(holder, place[2], rates[place])


def native_rates(model: PreTrainedModel) -> dict[str, float]:
    """Return the rates of the model's own LayerDrop by stack, for stacks that have one."""
    found = {}
    for name, stack in find_stacks(model).items():
        owner = stack.owner(model)
        rate = getattr(owner, NATIVE_RATE_ATTRIBUTE, None)
        if not _is_rate(rate):
            rate = _rate_read(owner)
        if rate is not None:
            found[name] = float(rate)
    return found


def _rate_read(owner: nn.Module) -> float | None:
    """Return the rate that the forward of ``owner`` reads from its config, if it does."""
    config = getattr(owner, "config", None)
    fields = [name for name in vars(config) if NATIVE_RATE.fullmatch(name)] if config is not None else []
    rates = [getattr(config, name) for name in names_in_forward(type(owner), fields)]
    return next((rate for rate in rates if _is_rate(rate)), None)


def _places(model: PreTrainedModel) -> Iterator[tuple[Place, Any]]:
    """Yield where rates stand, and what holds them; a config that several modules hold, once for each."""
    for path, module in model.named_modules():
        yield from (((path, None, name), module) for name in _rate_names(module))
        config = module.__dict__.get("config")
        if isinstance(config, PreTrainedConfig):
            for inner, part in _parts(config):
                yield from (((path, inner, name), part) for name in _rate_names(part))


def _parts(config: PreTrainedConfig, path: Sequence[str] = ()) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    yield tuple(path), config
    for name, part in vars(config).items():
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part, (*path, name))


def _rate_names(holder: Any) -> list[str]:
    return [name for name, value in vars(holder).items() if NATIVE_RATE.fullmatch(name) and _is_rate(value)]


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
