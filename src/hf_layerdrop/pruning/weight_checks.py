"""What transformers would make up or report in a log: weights that a checkpoint lacks, or has in other shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from hf_layerdrop.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Parts that many checkpoints have not: heads of models without a base of their own, and what is for one training alone.
_NEW_BY_DESIGN = re.compile(r"head|pool|mask")


def check_shapes(mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse weights of other shapes than the model's; transformers would point to a report that it has logged."""
    for name, found, wanted in sorted(mismatched):
        raise CheckpointError(
            f"The weight {name!r} of the checkpoint has the shape {tuple(found)}, but by its config, with the "
            f"arguments given, it is {tuple(wanted)}: use the config that belongs to these weights, or pass "
            "ignore_mismatched_sizes=True in Python to begin such weights anew."
        )


def check_layers_are_whole(missing: Iterable[tuple[str, int, str] | None]) -> None:
    """Refuse layers that lack a weight: a head may be new, but a layer of random numbers is not worth writing down.

    Args:
        missing: Stack, layer and name of each weight that the checkpoint has not; None for one of no layer.
    """
    for stack, layer, rest in filter(None, missing):
        raise CheckpointError(
            f"The checkpoint lacks the weight {rest!r} of layer {layer} of the {stack}, which would have to be made "
            "up: download it again, or leave this layer out."
        )


def check_base_is_whole(model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Refuse a base model that lacks its embeddings, say: what is saved would lack them too, and be made up by others.

    Args:
        model: The model that was loaded, of the class that fits its weights.
        missing: The weights that the checkpoint has not; those of heads and poolers may be new.
    """
    base = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    parts = model.named_children() if not base else ()
    outputs = {name for name, part in parts if isinstance(part, nn.Linear)}
    for name in sorted(missing):
        if name.startswith(base) and name.partition(".")[0] not in outputs and not _NEW_BY_DESIGN.search(name):
            raise CheckpointError(
                f"The checkpoint lacks the weight {name!r} of {type(model).__name__}, which would have to be made up: "
                "download it again, or give the class that these weights are of (model_class=)."
            )
