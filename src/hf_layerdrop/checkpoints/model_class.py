"""Which config and which class of transformers a checkpoint is loaded with; no code that it brings along is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_layerdrop.checkpoints.adapter_files import adapted_base
from hf_layerdrop.checkpoints.class_by_weights import class_by_weights, class_that_generates
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, read_checkpoint, read_config
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.checkpoints.unreadable import is_there, reading
from hf_layerdrop.errors import CheckpointError

# Arguments of from_pretrained that say where a checkpoint is; the config is looked up with the same ones.
WHERE = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "trust_remote_code"),
    "gguf_file",
)


def where_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of ``from_pretrained`` that say where a checkpoint is."""
    return {name: kwargs[name] for name in WHERE if name in kwargs}


def find_config(name_or_path: Any, kwargs: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config of a checkpoint, or the one that is among the arguments of ``from_pretrained``.

    Raises:
        CheckpointError: If it has none, or one that needs code of its own, which was not asked for.
    """
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        return config
    if config is None and (base := adapted_base(name_or_path, kwargs)) is not None:
        return find_config(base, {})
    if config is None and is_there(name_or_path) and Path(name_or_path).is_dir() and not kwargs.get("gguf_file"):
        read_config(Path(name_or_path) / (kwargs.get("subfolder") or ""))
    found = config or name_or_path
    where = {"trust_remote_code": False, **where_of(kwargs)}  # left out, transformers would ask at the terminal
    with reading(name_or_path, alone=True):
        try:
            return AutoConfig.from_pretrained(found, **where)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            fields, _ = PreTrainedConfig.get_config_dict(found, **where)
            is_known = fields.get("model_type") in CONFIG_MAPPING
            if fields.get("auto_map") and not is_known:
                raise CheckpointError(_needs_own_code(name_or_path)) from error
            if isinstance(error, ValueError) and not is_known:  # transformers says which type it does not know
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CheckpointError(
                f"The config of {str(name_or_path)!r} cannot be read ({reason}): correct it, or download it again."
            ) from error


def find_class(
    name_or_path: Any, kwargs: Mapping[str, Any], headers: CheckpointHeaders | None = None
) -> type[PreTrainedModel]:
    """Return the transformers class that the config of a checkpoint names, or that its weights show if it names none.

    Args:
        name_or_path: The checkpoint.
        kwargs: Arguments of ``from_pretrained``.
        headers: Its headers, if they were read already.

    Raises:
        CheckpointError: If it names none that transformers has.
    """
    config = find_config(name_or_path, kwargs)
    if not config.architectures and kwargs.get("gguf_file"):  # it names no class: what is in GGUF is there to generate
        return class_that_generates(config)
    if not config.architectures and (tensors := _tensors(name_or_path, kwargs, headers)):
        return class_by_weights(config, tensors)
    names = [name for name in config.architectures or () if hasattr(transformers, name)]
    if not names and getattr(config, "auto_map", None):
        raise CheckpointError(_needs_own_code(name_or_path))
    if not names:
        raise CheckpointError(
            f"The config of {str(name_or_path)!r} names the architectures {config.architectures}, none of which "
            "transformers has; load it with one of the AutoLayerDropModelFor... classes."
        )
    return getattr(transformers, names[0])


def check_architecture(cls: type[PreTrainedModel], config: Mapping[str, Any], name_or_path: Any) -> None:
    """Refuse a checkpoint of another model type, which transformers would load with random weights and a warning."""
    wanted, found = cls.config_class.model_type if cls.config_class else None, config.get("model_type")
    if wanted and found and wanted != found:
        raise CheckpointError(
            f"{str(name_or_path)!r} is a checkpoint of model type {found!r}, but {cls.__name__} loads {wanted!r}; "
            "use an AutoLayerDropModel class, which chooses by the checkpoint."
        )


def _tensors(name_or_path: Any, kwargs: Mapping[str, Any], headers: CheckpointHeaders | None) -> Mapping[str, Any]:
    """Return the tensors of a checkpoint as its headers show them; none of one that has no headers."""
    if headers is not None:
        return headers.tensors
    if kwargs.get("use_safetensors") is False or kwargs.get("gguf_file") or kwargs.get("variant"):
        return {}
    source = adapted_base(name_or_path, kwargs) or name_or_path
    if folder := kwargs.get("subfolder"):
        return read_checkpoint(Path(source) / folder).tensors if Path(source).is_dir() else {}
    return read_headers(source, revision=kwargs.get("revision"), token=kwargs.get("token") or None).tensors


def _needs_own_code(name_or_path: Any) -> str:
    return (
        f"{str(name_or_path)!r} needs code of its own (auto_map in its config), which is not run unless you ask for "
        "it: read that code, and if you trust it, load the model in Python with trust_remote_code=True, and pass it "
        "to inject_layerdrop or prune_layers."
    )
