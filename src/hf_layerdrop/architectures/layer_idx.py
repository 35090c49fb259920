"""Find where layers keep their own number, under which they file keys and values in a cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

_NUMBER = re.compile(r"(.*_)?(layer|block)_?(idx|index|id|num|number)|layer|idx|index|layer_i")


@dataclass(frozen=True)
class NumberedPart:
    """A part of a layer that knows the layer's number: ``part.field`` is ``layer`` times ``stride`` plus ``shift``.

    The stride is the number of places that one layer has in a cache: more than one where it has several attentions.
    """

    part: nn.Module
    field: str
    layer: int
    shift: int
    stride: int = 1

    def at(self, layer: int) -> int:
        """Return what the part would know as that of another layer."""
        return layer * self.stride + self.shift


def is_number_name(field: str) -> bool:
    """Tell whether an attribute is named as if it held a layer's number."""
    return _NUMBER.fullmatch(field) is not None


def numbered_parts(layers: Sequence[nn.Module]) -> Iterator[NumberedPart]:
    """Yield the parts of layers that know their layer's number: named so, and going up with the layers by looking."""
    found: dict[str, list[tuple[str, NumberedPart]]] = {}
    for index, layer in enumerate(layers):
        for path, part in layer.named_modules():
            for field, value in part.__dict__.items():
                if type(value) is int and is_number_name(field):
                    place = NumberedPart(part, field, index, value - index)
                    found.setdefault(field, []).append((path, place))
    for places in found.values():
        if len({place.shift for _, place in places}) == 1:
            yield from (place for _, place in places)
        else:
            yield from _strided(places, len(layers))


def _strided(places: Sequence[tuple[str, NumberedPart]], depth: int) -> Iterator[NumberedPart]:
    """Yield the parts whose number goes up by the same step from each layer to the next, path by path."""
    for path in dict.fromkeys(path for path, _ in places):
        same = [place for other, place in places if other == path]
        values = [place.layer + place.shift for place in same]
        steps = {after - before for before, after in pairwise(values)}
        if len(same) == depth and len(steps) == 1 and (step := steps.pop()) > 0:
            yield from (NumberedPart(place.part, place.field, place.layer, values[0], step) for place in same)
