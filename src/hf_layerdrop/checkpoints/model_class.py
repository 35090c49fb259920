"""Which config and which class a checkpoint is loaded with; code of its own is run only where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import resolve_revision

from hf_layerdrop.checkpoints.adapter_files import adapted_base, of_base
from hf_layerdrop.checkpoints.class_by_weights import (
    architectures_of,
    auto_classes_of,
    class_by_weights,
    class_that_generates,
    named_class,
)
from hf_layerdrop.checkpoints.declared_depths import DEPTHS, check_depths, is_deep
from hf_layerdrop.checkpoints.headers import CheckpointHeaders, read_config
from hf_layerdrop.checkpoints.own_code import class_of_code, needs_own_code
from hf_layerdrop.checkpoints.remote_headers import read_headers
from hf_layerdrop.checkpoints.unreadable import is_there, reading
from hf_layerdrop.errors import CheckpointError

# Arguments of from_pretrained that say where a checkpoint is; the config is looked up with the same ones.
WHERE = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "trust_remote_code"),
    *("code_revision", "gguf_file"),
)
_OF_REVISION = {"revision", "token", "local_files_only", "cache_dir"}
_OF_HEADERS = ("revision", "token", "subfolder", "cache_dir", "local_files_only")


def where_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of ``from_pretrained`` that say where a checkpoint is."""
    return {name: kwargs[name] for name in WHERE if name in kwargs}


def find_config(name_or_path: Any, kwargs: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config of a checkpoint, or the one that is among the arguments of ``from_pretrained``.

    Raises:
        CheckpointError: If it has none, one that needs code of its own, which was not asked for, or one that counts far
            more layers than the files have.
    """
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        return config
    if config is None and (base := adapted_base(name_or_path, kwargs)) is not None:
        return find_config(base, of_base(kwargs))
    if config is None and is_there(name_or_path) and Path(name_or_path).is_dir() and not kwargs.get("gguf_file"):
        read_config(Path(name_or_path) / (kwargs.get("subfolder") or ""))
    found = config or name_or_path
    where = where_of(kwargs)
    where["trust_remote_code"] = bool(where.get("trust_remote_code"))  # for None, transformers asks at the terminal
    with reading(name_or_path, alone=True):
        if config is None and not kwargs.get("gguf_file"):  # to read a GGUF takes long, and it holds what it says
            where["revision"] = resolve_revision(found, **{name: where[name] for name in _OF_REVISION & set(where)})
            fields, _ = PreTrainedConfig.get_config_dict(found, **where)
            where["force_download"] = False  # from here on the file is there, at a revision that stays what it is
            if not fields and (base := adapted_base(name_or_path, where)) is not None:
                return find_config(base, of_base(kwargs))
            check_declared(name_or_path, fields, kwargs)
        try:
            return AutoConfig.from_pretrained(found, **where)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            fields, _ = PreTrainedConfig.get_config_dict(found, **where)
            is_known = fields.get("model_type") in CONFIG_MAPPING
            if fields.get("auto_map") and not is_known and not where["trust_remote_code"]:
                raise CheckpointError(needs_own_code(name_or_path)) from error
            if isinstance(error, ValueError) and not is_known:  # transformers says which type it does not know
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CheckpointError(
                f"The config of {str(name_or_path)!r} cannot be read ({reason}): correct it, or download it again."
            ) from error


def find_class(
    name_or_path: Any, kwargs: Mapping[str, Any], headers: CheckpointHeaders | None = None
) -> type[PreTrainedModel]:
    """Return the class that the config of a checkpoint names, or that its weights show if it names none.

    Args:
        name_or_path: The checkpoint.
        kwargs: Arguments of ``from_pretrained``.
        headers: Its headers, if they were read already: then the class that it names has to have its weights there.

    Raises:
        CheckpointError: If it names one that is nowhere to be found, or weights of no class.
    """
    config = find_config(name_or_path, kwargs)
    names = architectures_of(config)
    named, own = named_class(config), class_of_code(config, names, name_or_path, kwargs)
    if own is None and getattr(config, "auto_map", None):  # which names code by Auto classes
        autos = config.auto_map if named is None else auto_classes_of(named)
        own = class_of_code(config, autos, name_or_path, kwargs)
    if own is not None:
        return own
    if named is None and not names and kwargs.get("gguf_file"):  # what is in GGUF generates
        return class_that_generates(config)
    if named is not None and (headers is None or getattr(config, "quantization_config", None)):
        return named
    if named is None and names and getattr(config, "auto_map", None):
        raise CheckpointError(needs_own_code(name_or_path))
    unknown = named is None and any(not hasattr(transformers, name) for name in filter(None, names))
    if unknown or (headers := headers or _headers(name_or_path, kwargs)) is None:
        raise CheckpointError(
            f"The config of {str(name_or_path)!r} names the architectures {config.architectures}, none of which "
            "transformers has as a model class: load it with the AutoLayerDropModelFor... class of its task, or give "
            "load_checkpoint or save_pruned the class (model_class=)."
        )
    check_depths(headers)
    return class_by_weights(config, headers.tensors, named)


def check_declared(name_or_path: Any, config: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a config that counts far more layers than the files have, before anything is built of it.

    Raises:
        CheckpointError: If it does.
    """
    if is_deep(config) and not set(kwargs) & DEPTHS and (headers := _headers(name_or_path, kwargs)) is not None:
        check_depths(headers)


def check_architecture(cls: type[PreTrainedModel], config: Mapping[str, Any], name_or_path: Any) -> None:
    """Refuse a checkpoint of another model type, which transformers would load with random weights and a warning."""
    wanted, found = cls.config_class.model_type if cls.config_class else None, config.get("model_type")
    if wanted and found and wanted != found:
        raise CheckpointError(
            f"{str(name_or_path)!r} is a checkpoint of model type {found!r}, but {cls.__name__} loads {wanted!r}; "
            "use an AutoLayerDropModel class, which chooses by the checkpoint."
        )


def _headers(name_or_path: Any, kwargs: Mapping[str, Any]) -> CheckpointHeaders | None:
    """Return the headers of a checkpoint; None of one that has none."""
    if kwargs.get("use_safetensors") is False or kwargs.get("gguf_file") or kwargs.get("variant"):
        return None
    return read_headers(name_or_path, **{name: kwargs[name] for name in _OF_HEADERS if kwargs.get(name)})
