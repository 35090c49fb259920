"""The model class of a checkpoint that brings its own code: run where that is asked for, as transformers does it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

from hf_layerdrop.errors import CheckpointError, said_by

_OF_CODE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "code_revision")
_OTHERS = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")


def class_of_code(
    config: PreTrainedConfig, names: Collection[str], name_or_path: Any, kwargs: Mapping[str, Any]
) -> type[PreTrainedModel] | None:
    """Return the class that a checkpoint brings along, by the name of an Auto class or its own.

    Args:
        config: The config, whose ``auto_map`` says where the code is.
        names: Of the Auto class that is asked for, or of the architectures.
        name_or_path: The checkpoint.
        kwargs: Arguments of ``from_pretrained``.

    Returns:
        The class; None if it brings none of that name, or its code may not be run (``trust_remote_code``).

    Raises:
        CheckpointError: If its code does not give it.
    """
    if not kwargs.get("trust_remote_code"):
        return None
    classes = {auto: ref for auto, ref in (getattr(config, "auto_map", None) or {}).items() if auto not in _OTHERS}
    for auto, ref in classes.items():
        if auto in names or (isinstance(ref, str) and ref.rpartition(".")[2] in names):
            return _loaded(auto, ref, name_or_path, kwargs)
    return None


def _loaded(auto: str, ref: str, name_or_path: Any, kwargs: Mapping[str, Any]) -> type[PreTrainedModel]:
    where = {name: kwargs[name] for name in _OF_CODE if kwargs.get(name) is not None}
    try:
        cls: type[PreTrainedModel] = get_class_from_dynamic_module(ref, name_or_path, **where)
        cls.register_for_auto_class(auto)  # so that its code is saved with it
        return add_generation_mixin_to_remote_model(cls)
    except Exception as error:  # anyone's code
        raise CheckpointError(
            f"The code of {str(name_or_path)!r} gives no class {ref!r} for {auto} ({said_by(error)}): correct it, or "
            "leave out trust_remote_code to load the class that transformers has for it."
        ) from error


def needs_own_code(name_or_path: Any) -> str:
    """Say that a checkpoint needs code of its own, and how to run it."""
    return (
        f"{str(name_or_path)!r} needs code of its own (auto_map in its config), which is not run unless you ask for "
        "it: read that code, and if you trust it, give trust_remote_code=True, or --trust-remote-code."
    )
