"""What lies beside the weights and makes the model what it is: modules of Sentence Transformers, licences, code.

Anyone can write these files. Only regular files inside of the checkpoint come along, since they may be published; code
is copied and never run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from hf_layerdrop.checkpoints.strangers import Unreadable, read_json
from hf_layerdrop.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

COMPANIONS = (
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("custom_generate/*.py", "LICENSE*", "LICENCE*", "License*", "license*", "NOTICE*", "COPYING*", "USE_POLICY*"),
)
CODE = "*.py"
SENTENCES = "sentence-transformers"
_OF_MODULES = ("*.json", "*.txt", "*.model", "*.py", "model.safetensors", "pytorch_model.bin")
_MAPPING_CODE = ("config.json", "tokenizer_config.json", "*processor_config.json")
_LIBRARY = "sentence_transformers."
_WEIGHING = "WeightedLayerPooling"
_TASKS = {"SparseEncoder": "feature-extraction", "CrossEncoder": "text-ranking"}
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def companion_files(folder: Path) -> list[Path]:
    """List the companions of a checkpoint, beside its tokenizer and processors."""
    return inside(folder, [*COMPANIONS, *further_companions(folder)])


def further_companions(folder: Path) -> list[str]:
    """Return patterns of companions that the usual ones name: the folders of modules, and code."""
    patterns = [f"{escape(path)}/{pattern}" for path in module_folders(folder) for pattern in _OF_MODULES]
    return [*patterns, CODE] if _needs_code(folder) else patterns


def module_folders(folder: Path) -> list[str]:
    """Return the folders of a Sentence Transformer's modules, of which none leads out of it or is hidden."""
    paths = [PurePosixPath(str(module.get("path") or "")) for module in _modules(folder)]
    return [str(path) for path in paths if path.parts and not any(part[0] in "./\\" for part in path.parts)]


def check_modules(folder: Path) -> None:
    """Refuse to cut the model of a Sentence Transformer whose further modules count its layers.

    Raises:
        UnsupportedModelError: If one does.
    """
    if any(str(module.get("type")).endswith(_WEIGHING) for module in _modules(folder)):
        raise UnsupportedModelError(
            f"The Sentence Transformer {folder.name!r} has the module {_WEIGHING}, with a weight for each layer of "
            "the whole model, so that a cut would give other embeddings: train one with another pooling, or cut none."
        )


def sentence_task(folder: Path) -> str | None:
    """Return the Hub's name of what a model of Sentence Transformers does; None for any other."""
    if not inside(folder, ["modules.json"]) or not _modules(folder):
        return None
    said = read_beside(folder / "config_sentence_transformers.json")
    return _TASKS.get(str(said.get("model_type") if isinstance(said, dict) else None), "sentence-similarity")


def inside(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """List the files of a folder by patterns: those that are in it, or in the Hub's cache for it.

    A link that leads elsewhere is left out with a warning: what is copied may be published, and a checkpoint is a
    stranger's.
    """
    kept, left_out = parted(folder, patterns)
    for path in left_out:
        logger.warning("%s is a link that leads out of the checkpoint, and is left out.", path)
    return kept


def parted(folder: Path, patterns: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Part the files of a folder by patterns: those that are in it, and links that lead elsewhere, or nowhere."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    found = [path for path in found if path.is_file() or (path.is_symlink() and not path.exists())]
    home = folder.resolve()
    # the Hub's cache may have its files on another disk; whatever else is there has no such name
    blobs = [(above.parent / "blobs").resolve() for above in home.parents if above.name == "snapshots"]
    kept: list[Path] = []
    left_out: list[Path] = []
    for path in found:
        file = path.resolve()
        cached = file.parent in blobs and _BLOB.fullmatch(file.name) is not None
        (kept if path.is_file() and (cached or file.is_relative_to(home)) else left_out).append(path)
    return kept, left_out


def read_beside(file: Path) -> Any:
    """Read a JSON file beside the weights; None for one that cannot be read, which others will tell."""
    try:
        return read_json(file)
    except Unreadable:
        return None


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules = read_beside(folder / "modules.json")
    return [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []


def _needs_code(folder: Path) -> bool:
    """Tell a checkpoint that names code of its own."""
    if any(not str(module.get("type")).startswith(_LIBRARY) for module in _modules(folder)):
        return True
    files = [file for pattern in _MAPPING_CODE for file in folder.glob(pattern)]
    contents = [read_beside(file) for file in files]
    return any(isinstance(content, dict) and content.get("auto_map") for content in contents)
