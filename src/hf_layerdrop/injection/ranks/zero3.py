"""Dropped layers under DeepSpeed's ZeRO-3, which steps with whatever stands in its gradient buffer.

The buffer is written where a parameter gets a gradient, and never emptied: for a layer that was dropped in a whole step
it holds the gradient of the last step in which the layer ran, and the optimizer would apply that again (read and seen
in DeepSpeed 0.19.8). What is left is a gradient of zero, with which AdamW still moves a layer by momentum and weight
decay: all parameters are stepped as flat tensors, which have no place for a missing gradient.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.recomputation import in_backward


def clear_stale_gradients(layer: nn.Module) -> None:
    """Set the gradients of a dropped layer to zero, if DeepSpeed shards it and the step has none of this layer yet.

    Raises:
        LayerDropStateError: If DeepSpeed would lose gradients of layers that are dropped.
    """
    if "deepspeed" not in sys.modules or in_backward():
        return
    for weight in layer.parameters():
        if not (hasattr(weight, "ds_id") and weight.requires_grad):
            continue
        optimizer: Any = getattr(weight, compat.ZERO_OPTIMIZER.name, None)
        if optimizer is None:
            continue
        _check_offload(optimizer)
        # From the second micro-step on, gradients of the first may be there, and new ones are added.
        if optimizer.micro_step_id == 0:
            partition = weight.ds_tensor  # type: ignore[attr-defined]
            optimizer.set_local_grad_for_param(torch.zeros_like(partition), weight)


def _check_offload(optimizer: Any) -> None:
    """Refuse what DeepSpeed does not do: it offloads gradients of those that got one in the last micro-step, alone."""
    if optimizer.offload_optimizer and optimizer.gradient_accumulation_steps > 1:
        raise LayerDropStateError(
            "ZeRO-3 with offload_optimizer loses the gradients of a layer that is dropped in the last of several "
            "micro-steps; set gradient_accumulation_steps to 1, or leave offload_optimizer out."
        )
