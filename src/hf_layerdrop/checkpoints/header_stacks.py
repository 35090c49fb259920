"""The stacks of a checkpoint, read off the names of its weights and config.json: no torch, no model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hf_layerdrop.architectures.families import DEPTH_FIELDS, depth_field, part_words, refusal
from hf_layerdrop.architectures.names import LAYER_NUMBER, Place, may_be_stack, names_of, part_name, stack_name
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True)
class StackHeader:
    """A stack of layers, as the names in the weight files show it.

    Attributes:
        name: ``encoder``, ``decoder`` or ``layers``.
        path: What stands before the layer index in weight names, e.g. ``bert.encoder.layer``.
        depth: Number of layers.
        config_field: The field of config.json that counts them.
        parameters: Number of parameters of each layer.
    """

    name: str
    path: str
    depth: int
    config_field: str
    parameters: tuple[int, ...]


def find_stacks(parameters: Mapping[str, int], config: Mapping[str, Any]) -> list[StackHeader]:
    """Find the stacks by looking: names ``path.<i>.rest`` with i from 0 to N - 1, where config.json gives N.

    Args:
        parameters: Number of parameters of each weight, by its name.
        config: What config.json holds.

    Raises:
        UnsupportedModelError: The model has no stack, or shares its layers.
        CheckpointError: The weights hold another number of layers than config.json says.
    """
    if reason := refusal(config.get("model_type")):
        raise UnsupportedModelError(f"This checkpoint cannot be cut by layers: {reason}")
    groups = _numbered_groups(parameters)
    places = [place for path, layers in groups.items() if (place := _place_of(path, layers, config))]
    parts = dict(_parts(config))
    for place in places:
        if reason := refusal(parts[place.config_path].get("model_type")):
            raise UnsupportedModelError(f"This checkpoint cannot be cut by layers: {reason}")
    stacks = {
        name: _stack_header(name, place, groups[place.path], config)
        for name, place in zip(names_of(places), places, strict=True)
    }
    rejected = [path for path in groups if path not in {place.path for place in places}]
    for path in rejected:
        _check_not_a_stack(path, groups[path], config, stacks)
    if not stacks:
        _check_depths_are_counts(config)
        raise UnsupportedModelError(
            "This checkpoint has no stack of layers: looked for numbered weights whose count is a depth in config.json "
            f"({', '.join(DEPTH_FIELDS['layers'][:4])}, ...) and found none."
        )
    return sorted(stacks.values(), key=lambda stack: stack.name == "decoder")  # files list names by the alphabet


def _check_depths_are_counts(config: Mapping[str, Any]) -> None:
    """Say so if what should count the layers is no whole number, so that nothing was found to fit it."""
    for path, part in _parts(config):
        for field in DEPTH_FIELDS["layers"]:
            if isinstance(part.get(field), str | float | bool):
                where = f"{path}.{field}" if path else field
                raise CheckpointError(
                    f"config.json says {where} = {part[field]!r}, which is no whole number: write down how many "
                    "layers the weights hold, or download the checkpoint again."
                )


def _numbered_groups(parameters: Mapping[str, int]) -> dict[str, dict[int, int]]:
    """Group weights by what stands before their first number: path -> index -> parameters."""
    groups: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for name, count in parameters.items():
        parts = name.split(".")
        first = next((i for i, part in enumerate(parts[:-1]) if i and re.fullmatch(LAYER_NUMBER, part)), None)
        if first is not None:
            groups[".".join(parts[:first])][int(parts[first])] += count
    return groups


def _parts(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a config and the configs inside it (``text_config`` and the like) with their dotted paths."""
    yield prefix, config
    for key, part in config.items():
        if isinstance(part, Mapping) and ("model_type" in part or key.endswith("_config")):
            yield from _parts(part, f"{prefix}.{key}" if prefix else key)


def _place_of(path: str, layers: Mapping[int, int], config: Mapping[str, Any]) -> Place | None:
    """Find the part of a config that counts numbered weights: one that their path speaks of, else the outermost."""
    if set(layers) != set(range(len(layers))) or not may_be_stack(path):
        return None
    found = [p for p, part in _parts(config) if depth_field(part, stack_name(path), len(layers), path)]
    told = {p: _first_word(path, part_words(part_name(p))) for p in found if p}
    spoken = sorted((p for p in told if told[p] < len(path)), key=lambda p: told[p])
    return Place(path, (spoken or found)[0]) if found else None


def _first_word(path: str, words: Iterable[str]) -> int:
    """Return where the first of the words stands in a path, or the length of the path."""
    return min((path.find(word) for word in words if word in path), default=len(path))


def _stack_header(name: str, place: Place, layers: Mapping[int, int], config: Mapping[str, Any]) -> StackHeader:
    part = dict(_parts(config))[place.config_path]
    field = depth_field(part, stack_name(place.path), len(layers), place.path) or ""
    prefix = f"{place.config_path}." if place.config_path else ""
    return StackHeader(name, place.path, len(layers), prefix + field, tuple(layers[i] for i in range(len(layers))))


def _declared_depths(config: Mapping[str, Any], stack: str) -> Iterator[tuple[str, int]]:
    """Yield the field that counts a stack in the config, then those of its parts (``text_config`` and the like)."""
    for path, part in _parts(config):
        counts = ((field, part.get(field)) for field in DEPTH_FIELDS.get(stack, DEPTH_FIELDS["layers"]))
        prefix = f"{path}." if path else ""
        yield from [(prefix + field, count) for field, count in counts if type(count) is int][:1]


def _check_not_a_stack(
    path: str, layers: Mapping[int, int], config: Mapping[str, Any], stacks: Mapping[str, StackHeader]
) -> None:
    """Refuse numbered weights that must be the stack which config.json counts otherwise.

    Convolutions or heads may be numbered too, so this speaks only where the stack of that name was not found.
    """
    name = stack_name(path)
    declared = next(_declared_depths(config, name), None)
    if declared is None or not may_be_stack(path) or name in stacks or (name == "layers" and stacks):
        return
    field, count = declared
    if "." in field:  # of a part: whether these weights are its layers, their names do not say for sure
        return
    missing = list(islice((layer for layer in range(count) if layer not in layers), 5))  # the count may be anything
    lacking = f" (layers missing: {', '.join(map(str, missing))})" if missing else ""
    raise CheckpointError(
        f"The weights hold {len(layers)} layers of {path}{lacking}, but config.json says {field} = {count}: use the "
        "config that belongs to these weights, or download the checkpoint again."
    )
