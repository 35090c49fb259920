"""How many layers a config says that there are, and whether the files have weights of so many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from hf_layerdrop.architectures.families import DEPTH_FIELDS
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, TensorInfo
from hf_layerdrop.errors import CheckpointError

DEPTHS = frozenset(chain(*DEPTH_FIELDS.values()))  # the fields that may count layers

# A model of so many layers is built in under a second; more are built only if the files hold weights for them.
_QUICK_DEPTH = 256
_QUICK_WEIGHTS = 5_000  # the same of weights
_LONGEST_NAME, _MOST_PARTS = 1000, 32


def check_depths(headers: CheckpointHeaders) -> None:
    """Refuse a config that counts far more layers than the files have weights of, before a model of so many is built.

    Raises:
        CheckpointError: If it does.
    """
    held = 0
    for field, depth in _deep(headers.config):
        if depth > (held := held or _most_numbered(headers.tensors)):
            raise CheckpointError(
                f"config.json says {field} = {depth}, but the weights are numbered for {held} layers at most: use the "
                "config that belongs to these weights, or download the checkpoint again."
            )


def most_weights(held: int) -> int:
    """Return how many weights a model may be built with whose files hold so many; see `built_on_meta`."""
    return _QUICK_WEIGHTS + 2 * held


def is_deep(config: Mapping[str, Any]) -> bool:
    """Tell a config of which a model takes long to build, so that the files are worth a look before."""
    return any(True for _ in _deep(config))


def _deep(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    found = _declared_depths(config)
    return ((field, depth) for field, depth in found if type(depth) is int and depth > _QUICK_DEPTH)


def _declared_depths(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a config and of its parts that may count layers."""
    for name, value in config.items():
        if name in DEPTHS:
            yield prefix + name, value
        elif name == "depths" and isinstance(value, list):  # of a hierarchical model, one a stage
            yield from ((prefix + name, depth) for depth in value)
        elif isinstance(value, Mapping):
            yield from _declared_depths(value, f"{prefix}{name}.")


def _most_numbered(tensors: Mapping[str, TensorInfo]) -> int:
    """Return how many numbers stand, at most, at one place in names of weights that are alike before it."""
    numbers: dict[str, set[str]] = {}
    for name in tensors:
        parts = name[:_LONGEST_NAME].split(".", _MOST_PARTS)  # of 100 KB, each part would cost as much
        for place, part in enumerate(parts):
            if part.isdecimal():
                numbers.setdefault(".".join(parts[:place]), set()).add(part)
    return max(map(len, numbers.values()), default=0)
