"""Keep LayerDrop and ``torch.compile`` apart: what skips layers stays out of graphs, or a graph would be one draw."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.compiler import is_exporting

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError

_logger = logging.getLogger(__name__)

ADVICE = (
    "LayerDrop with execution='skip' decides in Python which layers run, so that a whole model cannot be one graph; "
    "compile its layers one by one (regional compilation: layer.compile(), or accelerate's "
    "TorchDynamoPlugin(use_regional_compilation=True)), or inject LayerDropConfig(..., execution='mask')."
)

# What decides is neither traced nor guarded on, so that no other draw makes a new graph; what it calls is compiled. The
# wrapper takes as long as a short layer: where nothing is compiled, functions are called without it.
outside_of_graphs = torch.compiler.disable(recursive=False, reason=ADVICE)

# Returns None outside of compiled regions. A function in Python would be compiled itself.
in_compiled_region = compat.COMPILED_REGION.value


def direct(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function: what `untraced` does, outside of compiled regions, where it would only cost time."""
    return function(*args, **kwargs)


untraced = torch.compiler.disable(direct)


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model that ``torch.compile`` or ``compile_regions`` has wrapped, in whole or in part.

    ``model.compile()`` and ``layer.compile()`` wrap nothing, and may come before or after.

    Raises:
        LayerDropStateError: If the model or a part of it is wrapped.
    """
    for module in model.modules():
        if isinstance(module, compat.OPTIMIZED_MODULE.value):
            raise LayerDropStateError(
                f"The {type(module).__name__} was made by torch.compile before LayerDrop was injected; call "
                "inject_layerdrop on the plain model first, and wrap it afterwards."
            )


def refuse_recording(training: bool) -> None:
    """Refuse to drop layers while torch.export or torch.jit.trace records a graph, which would hold one draw for good.

    Raises:
        LayerDropStateError: If one of them does.
    """
    if not (is_exporting() or torch.jit.is_tracing()):
        return
    raise LayerDropStateError(
        "LayerDrop draws in each training forward which layers run, and an exported graph would hold one draw for "
        "good: call model.eval() before the export."
        if training
        else "Within sub_network a model skips layers in Python, which no exported graph can hold: cut a copy by "
        "prune_layers, or load one with keep_layers, and export that."
    )


@cache
def warn_of_whole_model() -> None:
    """Warn once that more than single layers of a model that skips them are compiled: it works, as many graphs."""
    _logger.warning(ADVICE)
