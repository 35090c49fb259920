"""What the folder of a PEFT adapter says of it and of its base model: no torch, no PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_layerdrop.checkpoints.headers import read_header
from hf_layerdrop.checkpoints.strangers import Unreadable, read_json
from hf_layerdrop.checkpoints.unreadable import is_there
from hf_layerdrop.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def adapted_base(name_or_path: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Return the base model that the config of a PEFT adapter in a folder names; None for any other checkpoint.

    Raises:
        CheckpointError: If it names none, or another adapter.
    """
    config = Path(name_or_path or "", kwargs.get("subfolder") or "", ADAPTER_CONFIG)
    if not is_there(config):
        return None
    base = _read(config).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{str(config)!r} names no base_model_name_or_path: have the adapter saved again, or write the folder "
            "or the Hub id of its base model there."
        )
    if is_there(Path(base, ADAPTER_CONFIG)):
        raise CheckpointError(f"{str(config)!r} names {base!r} as its base model, which is an adapter itself.")
    return base


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
