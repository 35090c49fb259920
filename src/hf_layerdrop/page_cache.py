"""Tell the system which bytes of a file will be wanted, so that it reads these, and none around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from threading import Thread

from hf_layerdrop.headers import TensorInfo

CAN_ANNOUNCE = hasattr(os, "posix_fadvise")  # not on macOS or Windows
_AT_ONCE = 128 * 1024  # of what it is told of in one call, Linux may read no more than it would read ahead
_AHEAD = 4 * 2**30  # of a model that does not fit into memory, the first bytes would be gone before they are used


def announce(descriptor: int, begin: int, end: int) -> None:
    """Have the system begin to read a part of a file; this does not wait for it."""
    for position in range(begin, end, _AT_ONCE):
        os.posix_fadvise(descriptor, position, min(_AT_ONCE, end - position), os.POSIX_FADV_WILLNEED)


def announce_tensors(folder: Path, tensors: Iterable[TensorInfo]) -> None:
    """Have the system begin to read tensors of the files of a folder, while the caller goes on.

    This is a hint: whoever reads them later does not rely on it, and a file that cannot be opened is theirs to report.
    """
    order = sorted(tensors, key=lambda tensor: (tensor.file, tensor.begin))
    parts = {file: list(group) for file, group in groupby(order, key=lambda tensor: tensor.file)}
    if CAN_ANNOUNCE and sum(tensor.nbytes for tensor in order) <= _AHEAD:
        Thread(target=_announce_parts, args=(folder, parts), daemon=True).start()


def _announce_parts(folder: Path, parts: Mapping[str, Sequence[TensorInfo]]) -> None:
    with suppress(OSError):
        for file, tensors in parts.items():
            with (folder / file).open("rb", buffering=0) as stream:
                data_begin = 8 + int.from_bytes(stream.read(8), "little")
                for tensor in tensors:
                    announce(stream.fileno(), data_begin + tensor.begin, data_begin + tensor.end)
