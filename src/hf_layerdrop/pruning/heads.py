"""Take heads out for good, where a plain transformers config can say so: equally many in every layer, of any width.

What a config can say is found out by asking it: the model is built from the new config, without memory for weights, and
has to have the shapes that the cut leaves. Sub-layers cannot be pruned, since no config has a field for a layer without
one; `structure_sub_network` measures what they are worth.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.architectures.families import HEAD_WIDTH_FIELD, HEADS_FIELD, KEY_VALUE_HEADS_FIELD, PROJECTIONS
from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.architectures.structures import Heads, find_heads
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY, saved_provenance
from hf_layerdrop.errors import KeepLayersError, UnsupportedModelError
from hf_layerdrop.injection.changes import Changes, all_or_nothing
from hf_layerdrop.injection.inject import check_free, take_out
from hf_layerdrop.injection.injected import injected_models
from hf_layerdrop.injection.open_blocks import for_good
from hf_layerdrop.injection.own_config import own_config

# A projection, the dimension of its weight to cut, and what stays of it.
Cut = tuple[Any, int, torch.Tensor]


def prune_heads(model: PreTrainedModel, keep_heads: Mapping[int, Sequence[int]]) -> None:
    """Keep only some heads of each layer of ``model``, in place; LayerDrop is removed, as by `prune_layers`.

    Args:
        model: A model with one stack, without cross-attention, whose config has a field for the width of a head, or
            honours one.
        keep_heads: The heads that stay, by layer, equally many in each. Where heads share keys and values, equally many
            have to stay of all groups of which any stays.

    Raises:
        KeepLayersError: If the heads do not exist, or are not equally many in all layers; nothing is changed then.
        LayerDropStateError: If it is called on a part of an injected model, or within a block of `sub_network`.
        UnsupportedModelError: If no config of the model's family can say what would be left.
    """
    with for_good("prune_heads", model):
        own_config(model)
        with all_or_nothing(model) as changes:
            _prune(model, keep_heads, changes)


def _prune(model: PreTrainedModel, keep_heads: Mapping[int, Sequence[int]], changes: Changes) -> None:
    (name, stack), *others = (stacks := find_stacks(model)).items()
    check_free(model, stacks)
    heads = [find_heads(layer) for layer in stack.layers(model)]
    if others or any(len(found) > 1 for found in heads):
        raise UnsupportedModelError(
            f"Heads are pruned in models with one stack and without cross-attention, which {type(model).__name__} is "
            "not; measure it with structure_sub_network."
        )
    kept = [_checked(layer, keep_heads.get(layer), found.count) for layer, (found,) in enumerate(heads)]
    share = heads[0][0].count // (getattr(model.config, KEY_VALUE_HEADS_FIELD, None) or heads[0][0].count)
    groups = [_groups(layer, stay, share) for layer, stay in enumerate(kept)]
    _check_equal([len(stay) for stay in kept], "heads")
    _check_equal([len(stay) for stay in groups], "groups of heads that share keys and values")
    parts = [_attention(layer, found) for layer, (found,) in zip(stack.layers(model), heads, strict=True)]
    cuts = [
        cut
        for attention, (found,), stay, group in zip(parts, heads, kept, groups, strict=True)
        for cut in _cuts(attention, found, stay, group)
    ]
    config = _config_of(model, len(kept[0]), len(groups[0]), cuts[-1][2].numel() // len(kept[0]))
    twin = _twin(model, config, cuts)
    for injected in injected_models(model).values():
        take_out(injected, changes)
    for cut in cuts:
        _apply(*cut)
    for path, module in model.named_modules():
        if any(module is attention for attention in parts):
            numbers = vars(twin.get_submodule(path)).items()
            vars(module).update({key: value for key, value in numbers if isinstance(value, int | float)})
    _write_down(model, config, {name: [list(stay) for stay in kept]})


def _checked(layer: int, kept: Sequence[int] | None, count: int) -> tuple[int, ...]:
    stay = tuple(range(count)) if kept is None else tuple(sorted(kept))
    if not stay or len(set(stay)) < len(stay) or not set(stay) <= set(range(count)):
        raise KeepLayersError(
            f"keep_heads of layer {layer} is {kept!r}; give some of its {count} heads (0 to {count - 1}), each once."
        )
    return stay


def _groups(layer: int, kept: Sequence[int], share: int) -> list[int]:
    """Return the groups of heads that share keys and values of which some stay: equally many of each."""
    groups = sorted({head // share for head in kept})
    stay = {group: sum(head // share == group for head in kept) for group in groups}
    if len(set(stay.values())) > 1:
        raise KeepLayersError(
            f"keep_heads of layer {layer} leaves {stay} heads in the groups that share keys and values; a config can "
            "only say equally many in each."
        )
    return groups


def _check_equal(counts: Sequence[int], what: str) -> None:
    for layer, count in enumerate(counts):
        if count != counts[0]:
            raise KeepLayersError(
                f"keep_heads leaves {counts[0]} {what} in layer 0 and {count} in layer {layer}; a plain config has one "
                "number for all layers: keep equally many in each, or measure with structure_sub_network."
            )


def _attention(layer: nn.Module, heads: Heads) -> nn.Module:
    """Return the module that holds the output projection, and with it all others."""
    return next(part for part in layer.modules() if heads.projection in list(part.children()))


def _cuts(attention: nn.Module, heads: Heads, kept: Sequence[int], groups: Sequence[int]) -> Iterator[Cut]:
    """Yield what is cut of an attention; its output projection comes last."""
    projection: Any = heads.projection
    width = projection.weight.shape[1] // heads.count
    for names in PROJECTIONS:
        if all(hasattr(attention, name) for name in names):
            for name, stay in zip(names, (kept, groups, groups), strict=True):
                yield getattr(attention, name), 0, _places(stay, width)
            yield projection, 1, _places(kept, width)
            return
    raise UnsupportedModelError(
        f"A {type(attention).__name__} has no projections of their own for queries, keys and values beside that of the "
        f"heads ({' or '.join(', '.join(names) for names in PROJECTIONS)}); measure it with structure_sub_network."
    )


def _places(blocks: Sequence[int], width: int) -> torch.Tensor:
    return torch.tensor([block * width + place for block in blocks for place in range(width)])


def _config_of(model: PreTrainedModel, heads: int, groups: int, width: int) -> PreTrainedConfig:
    """Return a copy of the config with other heads, as reading it from a file would give it."""
    config = copy.deepcopy(model.config)
    fields = {HEADS_FIELD: heads, HEAD_WIDTH_FIELD: width}
    if getattr(config, KEY_VALUE_HEADS_FIELD, None) is not None:
        fields[KEY_VALUE_HEADS_FIELD] = groups
    for name, value in fields.items():
        setattr(config, name, value)
    try:
        return type(config).from_dict(config.to_dict())
    except Exception as error:
        raise UnsupportedModelError(
            f"A {type(config).__name__} cannot have {heads} heads ({' '.join(str(error).split())}); keep another "
            "number."
        ) from error


def _twin(model: PreTrainedModel, config: PreTrainedConfig, cuts: Sequence[Cut]) -> PreTrainedModel:
    """Build the model of the config without memory, and refuse if its shapes are not those that the cut leaves."""
    shapes = {id(weight): [*left.shape] for cut in cuts for weight, left in _cut_weights(*cut)}
    try:
        twin = built_on_meta(type(model), config)
    except Exception as error:
        raise UnsupportedModelError(_no_config(model, " ".join(str(error).split()))) from error
    for path, weight in model.named_parameters():
        built = [*twin.get_parameter(path).shape]
        if built != shapes.get(id(weight), [*weight.shape]):
            raise UnsupportedModelError(_no_config(model, f"it gives {path} the shape {built}"))
    return twin


def _no_config(model: PreTrainedModel, reason: str) -> str:
    return (
        f"No {type(model.config).__name__} describes a {type(model).__name__} with fewer heads of the same width "
        f"({reason}); measure it with structure_sub_network, or prune whole layers."
    )


def _cut_weights(projection: Any, dimension: int, places: torch.Tensor) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Yield the parameters of a linear layer that a cut changes, and what stays of them."""
    for weight in projection.parameters():
        if weight.dim() > 1 or dimension == 0:
            yield weight, weight.detach().index_select(dimension, places.to(weight.device))


def _apply(projection: Any, dimension: int, places: torch.Tensor) -> None:
    """Cut a linear layer, in place."""
    names = {id(weight): name for name, weight in projection.named_parameters()}
    for weight, cut in list(_cut_weights(projection, dimension, places)):
        setattr(projection, names[id(weight)], nn.Parameter(cut, requires_grad=weight.requires_grad))
    setattr(projection, ("out_features", "in_features")[dimension], places.numel())


def _write_down(model: PreTrainedModel, config: PreTrainedConfig, kept: Mapping[str, Sequence[Sequence[int]]]) -> None:
    for field in (HEADS_FIELD, KEY_VALUE_HEADS_FIELD, HEAD_WIDTH_FIELD):
        if hasattr(config, field):
            setattr(model.config, field, getattr(config, field))
    saved = saved_provenance(model.config)
    rates = {stack: [0.0] * len(layers) for stack, layers in kept.items()}
    setattr(model.config, CONFIG_KEY, {**saved, "rates": rates, "keep_heads": dict(kept)})
