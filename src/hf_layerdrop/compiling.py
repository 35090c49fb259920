"""Keep LayerDrop and ``torch.compile`` apart: what skips layers stays out of graphs, or a graph would be one draw."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hf_layerdrop.errors import LayerDropStateError

_logger = logging.getLogger(__name__)

ADVICE = (
    "LayerDrop with execution='skip' decides in Python which layers run, so that a whole model cannot be one graph; "
    "compile its layers one by one (regional compilation: layer.compile(), or accelerate's "
    "TorchDynamoPlugin(use_regional_compilation=True)), or inject LayerDropConfig(..., execution='mask')."
)

# What decides is neither traced nor guarded on, so that no other draw makes a new graph; what it calls is compiled.
outside_of_graphs = torch.compiler.disable(recursive=False, reason=ADVICE)

# Returns None outside of compiled regions. A function in Python would be compiled itself.
in_compiled_region = torch._C._dynamo.eval_frame.get_eval_frame_callback


def direct(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function: what `untraced` does, outside of compiled regions, where it would only cost time."""
    return function(*args)


untraced = torch.compiler.disable(direct)

_WRAPPERS: tuple[tuple[type, str], ...] = (
    (OptimizedModule, "torch.compile"),
    (DistributedDataParallel, "DistributedDataParallel"),
    (DataParallel, "DataParallel"),
    (FullyShardedDataParallel, "FSDP"),
    (FSDPModule, "fully_shard"),
)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model of which a wrapper has taken hold before LayerDrop: it would go past what is injected.

    ``model.compile()`` and ``layer.compile()`` are no wrappers, and may come before or after.

    Raises:
        LayerDropStateError: If the model or a part of it is wrapped.
    """
    for module in model.modules():
        for wrapper, name in _WRAPPERS:
            if isinstance(module, wrapper):
                raise LayerDropStateError(
                    f"The {type(module).__name__} was made by {name} before LayerDrop was injected; call "
                    "inject_layerdrop on the plain model first, and wrap it afterwards."
                )


@cache
def warn_of_whole_model() -> None:
    """Warn once that more than single layers of a model that skips them are compiled: it works, as many graphs."""
    _logger.warning(ADVICE)
