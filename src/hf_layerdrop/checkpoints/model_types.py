"""Which model types transformers knows, read from its source: importing its own list takes torch, and seconds."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_ENTRY = re.compile(r'"([\w.-]+)"[,:]\s*"\w+Config"')
_FEWEST = 100  # fewer, and the list is not where it was: nothing is known then


@cache
def known_types() -> frozenset[str]:
    """Return the model types that transformers has a config for; empty if they are not found in its source."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        return frozenset()
    lists = Path(package.origin).with_name("models") / "auto"
    files = [file for file in (lists / "auto_mappings.py", lists / "configuration_auto.py") if file.is_file()]
    found = frozenset(name for file in files for name in _ENTRY.findall(file.read_text(encoding="utf-8")))
    return found if len(found) >= _FEWEST else frozenset()


def unknown_type(config: Mapping[str, Any], checkpoint: str) -> str | None:
    """Say that transformers has no model of the type that the dict of a config names; None if it has, or may have."""
    model_type, known = config.get("model_type"), known_types()
    if not known or model_type in known or config.get("auto_map"):  # with code of its own, it may be of any type
        return None
    return says_unknown(model_type, checkpoint)


def says_unknown(model_type: str | None, checkpoint: str) -> str:
    """Say that transformers has no model of a type, and what to do."""
    if not model_type:
        return f"The config of {checkpoint!r} names no model_type: write it into config.json, such as 'bert'."
    near = difflib.get_close_matches(model_type, known_types(), n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    version = importlib.metadata.version("transformers")
    return (
        f"The config of {checkpoint!r} names the model_type {model_type!r}, which transformers {version} does not know"
        f"{hint}: correct config.json, or update transformers if the model is newer."
    )
