"""Which class a checkpoint is of: the one that its config names, if its weights are there, else the one whose are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter, rename_source_key
from transformers.models.auto import modeling_auto

from hf_layerdrop import compat
from hf_layerdrop.architectures.expressible import built_on_meta
from hf_layerdrop.checkpoints.declared_depths import most_weights
from hf_layerdrop.checkpoints.weight_names import conversions_of
from hf_layerdrop.errors import CheckpointError

# Of heads with the same weights the first is taken; a model that says it is a decoder is one.
_FIRST = ("", "ForSeq2SeqLM", "ForMaskedLM", "ForCausalLM", "ForSequenceClassification")
_FIRST_OF_DECODERS = ("", "ForCausalLM")


def architectures_of(config: PreTrainedConfig) -> list[str]:
    """Return the names of classes in a config, whatever else anyone wrote there."""
    named: Any = config.architectures
    if isinstance(named, str):
        return [named]
    return [name for name in named if isinstance(name, str)] if isinstance(named, list | tuple) else []


def named_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the first model class for a config that it names, of transformers or registered there; None if none is."""
    for name in architectures_of(config):
        found = getattr(transformers, name, None)
        if found is None and (registered := [cls for cls in _candidates(config, ()) if cls.__name__ == name]):
            return registered[0]
        if isinstance(found, type) and issubclass(found, PreTrainedModel) and _is_for(found, config):
            return found
    return None


def _is_for(cls: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    if cls.config_class is None or cls.__name__.lower().endswith("pretrainedmodel"):  # the base of a family's models
        return False
    return isinstance(config, cls.config_class) or cls in _candidates(config, ())


def class_by_weights(
    config: PreTrainedConfig, tensors: Mapping[str, Any], named: type[PreTrainedModel] | None = None
) -> type[PreTrainedModel]:
    """Return the class of a config's model type that fits these weights, by name and shape; without a head, the base.

    Args:
        config: The config.
        tensors: The weights by name; one whose ``shape`` is None fits by its name.
        named: The class that the config names, which is taken if all its weights are there.

    Raises:
        CheckpointError: If transformers has no class for the type.
    """
    if named is not None and _is_complete(named, config, tensors):
        return named
    first = _FIRST_OF_DECODERS if getattr(config, "is_decoder", False) else _FIRST
    classes = list(dict.fromkeys(_candidates(config, first)))
    fits = {cls: fit for cls in classes if (fit := _misfits(cls, config, tensors)) is not None}
    if not fits and named is not None:
        return named
    if not fits:
        raise CheckpointError(
            f"The config names no architectures, and transformers has no class for model type {config.model_type!r} "
            "whose weights these are: write the name of the class into config.json."
        )
    return min(fits, key=lambda cls: (fits[cls][0], cls is not named, fits[cls][1]))


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


def auto_classes_of(cls: type[PreTrainedModel]) -> list[str]:
    """Return the names of the Auto classes that load a class of transformers."""
    found = []
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, compat.CLASSES_BY_CONFIG.name, None) if isinstance(auto, type) else None
        classes = mapping[cls.config_class] if mapping is not None and cls.config_class in mapping else ()
        if cls in (classes if isinstance(classes, tuple) else (classes,)):
            found.append(name)
    return found


def _is_complete(cls: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, Any]) -> bool:
    """Tell a class that has all its weights among these; what there is more is kept beside them."""
    try:
        model = built_on_meta(cls, config, most_weights(len(tensors)))
    except Exception:  # whoever loads it says why
        return True
    return not _placed(model, tensors).absent


def _misfits(
    cls: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, Any]
) -> tuple[int, int] | None:
    """Count the weights that do not fit a class, then the names with another prefix; None if it lacks its head."""
    try:
        model = built_on_meta(cls, config, most_weights(len(tensors)))
    except Exception:  # a class that this config does not build
        return None
    placed, base = _placed(model, tensors), model.base_model_prefix
    missing = placed.absent | placed.unlike
    of_head = {name for name, _ in model.named_parameters() if hasattr(model, base) and not name.startswith(f"{base}.")}
    return None if missing & of_head else (len(missing) + len(placed.unexpected), placed.moved)


@dataclass(frozen=True)
class _Placed:
    """Which weights a model lacks, has in another shape or has no place for, and how many get another prefix."""

    absent: set[str]
    unlike: set[str]
    unexpected: set[str]
    moved: int


def _placed(model: PreTrainedModel, tensors: Mapping[str, Any]) -> _Placed:
    state, base = model.state_dict(), model.base_model_prefix
    renamings, converters = conversions_of(model)
    found: dict[str, tuple[int, ...] | None] = {}
    moved = 0
    for name, tensor in tensors.items():
        plain, converted = rename_source_key(name, renamings, converters)
        placed, _ = rename_source_key(name, renamings, converters, base, state)
        found[placed] = None if converted or tensor.shape is None else tuple(tensor.shape)
        found |= dict.fromkeys(_split_off(placed, converted, converters))
        moved += plain != placed
    absent = set(state) - set(found) - set(model.all_tied_weights_keys)
    unlike = {name for name in set(found) & set(state) if found[name] not in (None, tuple(state[name].shape))}
    made, ignored = (_any_of(getattr(model, field.name)) for field in (compat.NOT_MISSED, compat.NOT_LOADED))
    unexpected = {name for name in set(found) - set(state) if not ignored.search(name)}
    return _Placed({name for name in absent if not made.search(name)}, unlike, unexpected, moved)


def _split_off(placed: str, converted: str | None, converters: Sequence[WeightConverter]) -> Iterator[str]:
    """Yield the further names of a weight that transformers splits on loading."""
    for converter in converters if converted else ():
        if converted in converter.source_patterns:
            first, *others = converter.target_patterns
            yield from (placed.replace(first, other) for other in others)


def _any_of(patterns: Iterable[str] | None) -> re.Pattern[str]:
    return re.compile("|".join(rf"({pattern})" for pattern in patterns or ()) or r"(?!)")
