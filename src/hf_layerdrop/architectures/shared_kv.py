"""Layers that borrow from an earlier layer of their stack: keys and values, or the choice of places to attend to.

Such a layer cannot run without its lender, so a lender is never dropped, and a cut that keeps a borrower keeps its
lender too. Who lends to whom is read from the config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_layerdrop.architectures.families import BORROWING_KINDS, KINDS_FIELD, SHARED_TAIL_FIELD, SOURCE_FIELDS


def lenders(config: Mapping[str, Any], depth: int) -> dict[int, int]:
    """Return by its number each layer of a stack that borrows, and the number of the layer it borrows from."""
    found = _sharers_of_their_kind(config, depth)
    for field, (borrower, lender) in BORROWING_KINDS.items():
        found |= _from_last_before(_one_a_layer(config.get(field), depth), borrower, lender)
    for field in SOURCE_FIELDS:
        sources = _one_a_layer(config.get(field), depth)
        found |= {layer: source for layer, source in enumerate(sources) if type(source) is int and source != layer}
    return found


def missing_lender(config: Mapping[str, Any], depth: int, kept: Sequence[int]) -> str | None:
    """Say which kept layer has lost the layer that it borrows from, or return None if none has."""
    for borrower, lender in sorted(lenders(config, depth).items()):
        if borrower in kept and lender not in kept:
            return f"layer {borrower} borrows from layer {lender}; keep both or neither"
    return None


def _one_a_layer(values: Any, depth: int) -> Sequence[Any]:
    """Return a list that has one entry a layer; nothing in place of any other value."""
    return values if isinstance(values, list | tuple) and len(values) == depth else ()


def _from_last_before(kinds: Sequence[Any], borrower: str, lender: str) -> dict[int, int]:
    before = [[i for i in range(layer) if kinds[i] == lender] for layer in range(len(kinds))]
    return {layer: before[layer][-1] for layer, kind in enumerate(kinds) if kind == borrower and before[layer]}


def _sharers_of_their_kind(config: Mapping[str, Any], depth: int) -> dict[int, int]:
    """Return the layers at the end that take keys and values of the last layer of their kind before them."""
    count = config.get(SHARED_TAIL_FIELD)
    if type(count) is not int or not 0 < count < depth:
        return {}
    kinds = _one_a_layer(config.get(KINDS_FIELD), depth) or [None] * depth
    own = range(depth - count)
    found = {layer: [i for i in own if kinds[i] == kinds[layer]] for layer in range(depth - count, depth)}
    return {layer: same[-1] for layer, same in found.items() if same}
