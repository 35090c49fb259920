"""Shapes and sizes of a checkpoint, from config.json and weight headers alone: no torch, no weights read.

Safetensors' own reader reads the headers, and believes nothing unchecked: of a file that it opens, the tensors fill the
data from end to end, and each has the bytes that its dtype and shape take.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from hf_layerdrop.checkpoints.strangers import LARGE, LARGEST, Unreadable, check_kind, read_json
from hf_layerdrop.errors import CheckpointError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_AT_ONCE = 2**20  # of a call for more, Linux may read no more than a disk takes at once
_LONGEST_HEADER = 100_000_000  # bytes
_TEXTS = (
    "*config.json",
    "*.index.json",
    "tokenizer*.json",
    "*_map.json",
    "*tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
)
_LONGEST_REASON = 300  # characters
_BUFFER_DTYPES = {"BOOL", "I32", "I64"}  # position_ids and the like


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; ``begin`` and ``end`` count bytes from the beginning of ``file``."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: str

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in its file."""
        return self.end - self.begin

    @property
    def parameters(self) -> int:
        """Number of values, or 0 for integer buffers."""
        return 0 if self.dtype in _BUFFER_DTYPES else math.prod(self.shape)


@dataclass(frozen=True)
class CheckpointHeaders:
    """Config and tensors of a whole checkpoint; ``source`` is the folder or the Hub id it was read from."""

    source: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def model_type(self) -> str | None:
        """The architecture family as config.json names it."""
        return self.config.get("model_type")

    @property
    def architectures(self) -> list[str]:
        """The names of model classes in config.json, where anyone may have written something else."""
        named = self.config.get("architectures")
        named = [named] if isinstance(named, str) else named
        return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []

    @property
    def parameters(self) -> int:
        """Number of parameters; tied weights are stored, and counted, once."""
        return sum(tensor.parameters for tensor in self.tensors.values())


def has_only_pickle(folder: str | Path) -> bool:
    """Tell a folder whose weights can be read by unpickling alone."""
    names = {name for name in (WEIGHTS_NAME, INDEX_NAME, *PICKLE_NAMES) if (Path(folder) / name).exists()}
    return bool(names) and names <= set(PICKLE_NAMES)


def read_checkpoint(folder: str | Path) -> CheckpointHeaders:
    """Read config.json and the headers of all weight files of a local folder.

    Raises:
        CheckpointError: Something is missing, corrupt, contradicts itself, or is a pickle.
    """
    folder = Path(folder)
    return CheckpointHeaders(str(folder), read_config(folder), read_tensors(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read config.json of a local folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(no_folder(folder))
    if not (folder / CONFIG_NAME).exists():
        check_not_gguf(str(folder), (path.name for path in folder.iterdir()))
        raise CheckpointError(
            f"The folder {str(folder)!r} has no {CONFIG_NAME}: give a folder that save_pretrained or the Hub made."
        )
    config = _read_json(folder / CONFIG_NAME)
    for path in folder.iterdir():  # of those that transformers reads whole
        if any(map(path.match, _TEXTS)) and path.is_file() and path.stat().st_size > LARGEST:
            raise CheckpointError(f"The file {str(path)!r} is larger than {LARGEST // 10**6} MB: download it again.")
    if not isinstance(config.get("model_type"), str | None):
        _refuse(folder / CONFIG_NAME, f"its model_type is {config['model_type']!r} and not a name")
    return config


def no_folder(path: str | Path) -> str:
    """Say what is wrong with a path that leads to no folder."""
    what = "is a file, not a checkpoint folder" if Path(path).exists() else "does not exist"
    return f"The checkpoint {str(path)!r} {what}: give a folder that holds {CONFIG_NAME}, or a Hub id."


def read_header(file: str | Path, shown: PurePath | None = None) -> dict[str, TensorInfo]:
    """Read the header of one safetensors file.

    Args:
        file: The file.
        shown: Its name for messages, if that is another one.
    """
    file = Path(file)
    shown = shown or file
    try:
        check_kind(file)
        with file.open("rb", buffering=0) as opened:
            announce(opened.fileno(), 0, 8)
            announce(opened.fileno(), 8, 8 + min(int.from_bytes(opened.read(8), "little"), _LONGEST_HEADER))
        with safe_open(file, framework="numpy") as content:
            slices = {name: content.get_slice(name) for name in content.offset_keys()}
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, Unreadable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"The weight file {str(shown)!r} cannot be read: {reason}.") from error
    except SafetensorError as error:
        raise CheckpointError(_corrupt(shown, one_line(error))) from error
    # In order, and without gaps, they end where the file ends.
    sizes = [math.prod(shape) * bits_of(dtype) // 8 for dtype, shape in found.values()]
    places = pairwise(accumulate(sizes, initial=file.stat().st_size - sum(sizes)))
    return {
        name: TensorInfo(dtype, shape, begin, end, shown.name)
        for (name, (dtype, shape)), (begin, end) in zip(found.items(), places, strict=True)
    }


def announce(descriptor: int, begin: int, end: int) -> None:
    """Have the system begin to read a part of a file that is mapped into memory.

    Where a page is touched that is not there yet, it would read as much around it as the disk is set to read ahead.
    """
    if hasattr(os, "posix_fadvise"):  # not on macOS or Windows
        for position in range(begin, min(end, os.fstat(descriptor).st_size), _AT_ONCE):
            os.posix_fadvise(descriptor, position, min(_AT_ONCE, end - position), os.POSIX_FADV_WILLNEED)


def bits_of(dtype: str) -> int:
    """Return the size of one value of a dtype, which safetensors' names of them say: ``F32``, ``F8_E4M3``."""
    return 8 if dtype == "BOOL" else int(re.findall(r"\d+", dtype)[0])


def one_line(error: Exception) -> str:
    """Return what an error says as a short line; it may quote what a stranger's file says."""
    text = " ".join(str(error).split())
    return "".join(character if character.isprintable() else "?" for character in text)[:_LONGEST_REASON]


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Read and check the headers of all weight files of a local folder."""
    if (folder / WEIGHTS_NAME).exists():  # the order of transformers, should there be both
        return read_header(folder / WEIGHTS_NAME)
    if (folder / INDEX_NAME).exists():
        return _read_sharded(folder)
    if has_only_pickle(folder):
        raise CheckpointError(only_pickle(str(folder)))
    check_not_gguf(str(folder), (path.name for path in folder.iterdir()))
    raise CheckpointError(
        f"The folder {str(folder)!r} has no weights ({WEIGHTS_NAME} or {INDEX_NAME}): download the checkpoint again."
    )


def _read_sharded(folder: Path) -> dict[str, TensorInfo]:
    weight_map = read_index(folder / INDEX_NAME)
    shards = {shard: read_header(folder / shard) for shard in dict.fromkeys(weight_map.values())}
    return find_placed(weight_map, shards, folder)


def find_placed(
    weight_map: Mapping[str, str], shards: Mapping[str, Mapping[str, TensorInfo]], folder: PurePath
) -> dict[str, TensorInfo]:
    """Return the tensors that an index places in shards, each from the shard that it names."""
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            _refuse(folder / shard, f"it lacks the tensor {name!r} that {INDEX_NAME} places there")
    return {name: replace(shards[shard][name], file=shard) for name, shard in weight_map.items()}


def read_index(index: Path) -> dict[str, str]:
    """Read which weight file holds each tensor of a checkpoint in shards."""
    weight_map = _read_json(index, LARGEST).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "it has no weight_map")
    _check_names(weight_map.values(), index)
    return weight_map


def check_metadata(folder: Path) -> None:
    """Refuse an index without what transformers looks up in it, though nothing of that is needed.

    Raises:
        CheckpointError: If it has none.
    """
    index = folder / INDEX_NAME
    if (folder / WEIGHTS_NAME).exists() or not index.exists():
        return
    if not isinstance(_read_json(index, LARGEST).get("metadata"), dict):
        raise CheckpointError(
            f"The file {str(index)!r} has no metadata, without which transformers does not read it: write "
            '"metadata": {} into it, or download it again.'
        )


def check_uploaded(shards: Iterable[str], files: Collection[str], repo_id: str) -> None:
    """Check that a repository holds the shards that are needed of it.

    Raises:
        CheckpointError: If it lacks one.
    """
    for shard in shards:
        if shard not in files:
            raise CheckpointError(
                f"{repo_id!r} lacks the weight file {shard!r} that {INDEX_NAME} names: its upload is not complete, so "
                "tell its owner, or choose another revision."
            )


def _check_names(shards: Iterable[Any], index: Path) -> None:
    """Check that no name, which may come from the network, leads out of the folder.

    Only the name is judged: in the Hub's cache every file is a link that leads out of its folder.
    """
    for name in shards:
        if not isinstance(name, str) or not _stays_inside(name):
            _refuse(index, f"it names the weight file {name!r}, which is not inside the folder")


def _stays_inside(name: str) -> bool:
    paths = PurePosixPath(name), PureWindowsPath(name)
    return bool(name) and "\0" not in name and not any(path.anchor or ".." in path.parts for path in paths)


def _read_json(file: Path, most: int = LARGE) -> dict[str, Any]:
    try:
        content = read_json(file, most)
    except Unreadable as error:
        if not isinstance(error.__cause__, ValueError | RecursionError):
            raise CheckpointError(f"The file {str(file)!r} cannot be read: {error}.") from error
        content = None
    if not isinstance(content, dict):
        _refuse(file, "it is not a JSON object")
    return content


def _refuse(file: PurePath, reason: str) -> NoReturn:
    raise CheckpointError(_corrupt(file, reason))


def _corrupt(file: PurePath, reason: str) -> str:
    return f"The file {str(file)!r} is corrupt: {reason}; download it again."


def check_not_gguf(source: str, files: Iterable[str]) -> None:
    """Refuse weights that are GGUF alone: transformers has a reader for them, which is asked for by the file's name.

    Raises:
        CheckpointError: If one of the files is GGUF.
    """
    if found := sorted(name for name in files if name.lower().endswith(".gguf")):
        raise CheckpointError(
            f"{source!r} has its weights only as GGUF ({found[0]}), which the command line does not read: in Python, "
            f"give gguf_file={found[0]!r} to from_pretrained or save_pruned, which transformers' own reader then reads."
        )


def only_pickle(source: str) -> str:
    """Say that a checkpoint is a pickle, and how to read it all the same."""
    return (
        f"{source!r} has its weights only as a pickle ({PICKLE_NAMES[0]}), which can run code when read: if you trust "
        "it, allow it with use_safetensors=False in Python or --allow-pickle on the command line."
    )
