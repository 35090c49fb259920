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
from datetime import timedelta
from functools import cache, partial
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.handing import own_weights

RANKS_TIMEOUT = timedelta(minutes=5)


@dataclass
class _Window:
    """What happened to a stack since the optimizer's last step."""

    ddp: ref[nn.Module]
    ran: set[int] = field(default_factory=set)
    touched: dict[int, ref[nn.Module]] = field(default_factory=dict)
    stepped: bool = False


_windows: WeakKeyDictionary[Any, _Window] = WeakKeyDictionary()
_checks = count()
_checked: WeakSet[nn.Module] = WeakSet()


def note_forward(draw: Any, mask: Sequence[bool]) -> None:
    """Remember which layers run in a training forward, if the model is trained by DDP."""
    ddp = _active_ddp()
    if ddp is None:
        return
    if ddp not in _checked:
        _check_checkpointing(ddp)
        _checked.add(ddp)
    _register_once()
    window = _windows.setdefault(draw, _Window(ref(ddp)))
    if window.stepped:
        window.ran, window.touched, window.stepped = set(), {}, False
    window.ran.update(layer for layer, kept in enumerate(mask) if kept)


def with_zero_gradients(hidden_states: torch.Tensor, draw: Any, index: int, layer: nn.Module) -> torch.Tensor:
    """Return the hidden states as they are; where DDP waits for gradients of the dropped layer, they become zero."""
    ddp, window = _active_ddp(), _windows.get(draw)
    if ddp is None or window is None or not torch.is_grad_enabled() or not ddp.require_backward_grad_sync:
        return hidden_states
    # Noted for a sub-layer in any case: the layer around it may have run in this step, and then names its weights too.
    window.touched[index] = ref(layer)
    if ddp.find_unused_parameters and index not in window.ran:
        return hidden_states
    return _Touch.apply(hidden_states, *(weight for weight in layer.parameters() if weight.requires_grad))


def has_other_ranks() -> bool:
    """Tell whether this process is one of several that have met."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_shared(stack_owner: nn.Module) -> bool:
    """Tell whether ranks train this model together: by DDP, FSDP, or DeepSpeed's ZeRO-3."""
    if not has_other_ranks():
        return False
    sharded = any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in stack_owner.modules())
    return sharded or _active_ddp() is not None or any(hasattr(weight, "ds_id") for weight in stack_owner.parameters())


def refuse_replica(stack_owner: nn.Module) -> None:
    """Refuse a copy of the model that DataParallel runs in a thread.

    Raises:
        LayerDropStateError: If ``stack_owner`` is in such a copy, and trains.
    """
    if getattr(stack_owner, "_is_replica", False) and stack_owner.training:
        raise LayerDropStateError(
            "DataParallel runs copies of the model in threads, which cannot draw the same layers; "
            "start the training with accelerate launch or torchrun instead (DistributedDataParallel)."
        )


def check_ranks_agree(name: str, fingerprint: str) -> None:
    """Compare what decides the draws with the other ranks, through the store that they met in: no device waits for it.

    Every rank has to call it as often as the others.

    Raises:
        LayerDropStateError: If a rank would draw other layers, or does not answer in time.
    """
    rank, size = distributed.get_rank(), distributed.get_world_size()
    store = distributed.distributed_c10d._get_default_store()
    key = f"hf_layerdrop/{next(_checks)}"
    ours = f"{name}: {fingerprint}"
    store.set(f"{key}/{rank}", ours)
    # Each compares itself with rank 0, and rank 0 with all, so that whoever waits for whom, nobody trains on.
    for other in range(1, size) if rank == 0 else [0]:
        try:
            store.wait([f"{key}/{other}"], RANKS_TIMEOUT)
        except Exception as error:
            raise LayerDropStateError(
                f"Rank {other} did not say how it draws the layers of the {name} within {RANKS_TIMEOUT}; change "
                "rates and seeds on every rank at the same step."
            ) from error
        theirs = store.get(f"{key}/{other}").decode()
        if theirs != ours:
            raise LayerDropStateError(
                f"Ranks {rank} and {other} would drop different layers, {ours} against {theirs}; give every rank the "
                "same config and step."
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
        if ddp is None or not any(id(weight) in owned for weight in ddp.parameters()):
            continue
        for index, reference in window.touched.items():
            layer = reference()
            weights = [weight for weight in own_weights(layer) if id(weight) in owned] if layer is not None else []
            for weight in weights if index not in window.ran else ():
                weight.grad = None
        window.stepped = True


def _check_checkpointing(ddp: DistributedDataParallel) -> None:
    """Refuse what torch cannot do for any model, before it fails in a backward pass with another reason."""
    if not ddp.find_unused_parameters:
        return
    for module in ddp.modules():
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        active = getattr(module, "gradient_checkpointing", False) and isinstance(checkpoint, partial)
        if active and checkpoint is not None and checkpoint.keywords.get("use_reentrant"):
            raise LayerDropStateError(
                "DDP with find_unused_parameters=True does not work with reentrant gradient checkpointing, with or "
                "without LayerDrop; pass activation_checkpointing_kwargs={'use_reentrant': False}."
            )


def _active_ddp() -> DistributedDataParallel | None:
    """Return the DDP module whose forward is running: the model that it wraps does not know it."""
    return DistributedDataParallel._get_active_ddp_module()
