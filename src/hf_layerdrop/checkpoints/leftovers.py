"""Weights that a checkpoint has and the class that it is loaded as has not: a pooler beside a language model, say.

Whoever saves what was cut out of the checkpoint writes them beside the model's own, so that a class that has them finds
them again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.core_model_loading import rename_source_key

from hf_layerdrop.checkpoints.weight_names import conversions_of


def left_over(model: PreTrainedModel, weights: Mapping[str, Any], unexpected: Collection[str]) -> dict[str, Any]:
    """Read those of a checkpoint's weights that a model has no place for, under the names that it gave them.

    Args:
        model: The model that was loaded.
        weights: The weights by their names in the checkpoint, each a tensor or a slice of one.
        unexpected: What transformers says of them.
    """
    if not unexpected:
        return {}
    renamings, converters = conversions_of(model)
    state = model.state_dict()
    found = {}
    for name, weight in weights.items():
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if renamed in unexpected:
            found[name if converted else renamed] = weight[...]
    return found


def saved_state(model: PreTrainedModel, missing: Iterable[str], leftovers: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is to be saved of a model: what its checkpoint held, and nothing that was made up in its place.

    None where that is the whole state of the model.
    """
    absent = set(missing)
    if not absent and not leftovers:
        return None
    return {name: weight for name, weight in model.state_dict().items() if name not in absent} | dict(leftovers)
