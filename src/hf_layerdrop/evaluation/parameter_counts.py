"""Count the parameters of many sub-networks of one model: each layer is looked at once, and none is cut for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

from torch import nn

from hf_layerdrop.architectures.families import bias_in_first_block
from hf_layerdrop.injection.first_block_bias import owners_of_bias
from hf_layerdrop.pruning.prune import Cutter

Layer = tuple[str, int]


def parameters_of(cutter: Cutter, model: nn.Module, kept: Mapping[str, Sequence[int]]) -> int:
    """Count the parameters of a sub-network, tied weights once.

    Raises:
        UnsupportedModelError: If the model cannot be cut to it.
    """
    cutter.check(kept)
    if cutter not in _counts:
        _counts[cutter] = _Counts(cutter, model)
    return _counts[cutter].of(kept)


class _Counts:
    """The sizes of the weights of a model by the layers that hold them."""

    def __init__(self, cutter: Cutter, model: nn.Module) -> None:
        sizes = {id(weight): weight.numel() for weight in model.parameters()}
        stays = {id(each) for each in (*_outside(model, list(cutter.lists.values())), *_moved(cutter))}
        holders: dict[int, set[Layer]] = {}
        for stack, layers in cutter.lists.items():
            for number, layer in enumerate(layers):
                for part in layer.parameters():
                    holders.setdefault(id(part), set()).add((stack, number))
        self._always = sum(size for weight, size in sizes.items() if weight in stays or weight not in holders)
        self._by_holders: dict[frozenset[Layer], int] = {}
        for weight, layers_with_it in holders.items():
            if weight not in stays:
                place = frozenset(layers_with_it)
                self._by_holders[place] = self._by_holders.get(place, 0) + sizes[weight]

    def of(self, kept: Mapping[str, Sequence[int]]) -> int:
        """Add up what stays."""
        left = {(stack, number) for stack, numbers in kept.items() for number in numbers}
        return self._always + sum(size for place, size in self._by_holders.items() if not left.isdisjoint(place))


def _outside(module: nn.Module, lists: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the weights that are reached past all layers."""
    if any(module is layers for layers in lists):
        return
    yield from module.parameters(recurse=False)
    for child in module.children():
        yield from _outside(child, lists)


def _moved(cutter: Cutter) -> Iterator[nn.Parameter]:
    """Yield what the first block owns for all, which goes to the first block that is kept."""
    for name, stack in cutter.stacks.items():
        if (bias := bias_in_first_block(stack.model_type)) is None:
            continue
        for _, owner in owners_of_bias(cutter.lists[name][0], bias):
            for child, part in owner.named_children():
                if child in bias.weights:
                    yield from part.parameters()


_counts: WeakKeyDictionary[Cutter, _Counts] = WeakKeyDictionary()
