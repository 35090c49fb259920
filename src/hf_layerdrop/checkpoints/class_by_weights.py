"""Which head a checkpoint has whose config names no architecture: the one whose weights are there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import rename_source_key
from transformers.models.auto import modeling_auto

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.checkpoints.weight_names import conversions_of
from hf_layerdrop.errors import CheckpointError

# Of heads with the same weights the first is taken; a model that says it is a decoder is one.
_FIRST = ("", "ForSeq2SeqLM", "ForMaskedLM", "ForCausalLM", "ForSequenceClassification")
_FIRST_OF_DECODERS = ("", "ForCausalLM")


def class_by_weights(config: PreTrainedConfig, tensors: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Return the class of a config's model type that fits these weights, by name and shape; without a head, the base.

    Raises:
        CheckpointError: If transformers has no class for the type.
    """
    first = _FIRST_OF_DECODERS if getattr(config, "is_decoder", False) else _FIRST
    classes = list(dict.fromkeys(_candidates(config, first)))
    fits = {cls: fit for cls in classes if (fit := _misfits(cls, config, tensors)) is not None}
    if not fits:
        raise CheckpointError(
            f"The config names no architectures, and transformers has no class for model type {config.model_type!r} "
            "whose weights these are: write the name of the class into config.json."
        )
    return min(fits, key=lambda cls: fits[cls])


def class_that_generates(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a config's model type that generates text, or the base model if there is none."""
    return next(_candidates(config, ("ForCausalLM", "ForSeq2SeqLM", "")))


def _candidates(config: PreTrainedConfig, first: Sequence[str]) -> Iterator[type[PreTrainedModel]]:
    """Yield the classes that the Auto classes have for a config, those of these heads first."""
    others = [auto for auto in vars(modeling_auto).values() if isinstance(auto, type)]
    for auto in (*(getattr(transformers, f"AutoModel{head}") for head in first), *others):
        mapping = getattr(auto, compat.CLASSES_BY_CONFIG.name, None)
        if mapping is not None and type(config) in mapping:
            yield compat.CLASS_BY_CONFIG.value(config, mapping)


def _misfits(
    cls: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, Any]
) -> tuple[int, int] | None:
    """Count the weights that do not fit a class, then the names with another prefix; None if it lacks its head."""
    try:
        model = built_on_meta(cls, config)
    except Exception:  # a class that this config does not build
        return None
    state, base = model.state_dict(), model.base_model_prefix
    renamings, converters = conversions_of(model)
    found, moved = {}, 0
    for name, tensor in tensors.items():
        plain, converted = rename_source_key(name, renamings, converters)
        placed, _ = rename_source_key(name, renamings, converters, base, state)
        found[placed] = None if converted else tuple(tensor.shape)
        moved += plain != placed
    missing = set(state) - set(found) - set(model.all_tied_weights_keys)
    missing |= {name for name in set(found) & set(state) if found[name] not in (None, tuple(state[name].shape))}
    of_head = {name for name, _ in model.named_parameters() if hasattr(model, base) and not name.startswith(f"{base}.")}
    if missing & of_head:
        return None
    ignored = re.compile("|".join(rf"({pattern})" for pattern in getattr(model, compat.NOT_LOADED.name)) or r"(?!)")
    return len(missing) + sum(not ignored.search(name) for name in set(found) - set(state)), moved
