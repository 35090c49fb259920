"""Dropped layers on several ranks: all draw the same, and gradients are those that one process would have.

DistributedDataParallel waits for the gradient of every parameter. Without ``find_unused_parameters`` a dropped layer
would leave it waiting; with it, gradients that the layer got in an earlier micro-step of the same step would not be
reduced. In both cases the dropped layer's parameters are given a zero gradient, through an identity that names them. It
is taken away again before the optimizer steps, if the layer was dropped in all of the step's forwards: AdamW would
otherwise move the layer by momentum and weight decay.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.passthrough import own_weights


@dataclass
class _Window:
    """What happened to a stack since the last step of an optimizer, which may come again before the stack does."""

    ddp: ref[nn.Module]
    ran: set[int] = field(default_factory=set)
    touched: dict[int, ref[nn.Module]] = field(default_factory=dict)
    stepped: WeakSet[torch.optim.Optimizer] = field(default_factory=WeakSet)


_active_ddp, _IS_REPLICA = compat.ACTIVE_DDP.value, compat.IS_REPLICA.name

_windows: WeakKeyDictionary[Any, _Window] = WeakKeyDictionary()
_checked: WeakSet[nn.Module] = WeakSet()


def note_forward(draw: Any, mask: Sequence[bool]) -> None:
    """Remember which layers run in a training forward, if the model is trained by DDP."""
    ddp = active_ddp()
    if ddp is None:
        return
    if ddp not in _checked:
        _check_checkpointing(ddp)
        _checked.add(ddp)
    _register_once()
    window = _windows.setdefault(draw, _Window(ref(ddp)))
    if window.stepped:
        window = _windows[draw] = _Window(ref(ddp))
    window.ran.update(layer for layer, kept in enumerate(mask) if kept)


def with_zero_gradients(hidden_states: torch.Tensor, draw: Any, index: int, layer: nn.Module) -> torch.Tensor:
    """Return the hidden states as they are; where DDP waits for gradients of the dropped layer, they become zero."""
    ddp, window = active_ddp(), _windows.get(draw)
    if ddp is None or window is None or not torch.is_grad_enabled() or not ddp.require_backward_grad_sync:
        return hidden_states
    # Noted for a sub-layer in any case: the layer around it may have run in this step, and then names its weights too.
    window.touched[index] = ref(layer)
    if ddp.find_unused_parameters and index not in window.ran:
        return hidden_states
    return _Touch.apply(hidden_states, *(weight for weight in layer.parameters() if weight.requires_grad))


def active_ddp() -> DistributedDataParallel | None:
    """Return the DDP module whose forward is running: the model that it wraps does not know it."""
    return _active_ddp()


def refuse_replica(stack_owner: nn.Module) -> None:
    """Refuse a copy of the model that DataParallel runs in a thread.

    Raises:
        LayerDropStateError: If ``stack_owner`` is in such a copy, and trains.
    """
    if vars(stack_owner).get(_IS_REPLICA) and stack_owner.training:
        raise LayerDropStateError(
            "DataParallel runs copies of the model in threads, which cannot draw the same layers; "
            "start the training with accelerate launch or torchrun instead (DistributedDataParallel)."
        )


def leave_ranks() -> None:
    """Leave the process group at the end of a run, where one was joined.

    The wrapped models go first. The last that holds a group of gloo ends its threads: torch lets go of Python's lock
    before it waits for them if that is the group's own owner, but not if it is the reducer of a DDP model, and then
    waits for ever when a thread needs the lock to free the last all-reduce (seen with torch 2.13).
    """
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


class _Touch(torch.autograd.Function):
    """Hand the hidden states on, and give the parameters named beside them a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.weights = weights
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, *(weight.new_zeros(()).expand_as(weight) for weight in ctx.weights)


@cache
def _register_once() -> None:
    register_optimizer_step_pre_hook(_remove_zero_gradients)


def _remove_zero_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Take away, before a step, the gradients of layers that were dropped in all its forwards: DDP alone made them."""
    owned = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for window in _windows.values():
        ddp = window.ddp()
        if ddp is None or optimizer in window.stepped or not any(id(weight) in owned for weight in ddp.parameters()):
            continue  # stepped: since then this rank has not run the stack, but another may have
        for index, reference in window.touched.items():
            layer = reference()
            weights = [weight for weight in own_weights(layer) if id(weight) in owned] if layer is not None else []
            for weight in weights if index not in window.ran else ():
                weight.grad = None
        window.stepped.add(optimizer)


def _check_checkpointing(ddp: DistributedDataParallel) -> None:
    """Refuse what torch cannot do for any model, before it fails in a backward pass with another reason."""
    if not ddp.find_unused_parameters:
        return
    for module in ddp.modules():
        checkpoint = getattr(module, compat.CHECKPOINTING.name, None)
        active = getattr(module, "gradient_checkpointing", False) and isinstance(checkpoint, partial)
        if active and checkpoint is not None and checkpoint.keywords.get("use_reentrant"):
            raise LayerDropStateError(
                "DDP with find_unused_parameters=True does not work with reentrant gradient checkpointing, with or "
                "without LayerDrop; pass activation_checkpointing_kwargs={'use_reentrant': False}."
            )
