"""Find the stacks of a model, in memory or on the meta device: runs of blocks whose length a config field gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop.architectures.families import DEPTH_FIELDS, depth_field, refusal
from hf_layerdrop.architectures.names import Place, may_be_stack, names_of, stack_name
from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.errors import UnsupportedModelError


@dataclass(frozen=True)
class Stack:
    """Where a model keeps a run of layers.

    Attributes:
        name: ``encoder``, ``decoder`` or ``layers``; in composite models after the part: ``text``, ``vision``.
        path: Dotted path of the `ModuleList` from the model.
        depth: Number of layers.
        depth_field: The config field that counts them.
        config_path: Dotted path of the config that has this field, from the model's; empty if it is the model's own.
        model_type: The model type of that config.
    """

    name: str
    path: str
    depth: int
    depth_field: str
    config_path: str = ""
    model_type: str = ""

    @property
    def owner_path(self) -> str:
        """Path of the module that loops over the layers; empty if it is the model itself."""
        return self.path.rpartition(".")[0]

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers in ``model``."""
        return cast("nn.ModuleList", model.get_submodule(self.path))  # find_stacks looked

    def owner(self, model: nn.Module) -> nn.Module:
        """Return the module of ``model`` that loops over the layers."""
        return model.get_submodule(self.owner_path)

    def config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the part of a model's ``config`` that counts the layers."""
        part: Any = config
        for name in self.config_path.split(".") if self.config_path else ():
            part = getattr(part, name)
        return part


def find_stacks(model: nn.Module) -> dict[str, Stack]:
    """Return the stacks of a model by name, in the order in which the model holds them.

    Raises:
        UnsupportedModelError: If the model has none, shares its layers, or is not a transformers model.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"Got a {type(model).__name__}, but stacks are found in transformers models (PreTrainedModel); "
            "pass the model before it is wrapped."
        )
    _check_type(model, model.config.model_type)
    stacks = list(_looked_up(model))
    for stack in stacks:
        _check_type(model, stack.model_type)
        _check_layers(model, stack)
    if not stacks:
        fields = _fields(model.config)
        said = [f"{field} = {fields[field]}" for field in DEPTH_FIELDS["layers"] if fields.get(field) is not None]
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stack of layers: looked for a ModuleList of blocks of one class whose "
            "length is the "
            f"depth in its config ({said[0] if said else 'num_hidden_layers, encoder_layers, ...'}) and found none."
        )
    names = names_of([Place(stack.path, stack.config_path) for stack in stacks])
    return {name: replace(stack, name=name) for name, stack in zip(names, stacks, strict=True)}


def depths_of(model: nn.Module) -> dict[str, int]:
    """Return the depth of each stack of a model by name; the model may be wrapped, as by PEFT."""
    return {name: stack.depth for name, stack in find_stacks(transformers_model(model)).items()}


def configs_of(model: nn.Module, stack: Stack) -> list[PreTrainedConfig]:
    """Return the distinct configs that speak of a stack: its part of the model's, and copies that submodels hold."""
    main = stack.config(model.config)
    prefix = stack.path + "."
    holders = [
        m
        for name, m in model.named_modules()
        if not name or f"{stack.path}.".startswith(name + ".") or name.startswith(prefix)
    ]
    held = [config for holder in holders if type(config := getattr(holder, "config", None)) is type(main)]
    return list({id(config): config for config in [main, *held]}.values())


def _check_type(model: nn.Module, model_type: str) -> None:
    if reason := refusal(model_type):
        raise UnsupportedModelError(f"{type(model).__name__} cannot be cut by layers: {reason}")


def _check_layers(model: nn.Module, stack: Stack) -> None:
    """Refuse what no cut can serve: one layer in several places, stages of a pyramid.

    Raises:
        UnsupportedModelError: For each of these.
    """
    layers = list(stack.layers(model))
    if len({id(layer) for layer in layers}) < len(layers):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be cut by layers: {stack.path} holds one layer in several places, so there "
            "are no single layers to take out."
        )
    shapes = [_shapes(layer) for layer in layers if type(layer) is type(layers[0])]
    if any(shape and shapes[0] and not shape & shapes[0] for shape in shapes):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be cut by layers: the entries of {stack.path} are stages of different "
            "width, which feed into each other and cannot be left out."
        )


def _shapes(layer: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of a layer's weights; two layers of one width have some in common."""
    return {(name, tuple(weight.shape)) for name, weight in layer.named_parameters() if weight.numel() > 1}


def _looked_up(model: PreTrainedModel) -> Iterator[Stack]:
    """Yield every outermost list of blocks that a config field counts, under its short name."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [
        (path, module) for path, module in lists if not any(path.startswith(other + ".") for other, _ in lists)
    ]
    paths = _config_paths(model.config)
    for path, module in outermost:
        if not may_be_stack(path):
            continue
        for config in _configs_at(model, path):
            config_path, main = _original_of(config, paths, path)
            field = depth_field(_fields(main), stack_name(path), len(module), path)
            if field is not None and _are_blocks(module):
                yield Stack(stack_name(path), path, len(module), field, config_path, main.model_type)
                break


def _config_paths(config: PreTrainedConfig, path: str = "") -> list[tuple[str, PreTrainedConfig]]:
    """Return a config and its parts with their dotted paths."""
    parts = [(name, part) for name, part in vars(config).items() if isinstance(part, PreTrainedConfig)]
    inner = [found for name, part in parts for found in _config_paths(part, f"{path}.{name}" if path else name)]
    return [(path, config), *inner]


def _original_of(
    config: PreTrainedConfig, paths: list[tuple[str, PreTrainedConfig]], module: str
) -> tuple[str, PreTrainedConfig]:
    """Return the part of the model's config that a module's config is, or must be a copy of, with its path."""
    same = [(path, found) for path, found in paths if found is config]
    alike = [(path, found) for path, found in paths if type(found) is type(config)]
    of_its_name = [(path, found) for path, found in alike if module.startswith(f"{path}.")]
    return (same or of_its_name or alike or paths)[0]


def _configs_at(model: PreTrainedModel, path: str) -> list[PreTrainedConfig]:
    """Return the configs that the modules above ``path`` hold, innermost first."""
    holders: list[nn.Module] = [model]
    for part in path.split("."):
        holders.append(getattr(holders[-1], part))
    configs = [config for holder in holders if isinstance(config := getattr(holder, "config", None), PreTrainedConfig)]
    return list({id(config): config for config in reversed(configs)}.values())


def _fields(config: PreTrainedConfig) -> dict[str, object]:
    """Return the fields of a config, aliases such as num_hidden_layers included."""
    aliases = {alias: getattr(config, field, None) for alias, field in config.attribute_map.items()}
    return {**aliases, **vars(config)}


def _are_blocks(layers: nn.ModuleList) -> bool:
    """Tell a stack of transformer blocks from a list of, say, linear layers: each has parts of its own."""
    return len(layers) > 0 and all(_has_parts(layer) for layer in layers)


def _has_parts(layer: nn.Module) -> bool:
    parts = list(layer.children())
    return len(parts) > 1 or any(len(part) > 1 for part in parts if isinstance(part, nn.ModuleList))
