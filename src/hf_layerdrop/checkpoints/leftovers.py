"""Weights that a checkpoint has and the class that it is loaded as has not: a pooler beside a language model, say.

Whoever saves what was cut out of the checkpoint writes them beside the model's own, so that a class that has them finds
them again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.core_model_loading import rename_source_key

from hf_layerdrop.checkpoints.weight_names import conversions_of

logger = logging.getLogger(__name__)


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


def saved_state(
    model: PreTrainedModel, info: Mapping[str, Any], leftovers: Mapping[str, Any], dtype: Any = None
) -> dict[str, Any] | None:
    """Return what is to be saved of a model: what its checkpoint held, and nothing that was made up in its place.

    Args:
        model: The model.
        info: What transformers says of loading it.
        leftovers: Weights of the checkpoint that it has no place for.
        dtype: What they are cast to, as the model was.

    Returns:
        The weights; None where the model says itself what they are: all that it has, or those of a quantized one.
    """
    missing = set(info["missing_keys"])
    if getattr(model, "hf_quantizer", None) is not None:
        if lost := sorted(set(leftovers) & set(info["unexpected_keys"])):
            logger.warning("%d weights, such as %s, are not saved with a quantized model.", len(lost), lost[0])
        return None
    if not missing and not leftovers:
        return None
    kept = {name: weight for name, weight in model.state_dict().items() if name not in missing}
    return kept | {name: _cast(weight, dtype) for name, weight in leftovers.items()}


def _cast(weight: Any, dtype: Any) -> Any:
    return weight if dtype is None or not weight.is_floating_point() else weight.to(dtype)
