"""What the files of a PEFT adapter say of it and of its base model: no torch, no PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from hf_layerdrop.checkpoints.headers import CONFIG_NAME, read_header
from hf_layerdrop.checkpoints.strangers import Unreadable, read_json
from hf_layerdrop.checkpoints.unreadable import is_there
from hf_layerdrop.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_OF_BASE = ("cache_dir", "force_download", "local_files_only", "token", "trust_remote_code")


def adapted_base(name_or_path: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Return the base model that the config of a PEFT adapter names; None for any other checkpoint.

    On the Hub one is looked for where the cache knows that there is no config of a model, so that no model costs a
    request: whoever asks has tried to read that first.

    Raises:
        CheckpointError: If it names none, or another adapter.
    """
    config = _config_file(name_or_path, kwargs)
    if config is None:
        return None
    base = _read(config).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{str(config)!r} names no base_model_name_or_path: have the adapter saved again, or write the folder "
            "or the Hub id of its base model there."
        )
    if _config_file(base, of_base(kwargs)) is not None:
        raise CheckpointError(f"{str(config)!r} names {base!r} as its base model, which is an adapter itself.")
    return base


def of_base(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the arguments of ``from_pretrained`` that say where an adapter is goes for its base, too."""
    return {name: kwargs[name] for name in _OF_BASE if name in kwargs}


def _config_file(name_or_path: Any, kwargs: Mapping[str, Any]) -> Path | None:
    if not name_or_path:
        return None
    config = Path(name_or_path, kwargs.get("subfolder") or "", ADAPTER_CONFIG)
    if is_there(config):
        return config
    return None if is_there(name_or_path) else _on_the_hub(str(name_or_path), kwargs)


def _on_the_hub(repo_id: str, kwargs: Mapping[str, Any]) -> Path | None:
    names = ("cache_dir", "revision", "token", "local_files_only", "subfolder")
    where = {name: kwargs[name] for name in names if kwargs.get(name)}
    config = PurePosixPath(where.get("subfolder") or "", CONFIG_NAME)
    try:
        of_cache = {"cache_dir": where.get("cache_dir"), "revision": where.get("revision")}
        known = try_to_load_from_cache(repo_id, str(config), **of_cache)
    except HFValidationError:  # no name that a repository can have
        return None
    if known is None or isinstance(known, str):  # not asked for yet, or there
        return None
    from transformers.utils import find_adapter_config_file

    found = find_adapter_config_file(repo_id, **where)
    return Path(found) if found else None


def describe_adapter(folder: str, base: str) -> dict[str, Any]:
    """Say of which kind an adapter is, and how large, as far as it lies on this machine."""
    config, weights = Path(folder, ADAPTER_CONFIG), Path(folder, _WEIGHTS)
    parameters = sum(tensor.parameters for tensor in read_header(weights).values()) if weights.is_file() else None
    kind = _read(config).get("peft_type") if config.is_file() else None
    return {"base": base, "type": kind, "parameters": parameters}


def _read(config: Path) -> dict[str, Any]:
    try:
        content = read_json(config)
    except Unreadable:
        content = None
    return content if isinstance(content, dict) else {}
