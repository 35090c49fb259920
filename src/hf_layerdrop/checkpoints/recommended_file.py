"""Read and write ``layerdrop.json``, of a folder or of a model on the Hub, of which nothing else is fetched for it.

Anyone can write one, so it comes in by the door of `strangers`, and is refused whole if anything in it is not as it
should be. Nothing but who asks for recommended sets reads it: a broken one breaks nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from pydantic import ValidationError

from hf_layerdrop import compat
from hf_layerdrop.checkpoints.outputs import write_whole
from hf_layerdrop.checkpoints.recommended import VERSION, RecommendedSets
from hf_layerdrop.checkpoints.strangers import Unreadable, admitting, read_strict_json
from hf_layerdrop.checkpoints.unreadable import hub_answering, is_there, reading
from hf_layerdrop.errors import CheckpointError, KeepLayersError

RECOMMENDED_FILE = "layerdrop.json"
LARGEST_TABLE = 1_000_000  # bytes: a thousand sets of a hundred layers
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WHERE = ("revision", "token", "subfolder", "cache_dir", "local_files_only")

Recommended = RecommendedSets | str | os.PathLike[str] | Callable[[], RecommendedSets]
"""Recommended sets, the checkpoint that has them beside it, or what reads them."""


def read_recommended(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> RecommendedSets:
    """Read the recommended sets of a checkpoint, from ``layerdrop.json`` beside its config.

    Args:
        name_or_path: A checkpoint folder, the file itself, or a model on the Hub, of which this file alone is fetched.
        revision: As for ``from_pretrained``, as all that follows.
        token: For the Hub.
        subfolder: Where in the folder or repository the checkpoint is.
        cache_dir: Where the Hub's cache is.
        local_files_only: Whether only the cache is asked.

    Raises:
        CheckpointError: The file cannot be read, is of a later version, or holds something else.
        KeepLayersError: There is none.
    """
    where = {"revision": revision, "token": token, "subfolder": subfolder, "cache_dir": cache_dir}
    return table_beside(name_or_path, {**where, "local_files_only": local_files_only})


def table_beside(name_or_path: str | os.PathLike[str], where: Mapping[str, Any]) -> RecommendedSets:
    """Read recommended sets as `read_recommended`, of whose arguments those are taken that are there."""
    given = {name: where[name] for name in _WHERE if where.get(name) not in (None, "")}
    file = _find(name_or_path, given)
    if file is None:
        raise KeepLayersError(
            f"There are no recommended sets beside {_shown(name_or_path)} (no {RECOMMENDED_FILE}): measure it with "
            "hf-layerdrop sweep or search, which write them into its folder, or name the layers, such as keep_layers=6."
        )
    return read_table(file)


def found_recommended(name_or_path: str | os.PathLike[str], revision: str | None) -> RecommendedSets | None:
    """Return the recommended sets of a checkpoint, or None where there are none; see `read_recommended`."""
    try:
        return read_recommended(name_or_path, revision=revision)
    except KeepLayersError:
        return None


def recommended_of(model: Any) -> RecommendedSets:
    """Read the recommended sets of the checkpoint that a model in memory was loaded from.

    Raises:
        CheckpointError: See `read_recommended`.
        KeepLayersError: The model knows of no checkpoint, or that has none, or it has an adapter since.
    """
    if getattr(model, "peft_config", None):
        raise KeepLayersError(
            "The model has an adapter of PEFT, and the recommended sets beside its base are of the base alone: load "
            "the adapter's folder with keep_layers, merge it and measure that, or name the layers, such as 6."
        )
    source = getattr(model, "name_or_path", None)
    if not source:
        raise KeepLayersError(
            f"Recommended sets lie beside a checkpoint, but this {type(model).__name__} does not know of one that it "
            "was loaded from: load it with from_pretrained, or name the layers, such as keep_layers=6."
        )
    return read_recommended(source, revision=getattr(model.config, compat.COMMIT.name, None))


def read_table(file: str | os.PathLike[str]) -> RecommendedSets:
    """Read one file of recommended sets; see `read_recommended`."""
    try:
        values = read_strict_json(file, LARGEST_TABLE)
    except Unreadable as error:
        raise _refusal(file, str(error)) from error
    if isinstance(values, dict) and type(values.get("version")) is int and values["version"] > VERSION:
        raise CheckpointError(
            f"The recommended sets in {_shown(file)} are of version {str(values['version'])[:20]}, and this "
            f"hf_layerdrop knows {VERSION}: install a later one, or name the layers."
        )
    with admitting(lambda reason: _refusal(file, reason)):
        try:
            return RecommendedSets.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ascii(".".join(map(str, first["loc"]))[:80])
            reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
            raise Unreadable(f"{place if first['loc'] else 'the table'}: {reason[:200]}") from error


def write_recommended(table: RecommendedSets, folder: str | os.PathLike[str]) -> Path:
    """Write recommended sets beside a checkpoint; the file appears whole or not at all, in the place of an older one.

    Raises:
        OSError: If the folder does not take it.
    """
    file = Path(folder) / RECOMMENDED_FILE
    write_whole(file, json.dumps(table.model_dump(mode="json", exclude_defaults=True) | {"version": VERSION}, indent=1))
    return file


def _find(name_or_path: str | os.PathLike[str], where: dict[str, Any]) -> str | Path | None:
    """Return the file, where there is one."""
    if is_there(name_or_path):
        path = Path(name_or_path)
        file = path / (where.get("subfolder") or "") / RECOMMENDED_FILE if path.is_dir() else path
        return file if file.exists() or file.is_symlink() else None
    name = os.fspath(name_or_path)
    with reading(name, alone=True):
        try:
            return _fetched(name, where)
        except LocalEntryNotFoundError as error:
            raise KeepLayersError(
                f"The recommended sets of {name!r} are not in the Hub's cache, and the Hub is not asked or does not "
                "answer: check the network and HF_HUB_OFFLINE, or name the layers."
            ) from error
        except EntryNotFoundError:
            return None


def _fetched(name: str, where: dict[str, Any]) -> str:
    """Return where the Hub's cache has the file, after a look at its size and a download if need be."""
    from transformers.utils.hub import resolve_revision

    of_repo = {key: where[key] for key in ("token", "local_files_only", "cache_dir") if key in where}
    found, within = resolve_revision(name, where.get("revision"), **of_repo), where.get("subfolder")
    revision = getattr(found, "resolved", found)
    if revision and _COMMIT.fullmatch(revision):
        file = f"{within}/{RECOMMENDED_FILE}" if within else RECOMMENDED_FILE
        cached = try_to_load_from_cache(name, file, cache_dir=where.get("cache_dir"), revision=revision)
        if isinstance(cached, str):
            return cached
    if not where.get("local_files_only") and not constants.is_offline_mode():
        url = hf_hub_url(name, RECOMMENDED_FILE, revision=revision, subfolder=within)
        with hub_answering(name):
            size = get_hf_file_metadata(url, token=where.get("token")).size
        if size is not None and size > LARGEST_TABLE:
            raise _refusal(name, f"it is larger than {LARGEST_TABLE / 10**6:g} MB")
    with hub_answering(name):
        return hf_hub_download(name, RECOMMENDED_FILE, **{**where, "revision": revision})


def _refusal(file: str | os.PathLike[str], reason: str) -> CheckpointError:
    return CheckpointError(
        f"The recommended sets in {_shown(file)} cannot be used ({reason}): measure again with hf-layerdrop sweep, "
        "which replaces them, delete the file, or name the layers, such as keep_layers=6."
    )


def _shown(place: str | os.PathLike[str]) -> str:
    return ascii(str(PurePath(os.fspath(place))))
