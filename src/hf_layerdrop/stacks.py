"""Find the stacks of a model in memory: runs of same-kind blocks whose length a config field gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.families import depth_field, refusal, stack_name
from hf_layerdrop.wrappers import transformers_model


@dataclass(frozen=True)
class Stack:
    """Where a model keeps a run of layers.

    Attributes:
        name: ``encoder``, ``decoder`` or ``layers``.
        path: Dotted path of the `ModuleList` from the model.
        depth: Number of layers.
        depth_field: The config field that counts them.
    """

    name: str
    path: str
    depth: int
    depth_field: str

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
    if reason := refusal(model.config.model_type):
        raise UnsupportedModelError(f"{type(model).__name__} cannot be cut by layers: {reason}")
    stacks: dict[str, Stack] = {}
    for stack in _looked_up(model):
        if stack.name in stacks:
            raise UnsupportedModelError(
                f"{type(model).__name__} has two stacks that are both named {stack.name!r}, "
                f"{stacks[stack.name].path} and {stack.path}; models of this kind are not supported yet."
            )
        stacks[stack.name] = stack
    for stack in stacks.values():
        _check_output(model, stack)
    if not stacks:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stack of layers: looked for a ModuleList of blocks of one class whose "
            "length is the "
            "depth in its config (num_hidden_layers, encoder_layers, ...) and found none."
        )
    return stacks


def _check_output(model: nn.Module, stack: Stack) -> None:
    """Refuse layers that say they return a tuple: what else is in it, a dropped layer would have to make up."""
    layer = stack.layers(model)[0]
    returns = str(type(layer).forward.__annotations__.get("return", ""))
    if returns.startswith("tuple"):
        raise UnsupportedModelError(
            f"A {type(layer).__name__} returns {returns}, of which LayerDrop can hand on the hidden states only; "
            "layers of this kind are not supported yet."
        )


def depths_of(model: nn.Module) -> dict[str, int]:
    """Return the depth of each stack of a model by name; the model may be wrapped, as by PEFT."""
    return {name: stack.depth for name, stack in find_stacks(transformers_model(model)).items()}


def _looked_up(model: PreTrainedModel) -> Iterator[Stack]:
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [
        (path, module) for path, module in lists if not any(path.startswith(other + ".") for other, _ in lists)
    ]
    for path, module in outermost:
        name = stack_name(path)
        field = depth_field(_config_at(model, path), name, len(module))
        if field is not None and _are_blocks(module):
            yield Stack(name, path, len(module), field)


def _config_at(model: PreTrainedModel, path: str) -> dict[str, object]:
    """Return the config of the innermost submodel that holds ``path``, aliases such as num_hidden_layers included."""
    config = model.config
    module: nn.Module = model
    for part in path.split("."):
        module = getattr(module, part)
        if isinstance(module, PreTrainedModel):
            config = module.config
    aliases = {alias: getattr(config, field, None) for alias, field in config.attribute_map.items()}
    return {**aliases, **config.to_dict()}


def _are_blocks(layers: nn.ModuleList) -> bool:
    """Tell a stack of transformer blocks from a list of, say, linear layers: same kind, and parts of their own."""
    kinds = {type(layer) for layer in layers}
    return len(kinds) == 1 and len(list(layers[0].children())) > 1
