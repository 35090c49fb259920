"""Which layer a weight of a checkpoint belongs to, and the weights of the kept layers under their new names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hf_layerdrop import compat
from hf_layerdrop.architectures.families import bias_in_first_block
from hf_layerdrop.architectures.names import LAYER_NUMBER
from hf_layerdrop.architectures.stacks import Stack
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError

T = TypeVar("T")

_SHOWN = 5  # of the layers that are missing: a wrong name may number a layer by a billion


class WeightNames:
    """Tell which layer a weight of a checkpoint belongs to; its name need not be the model's.

    A checkpoint may be of the base model or of any head, and older ones have other names, which transformers' own
    conversions know.
    """

    def __init__(self, model: PreTrainedModel, stacks: Mapping[str, Stack]) -> None:
        self.stacks = stacks
        self._places: dict[str, tuple[str, int, str] | None] = {}
        self._renamings, self._converters = conversions_of(model)
        ignored = getattr(model, compat.NOT_LOADED.name) or ()
        self._ignored = re.compile("|".join(rf"({pattern})" for pattern in ignored) or r"(?!)")
        base = re.escape(model.base_model_prefix)
        tails = {name: stack.path.removeprefix(model.base_model_prefix + ".") for name, stack in stacks.items()}
        self._patterns = {
            name: re.compile(rf"(?:{base}\.)?{re.escape(tail)}\.({LAYER_NUMBER})\.(.+)") for name, tail in tails.items()
        }

    def layer_of(self, weight: str) -> tuple[str, int, str] | None:
        """Return the stack, the layer, and the name in the layer; None for what belongs to no layer."""
        if weight not in self._places:  # each is asked for several times in a load, and again in the next
            self._places[weight] = self._place_of(weight)
        return self._places[weight]

    def _place_of(self, weight: str) -> tuple[str, int, str] | None:
        renamed, _ = rename_source_key(weight, self._renamings, self._converters)
        for name, pattern in self._patterns.items():
            if match := pattern.fullmatch(renamed):
                return name, int(match[1]), match[2]
        return None

    def is_ignored(self, weight: str, stack: str, layer: int) -> bool:
        """Tell a weight of a block after the last layer that the model class passes over, as one that predicts more."""
        return layer >= self.stacks[stack].depth and self._ignored.search(weight) is not None

    def renumbered(self, weight: str, stack: str, old: int, new: int) -> str:
        """Return the name that a weight of layer ``old`` has in layer ``new``."""
        if old == new:
            return weight
        parts = weight.split(".")
        for place in (place for place, part in enumerate(parts) if part == str(old)):
            candidate = ".".join([*parts[:place], str(new), *parts[place + 1 :]])
            found = self.layer_of(candidate)
            if found is not None and found[:2] == (stack, new):
                return candidate
        raise UnsupportedModelError(
            f"The weight {weight!r} of layer {old} of the {stack} does not say its layer in its name, so layers cannot "
            "be chosen while loading; load the whole model and call prune_layers."
        )


def conversions_of(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """Return how transformers renames and converts the weights of older checkpoints of a model."""
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    return renamings, [each for each in conversions if isinstance(each, WeightConverter)]


def group_by_layer(
    weights: Mapping[str, T], names: WeightNames
) -> tuple[dict[str, dict[int, list[tuple[str, T]]]], list[str]]:
    """Group weights by stack and layer, each with its name in the layer; return also those that are passed over.

    Raises:
        CheckpointError: If the layers are not those that the config counts.
    """
    layers: dict[str, dict[int, list[tuple[str, T]]]] = {name: {} for name in names.stacks}
    ignored = []
    for weight, value in weights.items():
        if (place := names.layer_of(weight)) is None:
            continue
        stack, layer, rest = place
        if names.is_ignored(weight, stack, layer):
            ignored.append(weight)
        else:
            layers[stack].setdefault(layer, []).append((rest, value))
    _check_held({name: set(found) for name, found in layers.items()}, names.stacks)
    return layers, ignored


def keep_weights(
    weights: Mapping[str, Any], names: WeightNames, kept: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Any]]:
    """Yield the weights of the kept layers under their new numbers, and all that belongs to no layer, in their order.

    What the first block owns for all goes to the first block that is kept. Blocks after the last layer that the model
    class passes over are left out: their numbers would be those of no model.

    Raises:
        CheckpointError: If the layers in the checkpoint are not those that its config counts.
    """
    stacks = names.stacks
    found: dict[str, set[int]] = {name: set() for name in stacks}
    for weight, value in weights.items():
        place = names.layer_of(weight)
        if place is None:
            yield weight, value
            continue
        name, layer, rest = place
        if names.is_ignored(weight, name, layer):
            continue
        found[name].add(layer)
        if layer in kept[name]:
            yield names.renumbered(weight, name, layer, kept[name].index(layer)), value
        elif layer == 0 and _is_for_all(rest, stacks[name]):
            yield weight, value
    _check_held(found, stacks)


def check_layers(weights: Iterable[str], names: WeightNames) -> None:
    """Refuse weights of other layers than a model has; none at all may be what is wanted, of a stack that is new.

    Raises:
        CheckpointError: If there are.
    """
    found: dict[str, set[int]] = {}
    for weight in weights:
        if (place := names.layer_of(weight)) and not names.is_ignored(weight, *place[:2]):
            found.setdefault(place[0], set()).add(place[1])
    _check_held(found, {name: names.stacks[name] for name in found})


def _check_held(found: Mapping[str, set[int]], stacks: Mapping[str, Stack]) -> None:
    for name, stack in stacks.items():
        if not found[name]:
            raise UnsupportedModelError(
                f"The checkpoint names the layers of the {name} otherwise than the model does ({stack.path}), so they "
                "cannot be chosen while loading; load the whole model and call prune_layers."
            )
        if found[name] != set(range(stack.depth)):
            field = ".".join(filter(None, (stack.config_path, stack.depth_field)))
            raise CheckpointError(
                f"The weights hold {_listed(found[name])} of the {name}, but config.json says {field} = "
                f"{stack.depth}: use the config that belongs to these weights, or download the checkpoint again."
            )


def _is_for_all(name: str, stack: Stack) -> bool:
    """Tell a weight that the first block owns for all others."""
    bias = bias_in_first_block(stack.model_type)
    return bias is not None and any(part in bias.weights for part in name.split("."))


def _listed(layers: set[int]) -> str:
    absent = list(islice((layer for layer in range(max(layers)) if layer not in layers), _SHOWN + 1))
    missing = ", ".join([*map(str, absent[:_SHOWN]), *["..."] * (len(absent) > _SHOWN)])
    return f"{len(layers)} layers ({min(layers)} to {max(layers)}{', without ' * bool(missing)}{missing})"
