"""Serve a sub-network through transformers.pipeline."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.tokenizers import load_tokenizer, processor_files
from hf_layerdrop.errors import CheckpointError, TaskError, UnsupportedModelError
from hf_layerdrop.hub.origin import load_pruned
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel

_FOR_LOADING = ("config", "revision", "token", "trust_remote_code", "code_revision", "dtype")


def pipeline(
    task: str, model: PreTrainedModel | str | os.PathLike[str], *, keep_layers: KeepLayers = None, **kwargs: Any
) -> Pipeline:
    """Build a ``transformers.pipeline`` that runs a sub-network; of a checkpoint only the kept layers are read.

    The model's class is the one that fits the task, as in transformers; it need not be the checkpoint's own (feature
    extraction from a classifier).

    Args:
        task: Name of a task of transformers.
        model: The folder or Hub id of a checkpoint, or a model in memory, which stays as it is.
        keep_layers: The layers to keep, in any form that `hf_layerdrop.samplers.keep_layers` reads; None keeps all.
        **kwargs: Passed to ``transformers.pipeline``.

    Raises:
        TaskError: The task is unknown.
        UnsupportedModelError: The task is not one of the model's.
        CheckpointError: The checkpoint is missing or damaged, or has no tokenizer where the task needs one.
    """
    import transformers

    kwargs.setdefault("trust_remote_code", False)  # left out, transformers would ask at the terminal
    if not isinstance(model, str | os.PathLike):
        return transformers.pipeline(task, _plain_copy(model, keep_layers), **kwargs)
    if "torch_dtype" in kwargs:  # the old name, which transformers.pipeline takes too
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    name = os.fspath(model)
    served = _find_task(task)
    pruned = _load_for_task(served, task, name, keep_layers, kwargs)
    return transformers.pipeline(task, pruned, **{**_components(served, _home(name, kwargs)), **kwargs})


def _plain_copy(model: PreTrainedModel, keep_layers: KeepLayers) -> PreTrainedModel:
    """Return a pruned copy of a model in memory, or the model itself, as the class that pipelines know by its name."""
    from hf_layerdrop.models.mixin import plain_class

    if keep_layers is None and type(model) is plain_class(type(model)):
        return model
    pruned, _ = load_pruned(model, keep_layers, None, {})
    pruned.__class__ = plain_class(type(pruned))
    return pruned


def _find_task(task: str) -> dict[str, Any]:
    """Look up transformers' record of a task."""
    from transformers.pipelines import PIPELINE_REGISTRY

    try:
        return PIPELINE_REGISTRY.check_task(task)[1]
    except KeyError as error:
        known = ", ".join(PIPELINE_REGISTRY.get_supported_tasks())
        raise TaskError(f"{task!r} is not a task of transformers.pipeline: choose one of {known}.") from error


def _load_for_task(
    served: dict[str, Any], task: str, name: str, keep_layers: KeepLayers, kwargs: dict[str, Any]
) -> PreTrainedModel:
    """Load the sub-network as transformers' class for the task; takes from ``kwargs`` what only loading needs."""
    from hf_layerdrop.checkpoints.model_class import find_config, where_of
    from hf_layerdrop.checkpoints.own_code import class_of_code, needs_own_code
    from hf_layerdrop.pruning.loading import load_plain

    loading = {**kwargs.get("model_kwargs", {}), **{key: kwargs[key] for key in _FOR_LOADING if key in kwargs}}
    if "device_map" in kwargs:
        loading["device_map"] = kwargs.pop("device_map")
    config = find_config(name, loading)
    for auto_class in served["pt"]:
        mapping = getattr(auto_class, compat.CLASSES_BY_CONFIG.name)
        model_class = class_of_code(config, (auto_class.__name__,), name, loading)
        if model_class is None and type(config) in mapping:
            model_class = compat.CLASS_BY_CONFIG.value(config, mapping)
        if model_class is not None:
            loads_tokenizer = getattr(_pipeline_class(served), compat.PIPELINE_PARTS["tokenizer"].name)
            if loads_tokenizer and kwargs.get("tokenizer") is None:
                # Before the weights, and at all: transformers would make an empty one, to which all words are unknown.
                load_tokenizer(_home(name, loading), **where_of(loading))
            given = {key: value for key, value in loading.items() if key != "code_revision"}
            return load_plain(model_class, name, keep_layers=keep_layers, **given)
    if {auto_class.__name__ for auto_class in served["pt"]} & set(getattr(config, "auto_map", None) or ()):
        raise CheckpointError(needs_own_code(name))
    raise UnsupportedModelError(
        f"{name!r} is of model type {config.model_type!r}, which transformers does not serve as {task!r}: choose a "
        "task that its class has."
    )


def _home(name: str, loading: Mapping[str, Any]) -> str:
    """Return where tokenizer and processors lie: with an adapter that has none of its own, beside its base model."""
    from transformers.utils.hub import has_file

    from hf_layerdrop.checkpoints.adapter_files import adapted_base

    base = adapted_base(name, loading)
    if base is None or processor_files(Path(name)):
        return name
    where = {key: loading[key] for key in ("revision", "token", "cache_dir", "local_files_only") if loading.get(key)}
    return name if has_file(name, "tokenizer_config.json", **where) else base


def _components(served: dict[str, Any], name: str) -> dict[str, str]:
    """Name the source of what goes with the model; transformers knows it only when it loads the model itself."""
    pipeline_class = _pipeline_class(served)
    parts = compat.PIPELINE_PARTS.items()
    return {part: name for part, loads in parts if getattr(pipeline_class, loads.name) is not False}


def _pipeline_class(served: dict[str, Any]) -> type[Pipeline]:
    """Return the class behind a task, which transformers' record names or is."""
    return pkgutil.resolve_name(served["impl"]) if isinstance(served["impl"], str) else served["impl"]
