"""Find the transformers model inside what other libraries put around it: PEFT, Sentence Transformers, Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.errors import UnsupportedModelError

# Their copies, buckets and graphs are made from the model as it was when they were put around it.
_TOO_LATE = (DataParallel, DistributedDataParallel, FullyShardedDataParallel, compat.OPTIMIZED_MODULE.value)
_WRAPPERS = (*_TOO_LATE, compat.CHECKPOINT_WRAPPER.value)


def check_module(module: Any) -> None:
    """Refuse what is no model in memory: None, a name, a config.

    Raises:
        UnsupportedModelError: If it is none.
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"Got a {type(module).__name__}, but LayerDrop is for models in memory: pass a transformers model "
            "(PreTrainedModel), such as from_pretrained returns."
        )


def transformers_model(module: nn.Module) -> PreTrainedModel:
    """Return ``module`` if it is a transformers model, else the only one that it holds.

    Raises:
        UnsupportedModelError: If it holds none or several, or wraps it so that a change would come too late.
    """
    check_module(module)
    if isinstance(module, PreTrainedModel):
        _refuse_wrapped_layers(module)
        return module
    late = next((part for part in module.modules() if isinstance(part, _TOO_LATE)), None)
    held = dict(_outermost(module)) if late is None else {}
    if len(held) == 1:
        return next(iter(held.values()))
    if held:
        raise UnsupportedModelError(
            f"A {type(module).__name__} holds {len(held)} transformers models ({', '.join(held)}); pass one of them."
        )
    raise UnsupportedModelError(
        f"Got a {type(module).__name__}, but stacks are found in transformers models (PreTrainedModel); "
        f"pass the model before it is wrapped{f' by {type(late).__name__}' if late is not None else ''}."
    )


def _refuse_wrapped_layers(model: PreTrainedModel) -> None:
    """Refuse a model whose layers were put into wrappers one by one, where they are no longer found."""
    listed = (child for layers in model.modules() if isinstance(layers, nn.ModuleList) for child in layers)
    wrapped = next((child for child in listed if isinstance(child, _WRAPPERS)), None)
    if wrapped is not None:
        raise UnsupportedModelError(
            f"Layers of this {type(model).__name__} are inside of {type(wrapped).__name__}; pass the model before they "
            "are wrapped."
        )


def _outermost(module: nn.Module, path: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    for name, child in module.named_children():
        if isinstance(child, PreTrainedModel):
            yield f"{path}{name}", child
        else:
            yield from _outermost(child, f"{path}{name}.")
