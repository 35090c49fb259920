"""Sub-networks without some sub-layers or heads, in place: what they are worth can be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.architectures.structures import FINDERS
from hf_layerdrop.errors import KeepLayersError, LayerDropStateError
from hf_layerdrop.injection.changes import Changes, all_or_nothing
from hf_layerdrop.injection.inject import layerdrop_state, put_in, take_out
from hf_layerdrop.injection.injected import find_injected, states_of
from hf_layerdrop.injection.open_blocks import close_block, open_block, turn_of_thread
from hf_layerdrop.injection.own_config import own_config
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.draws import Mask
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers

KeepHeads = Mapping[int, Sequence[int]]


@contextmanager
def structure_sub_network(
    model: PreTrainedModel, keep: Mapping[str, KeepLayers | KeepHeads]
) -> Iterator[dict[str, Mask]]:
    """Run ``model`` with only some of its sub-layers or heads inside the ``with`` block; yield the masks.

    Inside the block nothing is dropped at random, and afterwards all is as before. It is for measuring, not for
    training.

    Args:
        model: A model, in which LayerDrop may be injected with the structures that ``keep`` names.
        keep: By structure, as in ``{"attention": "::2", "head": {0: [0, 1]}}``; by stack and structure
            (``"decoder/ffn"``) on models with several stacks. Sub-layers are given by the indices of their layers, in
            any form that ``keep_layers`` has; in a decoder, a layer's ``attention`` is both of its attentions. Heads
            are given for some of the layers, the others keep theirs; those of cross-attention are counted on from
            those of self-attention.

    Raises:
        KeepLayersError: If ``keep`` names what the model does not have.
        LayerDropStateError: If LayerDrop is injected without such a structure.
        UnsupportedModelError: If the structure is not found in the model's layers.
    """
    named = {_full_name(key, depths_of(model)): value for key, value in keep.items()}
    changes = Changes()
    with turn_of_thread(model):
        try:
            _inject_for(model, {name.rpartition("/")[2] for name in named}, changes)
            open_block(model, changes)
            draws = layerdrop_state(model).draws
            masks = {name: _mask(draws[name], value) for name, value in named.items()}
            for name, draw in draws.items():
                changes.assign(draw, {"paused": True, "fixed": masks.get(name)})
            yield masks
        finally:
            changes.undo()
            close_block(model, changes)


def _inject_for(model: PreTrainedModel, structures: set[str], changes: Changes) -> None:
    """Have these structures injected: they are, or they are for the length of the block, at rate 0."""
    if find_injected(model) is None:
        own_config(model)
        changes.note(partial(_take_out, model))
        with all_or_nothing(model) as of_injection:
            put_in(model, LayerDropConfig(0.0, structure=sorted(structures)), of_injection)
        return
    injected = tuple({name: None for state in states_of(model).values() for name in state.config.structures})
    if missing := sorted(structures - set(injected)):
        raise LayerDropStateError(
            f"LayerDrop is injected with structure {injected!r}, without {missing[0]!r}; call remove_layerdrop first, "
            "or inject both."
        )


def _take_out(model: PreTrainedModel) -> None:
    if find_injected(model) is not None:
        with all_or_nothing(model) as of_removal:
            take_out(model, of_removal)


def _full_name(key: str, depths: Mapping[str, int]) -> str:
    """Return the name of a draw: the stack may be left out where there is one."""
    stack, _, structure = key.rpartition("/")
    allowed = [f"{stack}/{structure}" for stack in depths for structure in FINDERS]
    name = key if stack or len(depths) > 1 else f"{next(iter(depths))}/{structure}"
    if name not in allowed:
        raise KeepLayersError(f"keep names {key!r}; the model has {', '.join(allowed)}.")
    return name


def _mask(draw: StackDraw, kept: Any) -> Mask:
    if draw.structure == "head":
        return tuple(_heads(draw, kept))
    layers = parse_keep_layers(kept, {draw.stack: len(draw.groups)})[draw.stack]
    return tuple(index in layers for index, count in enumerate(draw.groups) for _ in range(count))


def _heads(draw: StackDraw, kept: Any) -> Iterator[bool]:
    if not isinstance(kept, Mapping):
        raise KeepLayersError(f"keep of {draw.name} is {kept!r}; give heads by layer, such as {{0: [0, 1]}}.")
    for layer, heads in kept.items():
        if layer not in range(len(draw.groups)):
            raise KeepLayersError(
                f"keep of {draw.name} names layer {layer!r}; it has {len(draw.groups)} layers (0 to "
                f"{len(draw.groups) - 1})."
            )
        if wrong := [head for head in heads if head not in range(draw.groups[layer])]:
            raise KeepLayersError(
                f"keep of {draw.name} names head {wrong[0]!r} of layer {layer}, which has {draw.groups[layer]} heads "
                f"(0 to {draw.groups[layer] - 1})."
            )
    for layer, count in enumerate(draw.groups):
        yield from (head in kept.get(layer, range(count)) for head in range(count))
