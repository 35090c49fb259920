"""Which fields of config.json a cut of a stack changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_layerdrop.architectures.families import OVERRIDES_FIELD, cut_fields
from hf_layerdrop.checkpoints.stored_model import StoredStack


def config_path(stack: StoredStack) -> str:
    """Return what stands before the fields of the part of a config that counts a stack."""
    return stack.config_field.rpartition(".")[0] + "." * ("." in stack.config_field)


def fields_that_change(stack: StoredStack) -> list[str]:
    """Return the fields that go along with a cut: the depth first, then what lists, numbers or counts layers."""
    others = sorted(cut_fields(stack.config, stack.depth, range(0, stack.depth, 2)))
    if stack.config.get(OVERRIDES_FIELD):
        others.append(OVERRIDES_FIELD)
    return [stack.config_field, *(config_path(stack) + field for field in others)]


def said_of_layer(part: Mapping[str, Any], depth: int, layer: int) -> str:
    """Return all that a config says of one layer of a stack, so that two layers can be compared by it."""
    overrides = part.get(OVERRIDES_FIELD)
    listed = overrides.items() if isinstance(overrides, Mapping) else ()  # numbers may have zeros in front
    own = [override for number, override in listed if str(number).lstrip("0") == str(layer).lstrip("0")]
    return repr((cut_fields(part, depth, [layer]), own))
