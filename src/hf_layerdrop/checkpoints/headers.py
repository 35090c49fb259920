"""Shapes and sizes of a checkpoint, from config.json and weight headers alone: no torch, no weights read.

A safetensors file begins with eight bytes, the length of its header, and a JSON header that gives each tensor's dtype,
shape and place in the data that follows. Nothing of it is believed unchecked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn, TypeGuard

from hf_layerdrop.errors import CheckpointError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_LONGEST_HEADER = 100_000_000  # the limit of safetensors itself
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_BUFFER_DTYPES = {"BOOL", "I32", "I64"}  # position_ids and the like


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; ``begin`` and ``end`` count bytes from the end of the header of ``file``."""

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
    if not (folder / CONFIG_NAME).is_file():
        check_not_gguf(str(folder), (path.name for path in folder.iterdir()))
        raise CheckpointError(
            f"The folder {str(folder)!r} has no {CONFIG_NAME}: give a folder that save_pretrained or the Hub made."
        )
    config = _read_json(folder / CONFIG_NAME)
    if not isinstance(config.get("model_type"), str | None):
        _refuse(folder / CONFIG_NAME, f"its model_type is {config['model_type']!r} and not a name")
    return config


def no_folder(path: str | Path) -> str:
    """Say what is wrong with a path that leads to no folder."""
    what = "is a file, not a checkpoint folder" if Path(path).exists() else "does not exist"
    return f"The checkpoint {str(path)!r} {what}: give a folder that holds {CONFIG_NAME}, or a Hub id."


def read_header(file: str | Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file."""
    return read_layout(file)[0]


def read_layout(file: str | Path) -> tuple[dict[str, TensorInfo], int]:
    """Read and check the header of one safetensors file; return also at which byte of the file the data begins."""
    file = Path(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = header_length(stream.read(8), size, file)
            return parse_header(stream.read(length), size, file), 8 + length
    except OSError as error:
        raise CheckpointError(f"The weight file {str(file)!r} cannot be read: {error.strerror}.") from error


def header_length(raw: bytes, size: int, file: PurePath) -> int:
    """Read the length of the header of a safetensors file of ``size`` bytes from the first eight of them."""
    length = int.from_bytes(raw, "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        _refuse(file, f"it is {size} bytes long, too short for its header")
    return length


def parse_header(raw: bytes, size: int, file: PurePath) -> dict[str, TensorInfo]:
    """Check the header of a safetensors file of ``size`` bytes in all: ``raw`` is what stands after its length."""
    header = _json_header(raw, file)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(file, "its __metadata__ does not map names to texts")
    tensors = {name: _tensor_info(name, entry, file) for name, entry in header.items() if name != "__metadata__"}
    _check_layout(tensors, size - 8 - len(raw), file)
    return tensors


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
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def read_index(index: Path) -> dict[str, str]:
    """Read which weight file holds each tensor of a checkpoint in shards."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "it has no weight_map")
    _check_names(weight_map.values(), index)
    return weight_map


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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        _refuse(file, "it is not a JSON object")
    return content


def _json_header(raw: bytes, file: PurePath) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a key stands twice")
        return entries

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        _refuse(file, "its header is not a JSON object")
    return header


def _tensor_info(name: str, entry: Any, file: PurePath) -> TensorInfo:
    if not isinstance(entry, dict):
        _refuse(file, f"its header does not describe the tensor {name!r}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        _refuse(file, f"the tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _refuse(file, f"the tensor {name!r} has no usable shape and offsets")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        _refuse(file, f"the tensor {name!r} of shape {shape} and dtype {dtype} cannot take {end - begin} bytes")
    return TensorInfo(dtype, tuple(shape), begin, end, file.name)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(tensors: Mapping[str, TensorInfo], data_size: int, file: PurePath) -> None:
    """Check that the tensors fill the data from end to end, as the format demands."""
    expected = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != expected:
            _refuse(file, f"the tensor {name!r} begins at byte {tensor.begin} of the data instead of {expected}")
        expected = tensor.end
    if data_size < expected:
        _refuse(file, f"it is truncated, {expected - data_size} bytes are missing")
    if data_size > expected:
        _refuse(file, f"it has {data_size - expected} bytes that its header does not know")


def _refuse(file: PurePath, reason: str) -> NoReturn:
    raise CheckpointError(f"The file {str(file)!r} is corrupt: {reason}; download it again.")


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
