"""Name the stacks of a model after their places in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# The number of a layer in the name of a weight; one of more digits than any has would take Python long to read.
LAYER_NUMBER = r"[0-9]{1,9}"

# Lists of as many parts as a stack may have layers, which are no layers.
_NO_STACK = re.compile(r"(^|[._])conv|feature_extractor|(^|\.)heads?(\.|$)|(^|\.)upscale|class_embed|bbox_embed")


@dataclass(frozen=True)
class Place:
    """Where a stack is: the path of its list, and of the config part that counts it (empty for the model's own)."""

    path: str
    config_path: str = ""


def may_be_stack(path: str) -> bool:
    """Tell by its name whether a list may be a stack."""
    return _NO_STACK.search(path) is None


def stack_name(path: str) -> str:
    """Name a stack after its place in the model: ``encoder``, ``decoder``, or ``layers`` if the path says neither."""
    found = re.findall(r"encoder|decoder", path)
    return found[-1] if found else "layers"


def part_name(config_path: str) -> str:
    """Name a part of a composite model after the config that it has: ``text_config`` is ``text``."""
    return config_path.rpartition(".")[2].removesuffix("_config")


def names_of(places: Sequence[Place]) -> list[str]:
    """Name all stacks of a model: after its parts if it has some, and apart if two would have one name."""
    in_part = Counter(place.config_path for place in places)
    names = [_name(place, alone=in_part[place.config_path] == 1) for place in places]
    for longer in (_with_outer_part, _with_own_name, _with_path):
        taken = Counter(names)
        names = [longer(place, name) if taken[name] > 1 else name for place, name in zip(places, names, strict=True)]
    return names


def _name(place: Place, *, alone: bool) -> str:
    base, part = stack_name(place.path), part_name(place.config_path)
    if not part or part == base:
        return base
    return part if alone else f"{part}_{base}"


def _with_outer_part(place: Place, name: str) -> str:
    outer = part_name(place.config_path.rpartition(".")[0])
    return f"{outer}_{name}" if outer else name


def _with_own_name(place: Place, name: str) -> str:
    return f"{name}_{place.path.rpartition('.')[2]}"


def _with_path(place: Place, name: str) -> str:
    return place.path.replace(".", "_")
