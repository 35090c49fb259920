"""Inject LayerDrop into a model in place, and remove it without a trace.

`skipping.py` and `masking.py` are the two ways in which layers are dropped; see `class_swap.py` for why the class of a
layer is changed rather than the layer wrapped. Any number of models may be injected side by side in one module: what
is said to the module is said to all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from hf_layerdrop.architectures.families import bias_in_first_block, returned_arguments
from hf_layerdrop.architectures.residuals import check_residuals
from hf_layerdrop.architectures.shared_kv import lenders
from hf_layerdrop.architectures.stacks import Stack, find_stacks
from hf_layerdrop.architectures.wrappers import check_module, transformers_model
from hf_layerdrop.checkpoints.provenance import CONFIG_KEY, saved_provenance
from hf_layerdrop.errors import CheckpointError, LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.changes import Changes, all_or_nothing
from hf_layerdrop.injection.class_swap import adopt, release
from hf_layerdrop.injection.compiling import refuse_compiled
from hf_layerdrop.injection.first_block_bias import lend_bias, return_bias
from hf_layerdrop.injection.injected import STATE_ATTRIBUTE, find_injected, injected_models, placed_states, states_of
from hf_layerdrop.injection.masking import MaskedLayer, MaskedStack, MaskedStackOwner
from hf_layerdrop.injection.native import restore_native, switch_off_native
from hf_layerdrop.injection.open_blocks import for_good
from hf_layerdrop.injection.own_config import own_config
from hf_layerdrop.injection.rows.layer import adopt_rows, release_rows
from hf_layerdrop.injection.rows.refusal import check_rows
from hf_layerdrop.injection.skipping import SkippableLayer, SkippingStackOwner
from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.injection.state import LayerDropState, forget, note_living
from hf_layerdrop.injection.states import LayerDropStates
from hf_layerdrop.injection.structure_drop import StructureDrop, release_owner, release_parts
from hf_layerdrop.samplers.config import LayerDrop, LayerDropConfig

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

# The names under which models that were pickled before `skipping.py` was a module look for its classes.
_StackOwner, _DroppableLayer = SkippingStackOwner, SkippableLayer


def inject_layerdrop(model: M, config: LayerDrop) -> M:
    """Make ``model`` drop layers, or what the config names as structure, while it trains, in place; return it (3.2.1).

    Weights, their names and the state dict stay as they are; ``eval()``, ``generate`` and rate 0 give what they gave
    before. The model's own LayerDrop, if it has one, is switched off, so that it is never applied on top. A second
    call replaces the first. What PEFT, Sentence Transformers or Lightning wrap around a transformers model may be
    given in its place. A model that shares its config with another gets a copy of its own. An interrupt leaves the
    model as it was.

    Raises:
        LayerDropConfigError: If the config does not fit the model's stacks, or scales what the layers of a post-norm
            model add.
        LayerDropStateError: If the model is a part of an injected one, or is called within a block of `sub_network`.
        UnsupportedModelError: If no stack of layers is found, the structure is not found in its layers, or these cannot
            run on some rows of a batch, which ``granularity="row"`` asks for.
    """
    config = LayerDropConfig.of(config)
    check_module(model)
    refuse_compiled(model)
    inner = transformers_model(model)
    with for_good("inject_layerdrop", inner):
        own_config(inner)
        with all_or_nothing(inner) as changes:
            put_in(inner, config, changes)
    return model


def put_in(inner: PreTrainedModel, config: LayerDropConfig, changes: Changes) -> None:
    """Do what `inject_layerdrop` does, also within a block; ``changes`` undoes it until the model is changed again."""
    stacks = find_stacks(inner)
    check_free(inner, stacks)
    depths = {name: stack.depth for name, stack in stacks.items()}
    lent = {name: _lent(vars(stack.config(inner.config)), stack.depth) for name, stack in stacks.items()}
    rates = config.rates_for(depths)
    check_lenders(lent, config, rates)
    for name, stack in stacks.items() if config.granularity == "row" else ():
        check_rows(stack.layers(inner) if any(rates[name]) else (), lent[name])
    if config.scale == "kept":
        check_residuals(inner, {name: stack for name, stack in stacks.items() if any(rates[name])})
    parts = {name: StructureDrop(stack.layers(inner), config.structures) for name, stack in stacks.items()}
    groups = {name: found.groups for name, found in parts.items()}
    state = LayerDropState(config, depths, groups)
    state.lent = lent
    for injected in injected_models(inner).values():
        take_out(injected, changes)
    state.originals = {CONFIG_KEY: getattr(inner.config, CONFIG_KEY, None), "native": switch_off_native(inner)}
    _replace_damaged(inner.config)
    setattr(inner, STATE_ATTRIBUTE, state)
    adopt_stack = _mask_stack if config.execution == "mask" else _adopt_stack
    for name, stack in stacks.items():
        for draw in state.draws_of(name):
            draw.list_name = stack.path.rpartition(".")[2]
        parts[name].adopt_owner(stack.owner(inner), state.draws_of(name))
        if name in state.draws:
            adopt_stack(inner, stack, state.draws[name])
            if config.granularity == "row":
                handed_on = returned_arguments(stack.model_type)
                adopt_rows(stack.layers(inner), state.draws[name], handed_on, lent[name])
        parts[name].adopt_parts()
    if state.drops:
        write_down(inner, trained_with=config.to_dict())
    elif saved_provenance(inner.config):
        write_down(inner)


def _replace_damaged(config: Any) -> None:
    """Begin the entry of the config anew if it cannot be read: what is injected now is known without it."""
    try:
        saved_provenance(config)
    except CheckpointError as error:
        logger.warning("%s It is written anew.", error)
        delattr(config, CONFIG_KEY)


def check_free(model: nn.Module, stacks: Mapping[str, Stack]) -> None:
    """Refuse a part of a model in which LayerDrop is injected, whose draws know nothing of what happens to the part.

    Raises:
        LayerDropStateError: If it is one.
    """
    own = {id(vars(part)[STATE_ATTRIBUTE].agreement) for part in injected_models(model).values()}
    for stack in stacks.values():
        owner = vars(stack.owner(model))
        draws = (*owner.get("_layerdrop_draws", ()), *owner.get("_layerdrop_parts", ()))
        if any(id((draw.draw if isinstance(draw, MaskedStack) else draw).agreement) not in own for draw in draws):
            raise LayerDropStateError(
                f"This {type(model).__name__} is a part of a model in which LayerDrop is injected; change the rates of "
                "that model by set_rates, cut that model, or call remove_layerdrop on it first."
            )


def _lent(config: Mapping[str, Any], depth: int) -> tuple[int, ...]:
    """Return the layers of a stack from which later ones borrow."""
    return tuple(sorted(set(lenders(config, depth).values())))


def check_lenders(
    lent: Mapping[str, Sequence[int]], config: LayerDropConfig, rates: Mapping[str, Sequence[float]]
) -> None:
    """Refuse to drop a layer from which a later one borrows, and which it cannot run without."""
    if not {"layer", "attention"} & set(config.structures):
        return
    for name, layers in lent.items():
        if open_to_draw := [layer for layer in layers if rates[name][layer]]:
            raise LayerDropConfigError(
                f"In the stack {name!r} later layers borrow from layers {', '.join(map(str, open_to_draw))} and "
                f"cannot run without them; give never_drop={{{name!r}: {tuple(layers)}}} to inject_layerdrop."
            )


def remove_layerdrop(model: M) -> M:
    """Undo `inject_layerdrop` exactly, in place, in every injected model inside of ``model``, and return it.

    Raises:
        LayerDropStateError: If LayerDrop is not injected, or this is called within a block of `sub_network`.
    """
    injected_model(model)
    roots = injected_models(model).values()
    with for_good("remove_layerdrop", *roots), all_or_nothing(*roots) as changes:
        for root in roots:
            take_out(root, changes)
    return model


def take_out(root: nn.Module, changes: Changes) -> None:
    """Remove LayerDrop from one injected model, also within a block; ``changes`` undoes what is not in the model."""
    state = getattr(root, STATE_ATTRIBUTE)
    changes.note(partial(note_living, state))
    for name, stack in find_stacks(root).items():
        release_parts(stack.layers(root))
        release_rows(stack.layers(root))
        if name in state.draws:
            _release_stack(root, stack)
        release_owner(stack.owner(root))
    _restore_config(root, state.originals)
    delattr(root, STATE_ATTRIBUTE)
    forget(id(state))


def set_step(model: nn.Module, step: int, micro_step: int = 0) -> None:
    """Tell the draws which optimizer step begins, for training loops without Trainer, whose steps are followed anyway.

    All injected models inside of ``model`` are told, and draw apart from each other, also with one seed.

    Raises:
        LayerDropConfigError: If ``step`` or ``micro_step`` is negative or not a whole number.
        LayerDropStateError: If LayerDrop is not injected.
    """
    for name, value in (("step", step), ("micro_step", micro_step)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise LayerDropConfigError(f"{name} is {value!r}; it must be a whole number, 0 or more.")
    injected_model(model)
    for state in placed_states(model).values():
        state.begin_step(step, micro_step)


def layerdrop_state(model: nn.Module) -> LayerDropState | LayerDropStates:
    """Return the LayerDrop state of an injected model; raw training loops save and load its ``state_dict``.

    Of a module that holds several injected models, it is one state that drives all of them, whose stacks, draws and
    saved state are named by the path of each model, such as ``query.encoder``.

    Raises:
        LayerDropStateError: If LayerDrop is not injected.
    """
    injected_model(model)
    states = states_of(model)
    return next(iter(states.values())) if len(states) == 1 else LayerDropStates(states)


def injected_model(model: nn.Module) -> nn.Module:
    """Return the model in which LayerDrop is injected: ``model``, or the first one that a wrapper such as DDP holds.

    Raises:
        LayerDropStateError: If there is none.
    """
    injected = find_injected(model)
    if injected is None:
        raise LayerDropStateError(
            f"LayerDrop is not injected in this {type(model).__name__}; call inject_layerdrop first."
        )
    return injected


def write_down(model: nn.Module, **entries: Any) -> None:
    """Write the rates in use, and ``entries``, into ``config.hf_layerdrop``, which ``save_pretrained`` saves."""
    state = getattr(model, STATE_ATTRIBUTE)
    saved = saved_provenance(model.config)
    known = {"seed": state.seed, "sampler_version": state.sampler_version}
    setattr(model.config, CONFIG_KEY, {**saved, "rates": state.rates_to_save(), **state.learned(), **known, **entries})


def _restore_config(model: PreTrainedModel, originals: Mapping[str, Any]) -> None:
    """Put back what the config said before LayerDrop was injected."""
    restore_native(model, originals["native"])
    model.config.__dict__.pop(CONFIG_KEY, None)
    if originals[CONFIG_KEY] is not None:
        setattr(model.config, CONFIG_KEY, originals[CONFIG_KEY])


def _adopt_stack(model: nn.Module, stack: Stack, draw: StackDraw) -> None:
    for index, layer in enumerate(stack.layers(model)):
        adopt(layer, SkippableLayer)
        layer.__dict__["_layerdrop_place"] = (draw, index)  # no weight, so past nn.Module
        layer.__dict__["_layerdrop_handed_on"] = returned_arguments(stack.model_type)
    if bias := bias_in_first_block(stack.model_type):
        lend_bias(list(stack.layers(model)), bias)
    _adopt_owner(stack.owner(model), SkippingStackOwner, draw)


def _mask_stack(model: nn.Module, stack: Stack, draw: StackDraw) -> None:
    layers, owner = list(stack.layers(model)), stack.owner(model)
    masked = MaskedStack(draw, owner, layers)
    if bias := bias_in_first_block(stack.model_type):
        lend_bias(layers, bias)
    for layer, place in zip(layers, masked.places, strict=True):
        adopt(layer, MaskedLayer)
        layer.__dict__["_layerdrop_place"] = place
    _adopt_owner(owner, MaskedStackOwner, masked)


def _adopt_owner(owner: nn.Module, mixin: type, draw: StackDraw | MaskedStack) -> None:
    """Let the module that loops over a stack draw; it may own another stack already."""
    if "_layerdrop_draws" not in owner.__dict__:
        adopt(owner, mixin)
    owner.__dict__.setdefault("_layerdrop_draws", []).append(draw)


def _release_stack(model: nn.Module, stack: Stack) -> None:
    owner = stack.owner(model)
    if "_layerdrop_draws" in owner.__dict__:  # else it owned another stack too, and is released
        release(owner, MaskedStackOwner if isinstance(owner, MaskedStackOwner) else SkippingStackOwner)
        del owner._layerdrop_draws
    return_bias(list(stack.layers(model)))
    for layer in stack.layers(model):
        release(layer, MaskedLayer if isinstance(layer, MaskedLayer) else SkippableLayer)
        del layer._layerdrop_place
        layer.__dict__.pop("_layerdrop_handed_on", None)
