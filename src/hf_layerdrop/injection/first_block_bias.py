"""The position bias that the first block of T5 and its kin owns for all: lend it in training, move it in a cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from hf_layerdrop.architectures.families import FirstBlockBias
from hf_layerdrop.injection.passthrough import LENT

# On a borrowing module: what its attributes were before.
_BORROWED = "_layerdrop_borrowed"


def lend_bias(layers: Sequence[nn.Module], bias: FirstBlockBias) -> None:
    """Let every block compute the bias with the weights of the first one, in place: whichever runs first then does.

    The borrowed module is no part of the borrower's state dict or parameters.
    """
    for path, owner in owners_of_bias(layers[0], bias):
        for name, child in owner.named_children():
            if name in bias.weights:
                child.__dict__[LENT] = True
        for layer in layers[1:]:
            borrower = layer.get_submodule(path)
            attributes = borrowed_attributes(owner, bias)
            borrower.__dict__[_BORROWED] = {name: borrower.__dict__.get(name) for name in attributes}
            borrower.__dict__.update(attributes)


def return_bias(layers: Sequence[nn.Module]) -> None:
    """Undo `lend_bias`, in place."""
    for layer in layers:
        for part in layer.modules():
            part.__dict__.pop(LENT, None)
            for name, value in part.__dict__.pop(_BORROWED, {}).items():
                if value is None:
                    del part.__dict__[name]
                else:
                    part.__dict__[name] = value


def owners_of_bias(first: nn.Module, bias: FirstBlockBias) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the first block that hold the bias, with their paths in it."""
    for path, part in first.named_modules():
        if any(name in bias.weights for name, _ in part.named_children()):
            yield path, part


def borrowed_attributes(owner: nn.Module, bias: FirstBlockBias) -> dict[str, Any]:
    """Return the attributes that make a module one that computes the bias."""
    modules: dict[str, Any] = {name: child for name, child in owner.named_children() if name in bias.weights}
    return {**modules, **({bias.flag: True} if bias.flag else {})}
