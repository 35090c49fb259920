"""Find where layers keep their own number, under which they file keys and values in a cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

_NUMBER = re.compile(r"(.*_)?(layer|block)_?(idx|index|id|num|number)|layer|idx|index|layer_i")


@dataclass(frozen=True)
class NumberedPart:
    """A part of a layer that knows the layer's number: ``part.field`` is ``layer`` plus ``shift``."""

    part: nn.Module
    field: str
    layer: int
    shift: int


def is_number_name(field: str) -> bool:
    """Tell whether an attribute is named as if it held a layer's number."""
    return _NUMBER.fullmatch(field) is not None


def numbered_parts(layers: Sequence[nn.Module]) -> Iterator[NumberedPart]:
    """Yield the parts of layers that know their layer's number: named so, and going up with the layers by looking."""
    found: dict[str, list[NumberedPart]] = {}
    for index, layer in enumerate(layers):
        for part in layer.modules():
            for field, value in part.__dict__.items():
                if type(value) is int and is_number_name(field):
                    found.setdefault(field, []).append(NumberedPart(part, field, index, value - index))
    for places in found.values():
        if len({place.shift for place in places}) == 1:
            yield from places
