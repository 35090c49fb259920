"""See to it that a draw leaves something to train: where all that is trained lies in few layers, it may drop them all.

Without one of them the loss has no gradient, and its backward pass fails. The rule: if a draw drops every layer of a
stack that holds trainable weights, and no weight outside of what may be dropped is trainable, the one of those layers
runs whose number in the draw lies highest above that below which it is dropped. So it depends on the draw alone, and is
the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from torch import nn

from hf_layerdrop import compat
from hf_layerdrop.injection.call_stack import running_module
from hf_layerdrop.samplers.draws import Mask


class _Draw(Protocol):
    list_name: str
    structure: str


def with_one_to_train(
    draw: _Draw, owner: nn.Module, mask: Mask, allowed: Sequence[bool] | None, margins: Callable[[], Sequence[int]]
) -> Mask:
    """Return ``mask``, with one more group if it drops all that is trained; of those that are ``allowed``, if given.

    It is called in each training forward, so the common case is quick: a weight that was trained outside of the layers
    when it was last looked at, and still is.
    """
    witness = _outside.get(draw) or _look_outside(draw, owner)
    if witness():
        return mask
    groups = _groups_of(draw, owner)
    if any(mask[place] and _trains(group) for place, group in groups):
        return mask
    trained = [place for place, group in groups if (allowed is None or allowed[place]) and _trains(group)]
    if not trained or _look_outside(draw, owner)():
        return mask
    by_margin = margins()
    kept_too = max(trained, key=by_margin.__getitem__)
    return tuple(kept or place == kept_too for place, kept in enumerate(mask))


class _Witness:
    """A weight outside of all layers; held by its module, in which FSDP may put another in its place."""

    def __init__(self, module: nn.Module, name: str = "") -> None:
        self._module, self._name = ref(module), name  # no name if none was found

    def __call__(self) -> bool:
        """Tell whether it is trained."""
        module = self._module()
        weight = getattr(module, _WEIGHTS).get(self._name) if module is not None else None
        return weight is not None and weight.requires_grad


_WEIGHTS, _PARTS = compat.PARAMETERS.name, compat.CHILDREN.name
_outside: WeakKeyDictionary[_Draw, _Witness] = WeakKeyDictionary()


def _trains(group: nn.Module) -> bool:
    """Tell whether any weight is trained: in a fraction of the time that ``parameters()`` takes to the first one."""
    return any(weight is not None and weight.requires_grad for weight in getattr(group, _WEIGHTS).values()) or any(
        part is not None and _trains(part) for part in getattr(group, _PARTS).values()
    )


def _groups_of(draw: _Draw, owner: nn.Module) -> Sequence[tuple[int, nn.Module]]:
    """Return what is drawn with its place in the mask; nothing for heads, without which a layer trains all the same."""
    layers = getattr(owner, draw.list_name, ())
    if draw.structure == "layer":
        return list(enumerate(layers))
    parts = [part for layer in layers for part in layer.__dict__.get("_layerdrop_sub_layers", ())]
    return [(place, weights) for part_draw, place, weights in parts if part_draw is draw]


def _look_outside(draw: _Draw, owner: nn.Module) -> _Witness:
    """Look for a weight that is trained outside of all that may be dropped, in the whole model that runs."""
    pending: list[nn.Module] = [running_module(owner)]
    dropped: set[nn.Module] = set()
    while pending:
        module = pending.pop()
        if "_layerdrop_place" in module.__dict__ or module in dropped:
            continue
        dropped.update(part for _, _, weights in module.__dict__.get("_layerdrop_sub_layers", ()) for part in weights)
        for name, weight in getattr(module, _WEIGHTS).items():
            if weight is not None and weight.requires_grad:
                _outside[draw] = _Witness(module, name)
                return _outside[draw]
        pending.extend(module.children())
    _outside[draw] = _Witness(owner)
    return _outside[draw]
