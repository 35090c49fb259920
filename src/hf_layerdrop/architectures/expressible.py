"""Refuse a cut that plain transformers would rebuild otherwise: a config has to say what each kept layer is.

A checkpoint holds weights and a config, and whoever loads it builds the model from the config. So both configs, the
whole one and the one after the cut, are built on the meta device (which costs no memory), and each kept layer has to be
what it was: its parts, their shapes, and their settings.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.architectures.families import LENDING_FLAG, bias_in_first_block
from hf_layerdrop.architectures.layer_idx import is_number_name
from hf_layerdrop.architectures.layer_numbers import check_taps
from hf_layerdrop.architectures.moved_layers import check_numbers, counting_stacks
from hf_layerdrop.architectures.shared_kv import missing_lender
from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.architectures.walked import TRIED
from hf_layerdrop.compat import build_from_config
from hf_layerdrop.errors import UnsupportedModelError

Kept = Mapping[str, Sequence[int]]
Signature = dict[str, Any]

logger = logging.getLogger(__name__)
_warned: set[str] = set()

# Of so many cuts, and of so many configs that cuts of one model have, is remembered what came of them.
REMEMBERED = 100_000

# Transformers builds and loads models by setting what belongs to the whole process (the default dtype, how weights are
# tied), and sets it back afterwards: one thread at a time, or two leave it as it was in the middle of the other.
BUILDING = threading.RLock()
_FILLING = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_}

# Settings that may differ: rates of dropout that grow with depth are of no account outside of training.
_OF_NO_ACCOUNT = ("drop", "training", "gradient_checkpointing")


class Unfilled(TorchFunctionMode):
    """Build modules without filling their weights: on the meta device that takes most of the time, and does nothing.

    Of this thread alone: transformers' `no_init_weights` replaces functions of the whole process, and two threads that
    leave it in another order than they entered it leave them replaced.

    Args:
        most: Of how many tensors a model may be made at most; a stranger's config may say a billion of parts.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._left = math.inf if most is None else most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the weight as it is, where it would be filled."""
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _FILLING:
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            self._left -= 1
            if self._left < 0:
                raise ValueError("it would have far more weights than there are")
        return func(*args, **(kwargs or {}))


def built_on_meta(cls: type[PreTrainedModel], config: PreTrainedConfig, most: int | None = None) -> PreTrainedModel:
    """Build a model from a copy of its config, without memory for its weights; for ``most`` see `Unfilled`.

    Of a class of ours, it is built as the transformers class that it is made from: nothing of it will be dropped.
    """
    plain = next(base for base in cls.__mro__ if not base.__module__.startswith("hf_layerdrop."))
    with BUILDING, torch.device("meta"), Unfilled(most):
        return build_from_config(plain, copy.deepcopy(config))


def may_differ(model: nn.Module, stacks: Mapping[str, Stack]) -> bool:
    """Tell whether one cut of a model may be rebuilt as it is and another not: if the layers of a stack are unlike.

    Other lists that are as long as a stack may have to go along with it, which only building it shows.
    """
    inside = tuple(f"{stack.path}." for stack in stacks.values())
    depths = {stack.depth for stack in stacks.values()}
    lists = [path for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) in depths]
    if any(not f"{path}.".startswith(inside) for path in lists):
        return True
    return any(not _all_alike(stack, model) for stack in stacks.values())


def check_lenders(whole: PreTrainedModel, stacks: Mapping[str, Stack], kept: Kept) -> None:
    """Refuse a cut in which a kept layer has lost one that it borrows from.

    Raises:
        UnsupportedModelError: If one has.
    """
    for name, stack in stacks.items():
        if lost := missing_lender(vars(stack.config(whole.config)), stack.depth, kept[name]):
            raise UnsupportedModelError(f"{type(whole).__name__} cannot be cut to {_said(kept)}: {lost}.")


def _refused(whole: PreTrainedModel, kept: Kept, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"{type(whole).__name__} cannot be cut to {_said(kept)}: plain transformers refuses the config that this needs "
        f"({type(error).__name__}: {reason}); keep other layers, or all."
    )


def _said(kept: Kept) -> str:
    return ", ".join(f"{name}={list(layers)}" for name, layers in kept.items())


def _read_again(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return what a config is after it was saved and read, with the attention that this model was built with.

    Some configs correct on reading what their fields say.
    """
    again = type(config).from_dict(config.to_dict())
    _use_attention_of(config, again)
    return again


def _use_attention_of(config: PreTrainedConfig, again: PreTrainedConfig) -> None:
    kind = compat.ATTENTION_KIND.name
    setattr(again, kind, getattr(config, kind))  # of its parts too, which come after it
    for name, part in vars(config).items():
        if isinstance(part, PreTrainedConfig) and isinstance(other := vars(again).get(name), PreTrainedConfig):
            _use_attention_of(part, other)


@dataclass(frozen=True)
class Look:
    """What a model is that was built from a config: its layers by stack, and shapes and settings of all else.

    Attributes:
        computed: Shapes of what is not saved, such as frequencies: whether a kind of attention has some may depend on
            whether any layer is of that kind.
    """

    layers: Mapping[str, Sequence[Signature]]
    surroundings: Signature
    computed: Signature
    settings: Mapping[str, Signature]


class Rebuilds:
    """Check cut after cut of one model: what a config builds is looked at once, and many cuts have the same config."""

    def __init__(self, whole: PreTrainedModel, stacks: Mapping[str, Stack]) -> None:
        self.whole = whole  # on the meta device
        self._stacks = stacks
        self._distinct: list[Signature] = []  # most layers of most cuts are alike: each kind is held once
        self._look_of_whole = self._look(whole)
        self._built: dict[str, Look | Exception] = {}

    def check(self, kept: Kept, config: PreTrainedConfig) -> bool:
        """Refuse a cut, which has this config, if the model that the config builds is another.

        Returns:
            Whether all of it could be tried.

        Raises:
            UnsupportedModelError: If it is, cannot be built, or a kept layer has lost one that it borrows from.
        """
        check_lenders(self.whole, self._stacks, kept)
        check_taps(self.whole, self._stacks, kept)
        built = self._of(config)
        if isinstance(built, Exception):
            raise UnsupportedModelError(_refused(self.whole, kept, built)) from built
        _compare(type(self.whole).__name__, self._look_of_whole, built, self._stacks, kept)
        was_tried = self.check_numbers(kept, lambda: config)
        warn_of_untried(self.whole.config)
        return was_tried

    def check_numbers(self, kept: Kept, config: Callable[[], PreTrainedConfig]) -> bool:
        """Refuse a cut after which a layer would compute something else, because it has another number.

        Returns:
            Whether this could be tried, where it needs to be.

        Raises:
            UnsupportedModelError: If one would.
        """
        return check_numbers(
            self.whole, self._counting, kept, lambda: built_on_meta(type(self.whole), _read_again(config()))
        )

    @cached_property
    def _counting(self) -> dict[str, Stack]:
        return counting_stacks(self.whole, self._stacks)

    def changed_settings(
        self, config: PreTrainedConfig, renamed: Callable[[str], str | None]
    ) -> dict[str, dict[str, tuple[Any, Any]]]:
        """Return by module what modules have copied from the config: before a cut, and after it.

        ``renamed`` gives the name of a module after the cut, None if it is cut away.
        """
        built = self._of(config)
        if isinstance(built, Exception):
            return {}
        changed: dict[str, dict[str, tuple[Any, Any]]] = {}
        for path, settings in self._look_of_whole.settings.items():
            new = renamed(path)
            after = {} if new is None else built.settings.get(new, {})
            found = {name: (value, after[name]) for name, value in settings.items() if after.get(name, value) != value}
            if found:
                changed[path] = found
        return changed

    def _of(self, config: PreTrainedConfig) -> Look | Exception:
        key = repr(config.to_dict())
        if key not in self._built:
            try:
                found: Look | Exception = self._look(built_on_meta(type(self.whole), _read_again(config)))
            except Exception as error:
                found = error.with_traceback(None)
            remember(self._built, key, found)
        return self._built[key]

    def _look(self, model: PreTrainedModel) -> Look:
        found = _look(model, self._stacks)
        layers = {name: [self._one_of(layer) for layer in signatures] for name, signatures in found.layers.items()}
        return Look(layers, self._one_of(found.surroundings), self._one_of(found.computed), found.settings)

    def _one_of(self, signature: Signature) -> Signature:
        known = next((other for other in self._distinct if other == signature), None)
        if known is None:
            self._distinct.append(signature)
        return known or signature


def warn_of_untried(config: PreTrainedConfig) -> None:
    """Warn of a type of model that nobody has tried; once."""
    if config.model_type not in _warned and not _was_tried(config):
        _warned.add(config.model_type)
        logger.warning(
            "Models of type %r were not tried (docs/architectures.md says which were, and of which no tiny form could "
            "be built): it is not known whether a cut of one computes what the whole model does with its other layers "
            "dropped, so compare a few outputs of the saved model with those in sub_network.",
            config.model_type,
        )


def _was_tried(config: PreTrainedConfig) -> bool:
    """Tell whether a type was tried, or the composite that it is a part of, which transformers has in one folder."""
    library, _, folder = type(config).__module__.rpartition(".")[0].rpartition(".")
    names = {config.model_type, *([folder, folder.replace("_", "-")] if library == "transformers.models" else [])}
    return not TRIED.isdisjoint(names)


def remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    """Remember one thing more; of too many, the oldest is forgotten."""
    if len(memory) >= REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = value


def _look(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> Look:
    inside = tuple(f"{stack.path}." for stack in stacks.values())
    shapes, computed = (
        {name: tuple(weight.shape) for name, weight in weights if not name.startswith(inside)}
        for weights in (model.state_dict().items(), model.named_buffers())
    )
    layers = {name: [_signature(layer, stack) for layer in stack.layers(model)] for name, stack in stacks.items()}
    settings = {path: settings_of(part) for path, part in model.named_modules()}
    for path in settings:
        if f"{path}.".startswith(inside):  # what is no list says what a layer is, and is in its signature
            settings[path] = {name: value for name, value in settings[path].items() if isinstance(value, list | dict)}
    return Look(layers, shapes, computed, {path: values for path, values in settings.items() if values})


def settings_of(part: nn.Module) -> Signature:
    """Return the plain values that a module holds; numbers in lists, too."""
    return {
        name: value
        for name, value in vars(part).items()
        if name[0] != "_" and isinstance(value, int | float | str | list | tuple | dict) and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, int | float | str)


def _compare(model: str, whole: Look, cut: Look, stacks: Mapping[str, Stack], kept: Kept) -> None:
    for name, stack in stacks.items():
        layers, rebuilt = whole.layers[name], cut.layers[name]
        if len(rebuilt) != len(kept[name]):
            raise UnsupportedModelError(
                f"{model} cannot be cut to {name} layers {list(kept[name])}: plain transformers would "
                f"build {len(rebuilt)} layers, as {stack.depth_field} counts another stack too; keep as many of both."
            )
        for new, old in enumerate(kept[name]):
            difference = _difference(layers[old], rebuilt[new])
            if difference:
                raise UnsupportedModelError(
                    f"{model} cannot be cut to {name} layers {list(kept[name])}: plain transformers "
                    f"would build layer {old} otherwise at place {new} ({difference}), and no field of its config "
                    "can say so; keep other layers, or all."
                )
    both = whole.computed.keys() & cut.computed.keys()
    computed = ({name: look.computed[name] for name in both} for look in (whole, cut))
    if difference := _difference(whole.surroundings, cut.surroundings) or _difference(*computed):
        raise UnsupportedModelError(
            f"{model} cannot be cut to {_said(kept)}: other parts of it depend on the number of layers ({difference})."
        )


def _all_alike(stack: Stack, model: nn.Module) -> bool:
    signatures = [_signature(layer, stack) for layer in stack.layers(model)]
    return all(signature == signatures[0] for signature in signatures)


def _signature(layer: nn.Module, stack: Stack) -> Signature:
    """Return what a layer is: its parts by name, their shapes, and their plain settings."""
    found: Signature = {}
    bias = bias_in_first_block(stack.model_type)
    spared = (LENDING_FLAG, *((*bias.weights, bias.flag) if bias else ()))
    for path, part in layer.named_modules():
        if path.rpartition(".")[2] in spared:
            continue
        found[path] = f"{type(part).__module__}.{type(part).__qualname__}"
        for name, weight in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            found[f"{path}.{name}"] = tuple(weight.shape)
        found |= {f"{path}.{name}": value for name, value in part.__dict__.items() if _is_setting(name, value, spared)}
    return found


def _is_setting(name: str, value: Any, spared: Sequence[str]) -> bool:
    if name.startswith("_") or name in spared or name == "p" or any(word in name for word in _OF_NO_ACCOUNT):
        return False
    if type(value) is int and is_number_name(name):
        return False
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _difference(found: Signature, expected: Signature) -> str:
    """Say in a few words where two signatures differ; empty if they do not."""
    if found == expected:
        return ""
    for name in (*found, *expected):
        if name not in found or name not in expected or found[name] != expected[name]:
            values = (_shown(signature, name) for signature in (found, expected))
            return f"{name.lstrip('.')}: {' and then '.join(values)}"
    return ""


def _shown(signature: Signature, name: str) -> str:
    value = signature.get(name, "absent")
    return value.rpartition(".")[2] if isinstance(value, str) else str(value)
