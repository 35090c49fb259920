"""Copy tensors from weight files into new ones as bytes, piece by piece: nothing is decoded, and little is in memory.

What is written is what ``save_pretrained`` writes of the same tensors, to the byte: safetensors, in shards above 50 GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

from hf_layerdrop.checkpoints.headers import INDEX_NAME, WEIGHTS_NAME, TensorInfo, read_layout
from hf_layerdrop.errors import CheckpointError

# Gives the bytes of a file from one position to another, in chunks; the file is named as in `StoredTensor.file`.
Stream = Callable[[str, int, int], Iterable[bytes]]

CHUNK = 8 * 2**20
_LARGEST_FILE = "50GB"  # the default of save_pretrained
_METADATA = {"__metadata__": {"format": "pt"}}
# The order in which safetensors lays out dtypes, the strictest alignment first; unknown ones may stand anywhere.
_DTYPES = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor where it lies: ``begin`` and ``end`` count bytes from the beginning of ``file``."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return self.end - self.begin


@dataclass(frozen=True)
class Run:
    """Bytes of one file that are read in one go, and the tensors in them, in order."""

    file: str
    begin: int
    end: int
    names: tuple[str, ...]


def stored_tensors(tensors: Mapping[str, TensorInfo], data_begin: int, file: str) -> dict[str, StoredTensor]:
    """Turn what a header says into places in its file, whose data begins at ``data_begin``."""
    return {
        name: StoredTensor(info.dtype, info.shape, file, data_begin + info.begin, data_begin + info.end)
        for name, info in tensors.items()
    }


def read_stored(file: str | Path) -> dict[str, StoredTensor]:
    """Read where the tensors of a local file lie."""
    return stored_tensors(*read_layout(file), str(file))


def stream_local(file: str, begin: int, end: int) -> Iterator[bytes]:
    """Read a part of a local file in chunks."""
    with Path(file).open("rb") as stream:
        stream.seek(begin)
        while begin < end:
            chunk = stream.read(min(CHUNK, end - begin))
            if not chunk:
                raise CheckpointError(f"The weight file {file!r} was cut short while it was read; download it again.")
            begin += len(chunk)
            yield chunk


def find_runs(tensors: Mapping[str, StoredTensor], spare: int = 0) -> list[Run]:
    """Join tensors that lie side by side, and those with less than ``spare`` bytes in all between them."""
    order = sorted(tensors, key=lambda name: (tensors[name].file, tensors[name].begin, tensors[name].end))
    gaps = sorted(
        (tensors[name].begin - tensors[before].end, name)
        for before, name in pairwise(order)
        if tensors[before].file == tensors[name].file
    )
    joined: set[str] = set()
    for gap, name in gaps:
        spare -= max(gap, 0)
        if spare < 0:
            break
        joined.add(name)
    return list(_runs(tensors, order, joined))


def _runs(tensors: Mapping[str, StoredTensor], order: Sequence[str], joined: set[str]) -> Iterator[Run]:
    """Yield the runs of tensors in file order, where each of ``joined`` belongs to the one before."""
    names: list[str] = []
    for name in order:
        if names and name not in joined:
            yield _run(tensors, names)
            names = []
        names.append(name)
    if names:
        yield _run(tensors, names)


def _run(tensors: Mapping[str, StoredTensor], names: Sequence[str]) -> Run:
    begin, end = tensors[names[0]].begin, max(tensors[name].end for name in names)
    return Run(tensors[names[0]].file, begin, end, tuple(names))


def write_weights(
    folder: Path, tensors: Mapping[str, StoredTensor], stream: Stream, *, parameters: int | None = None, spare: int = 0
) -> None:
    """Write tensors into a folder under the names that they are given by.

    Args:
        folder: Where to write; it must exist.
        tensors: The tensors by their new names, in the order in which shards are filled.
        stream: Reads from the files in which they lie.
        parameters: Number of parameters, for the index of a checkpoint in shards.
        spare: Bytes that may be read in vain to join neighbouring reads.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=_LARGEST_FILE,
    )
    if split.is_sharded:
        counted = {} if parameters is None else {"total_parameters": parameters}
        index = {"metadata": {**counted, **split.metadata}, "weight_map": split.tensor_to_filename}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with ExitStack() as files:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for file, names in split.filename_to_tensors.items():
            target = files.enter_context((folder / file).open("wb"))
            places |= _begin_file(target, {name: tensors[name] for name in names})
        for run in find_runs(tensors, spare):
            _copy_run(run, tensors, places, stream)


def _begin_file(target: BinaryIO, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[BinaryIO, int]]:
    """Write the header of a file, and return where in it each tensor belongs."""
    order = sorted(tensors, key=lambda name: (_RANKS.get(tensors[name].dtype, len(_RANKS)), name.encode()))
    ends = dict(zip(order, accumulate(tensors[name].nbytes for name in order), strict=True))
    begins = {name: ends[name] - tensors[name].nbytes for name in order}
    entries = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begins[name], ends[name]]}
        for name, tensor in ((name, tensors[name]) for name in order)
    }
    header = json.dumps({**_METADATA, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    target.write(len(header).to_bytes(8, "little") + header)
    target.truncate(8 + len(header) + max(ends.values(), default=0))
    return {name: (target, 8 + len(header) + begin) for name, begin in begins.items()}


def _copy_run(
    run: Run, tensors: Mapping[str, StoredTensor], places: Mapping[str, tuple[BinaryIO, int]], stream: Stream
) -> None:
    """Read the bytes of a run once, and put those of each tensor where they belong."""
    position, waiting = run.begin, list(run.names)
    for chunk in stream(run.file, run.begin, run.end):
        end = position + len(chunk)
        for name in waiting:
            tensor = tensors[name]
            if tensor.begin >= end:
                break
            first, last = max(position, tensor.begin), min(end, tensor.end)
            if first < last:
                target, place = places[name]
                target.seek(place + first - tensor.begin)
                target.write(memoryview(chunk)[first - position : last - position])
        waiting = [name for name in waiting if tensors[name].end > end]
        position = end
    if position != run.end:
        raise CheckpointError(f"{run.file!r} gave {position - run.begin} bytes instead of {run.end - run.begin}.")
