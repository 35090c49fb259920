"""What a checkpoint holds: the model that its config builds, without weights, and the sizes in its weight headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.architectures.stacks import Stack, find_stacks
from hf_layerdrop.checkpoints.declared_depths import check_depths, most_weights
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, TensorInfo
from hf_layerdrop.checkpoints.model_class import check_architecture, find_class, find_config
from hf_layerdrop.checkpoints.unreadable import reading
from hf_layerdrop.checkpoints.weight_names import WeightNames, group_by_layer
from hf_layerdrop.errors import CheckpointError


@dataclass(frozen=True)
class StoredStack:
    """A stack of a checkpoint.

    Attributes:
        name: As `Stack`'s, and as ``keep_layers`` names it.
        path: Dotted path of the list of layers in the model.
        depth: Number of layers.
        config_field: The field that counts them, dotted from the whole config.
        config: The part of the config that has this field, as transformers reads it, defaults included.
        layers: The tensors of each layer, with the name that the model has for them inside of a layer. Several tensors
            may have one name: of those that a model joins on loading, such as experts.
    """

    name: str
    path: str
    depth: int
    config_field: str
    config: Mapping[str, Any]
    layers: tuple[tuple[tuple[str, TensorInfo], ...], ...]

    @property
    def parameters(self) -> tuple[int, ...]:
        """Number of parameters of each layer."""
        return tuple(sum(tensor.parameters for _, tensor in layer) for layer in self.layers)

    @property
    def nbytes(self) -> tuple[int, ...]:
        """Bytes of each layer in its files."""
        return tuple(sum(tensor.nbytes for _, tensor in layer) for layer in self.layers)


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint as transformers would load it.

    Attributes:
        headers: What its files say.
        architecture: The name of the transformers class that its config names, or that its weights show.
        stacks: Its stacks, in the order of the model.
        ignored: Weights of further blocks that the model class passes over, such as those for multi-token prediction.
        tied: Whether its output embeddings are one tensor with others; a class without such has none to tie.
    """

    headers: CheckpointHeaders
    architecture: str
    stacks: tuple[StoredStack, ...]
    ignored: tuple[str, ...] = ()
    tied: bool = False

    @property
    def depths(self) -> dict[str, int]:
        """Depth of each stack by its name."""
        return {stack.name: stack.depth for stack in self.stacks}

    @property
    def parameters(self) -> int:
        """Number of parameters, without what is passed over; tied weights are stored, and counted, once."""
        return self.headers.parameters - sum(self.headers.tensors[name].parameters for name in self.ignored)

    @property
    def nbytes(self) -> int:
        """Bytes of what ``parameters`` counts."""
        return sum(tensor.nbytes for name, tensor in self.headers.tensors.items() if name not in set(self.ignored))


def find_stored_model(headers: CheckpointHeaders, **where: Any) -> StoredModel:
    """Find the stacks of a checkpoint in the model that its config builds, and their sizes in its headers.

    Args:
        headers: What was read of it.
        **where: Further arguments of ``from_pretrained`` that say which one it is, such as ``revision``.

    Raises:
        CheckpointError: Its config builds no model, or one of other layers than its files hold.
        UnsupportedModelError: The model cannot be cut by layers.
    """
    with reading(headers.source, alone=True):
        return _stored_model(headers, where)


def _stored_model(headers: CheckpointHeaders, where: Mapping[str, Any]) -> StoredModel:
    check_depths(headers)
    config = find_config(headers.source, where)
    cls = find_class(headers.source, {**where, "config": config}, headers)
    check_architecture(cls, headers.config, headers.source)
    if not isinstance(config, cls.config_class):  # as loading reads it, where two types have one class
        config = cls.config_class.from_pretrained(headers.source, **where)
    model = _built(cls, config, headers)
    names = WeightNames(model, find_stacks(model))
    layers, ignored = group_by_layer(headers.tensors, names)
    stacks = [_stored(stack, model.config, layers[stack.name]) for stack in names.stacks.values()]
    return StoredModel(headers, cls.__name__, tuple(stacks), tuple(ignored), _has_tied_head(model))


def _built(cls: type[PreTrainedModel], config: PreTrainedConfig, headers: CheckpointHeaders) -> PreTrainedModel:
    try:
        return built_on_meta(cls, config, most_weights(len(headers.tensors)))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"The config of {headers.source!r} builds no {cls.__name__} ({type(error).__name__}: {reason}): correct "
            "it, or download it again."
        ) from error


def _has_tied_head(model: PreTrainedModel) -> bool:
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    head = model.get_output_embeddings()
    return head is not None and any(module is head for name, module in model.named_modules() if name in tied)


def _stored(stack: Stack, config: PreTrainedConfig, layers: Mapping[int, list[tuple[str, TensorInfo]]]) -> StoredStack:
    part = stack.config(config)
    field = part.attribute_map.get(stack.depth_field, stack.depth_field)
    return StoredStack(
        stack.name,
        stack.path,
        stack.depth,
        f"{stack.config_path}.{field}" if stack.config_path else field,
        {**part.to_dict(), "model_type": stack.model_type},
        tuple(tuple(layers[number]) for number in range(stack.depth)),
    )
