"""Tell the system which bytes of a file will be wanted, so that it reads these, and none around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from threading import Thread

from hf_layerdrop.checkpoints.headers import TensorInfo

CAN_ANNOUNCE = hasattr(os, "posix_fadvise")  # not on macOS or Windows
_AT_ONCE = 128 * 1024  # of what it is told of in one call, Linux may read no more than it would read ahead
_AHEAD = 4 * 2**30  # of a model that does not fit into memory, the first bytes would be gone before they are used


def announce(descriptor: int, begin: int, end: int) -> None:
    """Have the system begin to read a part of a file; this does not wait for it.

    In few calls: whoever builds a model meanwhile keeps the GIL for milliseconds before each of them returns.
    """
    step = _read_at_once(os.fstat(descriptor).st_dev)
    for position in range(begin, end, step):
        os.posix_fadvise(descriptor, position, min(step, end - position), os.POSIX_FADV_WILLNEED)


@cache
def _read_at_once(device: int) -> int:
    """Return how many bytes of one call the system takes to heart: as many as it would read ahead on this device."""
    place = f"{os.major(device)}:{os.minor(device)}"
    disk = Path("/sys/dev/block", place)
    for file in (
        Path("/sys/class/bdi", place, "read_ahead_kb"),
        disk / "queue/read_ahead_kb",
        disk / "../queue/read_ahead_kb",
    ):
        with suppress(OSError, ValueError):
            return max(_AT_ONCE, int(file.read_text(encoding="ascii")) * 1024)
    return _AT_ONCE


def announce_tensors(folder: Path, tensors: Iterable[TensorInfo]) -> None:
    """Have the system begin to read tensors of the files of a folder, while the caller goes on.

    This is a hint: whoever reads them later does not rely on it, and a file that cannot be opened is theirs to report.
    """
    order = sorted(tensors, key=lambda tensor: (tensor.file, tensor.begin))
    parts = {
        file: _joined([(tensor.begin, tensor.end) for tensor in group])
        for file, group in groupby(order, key=lambda tensor: tensor.file)
    }
    if CAN_ANNOUNCE and sum(tensor.nbytes for tensor in order) <= _AHEAD:
        Thread(target=_announce_parts, args=(folder, parts), daemon=True).start()


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans that touch; they come in order."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and begin == joined[-1][1]:
            begin = joined.pop()[0]
        joined.append((begin, end))
    return joined


def _announce_parts(folder: Path, parts: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    with suppress(OSError):
        for file, spans in parts.items():
            with (folder / file).open("rb", buffering=0) as stream:
                data_begin = 8 + int.from_bytes(stream.read(8), "little")
                for begin, end in spans:
                    announce(stream.fileno(), data_begin + begin, data_begin + end)
