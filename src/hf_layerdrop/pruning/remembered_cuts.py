"""Remember on disk which cuts plain transformers rebuilds as they are: finding out builds the cut model once more.

An answer is one file of a line, whose name is a digest of all that it depends on: the class, the config, the kept
layers, the versions, and the files of the code that decides. They lie where the Hub keeps what libraries cache
(``HF_HOME/assets/hf_layerdrop``), at most `MOST` of them; whoever deletes them pays with a check. Only that a cut
passes is remembered: a refusal is found anew, with its reason. Nothing that is loaded or run depends on these files:
a forged one could let a cut pass whose saved form would be built otherwise, and no more. Of classes and configs that
are not transformers' own, nobody can know when their code changes, so that nothing is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import cached_assets_path
from transformers import PreTrainedConfig, PreTrainedModel

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.strangers import Unreadable, read_text

MOST = 512  # answers, of some hundred bytes each
_PASSES = "plain transformers rebuilds this cut as it is"
_LIBRARIES = {"transformers", "torch", *sys.stdlib_module_names}
_DECIDE = ("architectures", "pruning")  # folders of this package


def digest_of(model: PreTrainedModel, config: PreTrainedConfig, kept: Mapping[str, Sequence[int]]) -> str | None:
    """Return what an answer is known by; None where nobody can know what it depends on.

    Args:
        model: The whole model, as built from the config: each class in it, and each that these are made of, decides.
        config: Its config.
        kept: The kept layers by stack.
    """
    parts = list(_parts(config))
    used = {type(part) for part in (*model.modules(), *parts)}
    modules = {one.__module__ for cls in used for one in cls.__mro__}
    if not all(name.partition(".")[0] in _LIBRARIES for name in modules):
        return None
    try:
        code = [_stamp(sys.modules[name].__file__) for name in sorted(modules) if name.startswith("transformers.")]
    except (OSError, KeyError):  # of code that is in no file, such as that of a program in one piece
        return None
    attention = [repr(getattr(part, compat.ATTENTION_KIND.name, None)) for part in parts]
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    facts = [name, repr(config.to_dict()), attention, list(kept.items()), code, _versions()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def is_known(digest: str) -> bool:
    """Tell whether a cut is known to pass."""
    try:
        return read_text(_file(digest), most=1000) == _text(digest)
    except (Unreadable, OSError, ValueError):  # not there, or not to be read: it is checked
        return False


def note(digest: str) -> None:
    """Note that a cut passes, unless the disk does not take it; of too many, the oldest is forgotten."""
    with suppress(OSError, ValueError):
        file = _file(digest)
        others = sorted(file.parent.iterdir(), key=lambda other: other.stat().st_mtime)
        for other in others[: max(0, len(others) + 1 - MOST)]:
            other.unlink(missing_ok=True)
        new = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
        new.write_text(_text(digest), encoding="utf-8")
        new.replace(file)  # whole or not at all, whoever else writes it


def _folder() -> Path:
    return cached_assets_path("hf_layerdrop", "cuts", "rebuilt")


def _file(digest: str) -> Path:
    return _folder() / digest[:40]


def _text(digest: str) -> str:
    return f"{digest} {_PASSES}\n"


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


@cache
def _versions() -> list[Any]:
    """Return the versions, and stamps of the files that decide, which may change without them."""
    own = [file for folder in _DECIDE for file in sorted((Path(__file__).parents[1] / folder).glob("*.py"))]
    built = sys.modules[transformers.PreTrainedModel.__module__].__file__
    return [transformers.__version__, torch.__version__, *map(_stamp, (*own, built))]


def _stamp(file: str | os.PathLike[str] | None) -> list[Any]:
    found = os.stat(file or "")
    return [os.path.basename(file or ""), found.st_size, found.st_mtime_ns]
