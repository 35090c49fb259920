"""Tensors of safetensors files that are read when they are asked for: the bytes of each, and none beside them.

As in transformers' own loader a tensor is a view of the file mapped into memory, so that nothing is copied. But where a
page is touched that is not in memory yet, the system reads megabytes around it, much of the layers between the kept
ones. Here the system is told of the exact bytes of a tensor first.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from hf_layerdrop.checkpoints.page_cache import CAN_ANNOUNCE, announce
from hf_layerdrop.checkpoints.weight_files import StoredTensor, read_stored

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux, for which Python's mmap has no name yet


class LazyTensor:
    """A tensor that ``tensor[...]`` reads; it answers as a slice of safetensors does."""

    def __init__(self, stored: StoredTensor, mapped: _MappedFile) -> None:
        self.stored, self._mapped = stored, mapped

    @property
    def dtype(self) -> torch.dtype:
        """Torch's name of the dtype."""
        return _DTYPES[self.stored.dtype]

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """Return safetensors' name of the dtype."""
        return self.stored.dtype

    def emptied(self) -> torch.Tensor:
        """Return a tensor of this shape and dtype on the meta device."""
        return torch.empty(self.stored.shape, dtype=self.dtype, device="meta")

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read the tensor; of a part of it (tensor parallelism), only the pages that are used."""
        if not self.stored.nbytes:
            return torch.empty(self.stored.shape, dtype=self.dtype)[index]
        if index is Ellipsis:
            self._mapped.populate(self.stored)
        begin, count = self.stored.begin, self.stored.nbytes // self.dtype.itemsize
        values = torch.frombuffer(self._mapped.pages, dtype=self.dtype, count=count, offset=begin)
        return values.view(self.stored.shape)[index]


class _MappedFile:
    """A file in memory; private, so that training a model changes its own copy of a page and not the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._descriptor = file.fileno()
        self._madvise = ctypes.CDLL(None).madvise  # mmap.madvise holds the GIL while it waits
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))

    def populate(self, stored: StoredTensor) -> None:
        """Map all pages of a tensor in one go rather than one by one as they are used; older systems cannot."""
        announce(self._descriptor, stored.begin, stored.end)
        begin = stored.begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._madvise(ctypes.c_void_p(self._address + begin), ctypes.c_size_t(stored.end - begin), _POPULATE_READ)


def open_tensors(path: str, files: ExitStack) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name; nothing of them is read before ``files`` is closed.

    Raises:
        CheckpointError: The file's header is not to be believed.
    """
    stored = read_stored(path)
    if not all(map(_can_be_mapped, stored.values())):
        slices = files.enter_context(safe_open(path, framework="pt"))
        return {name: slices.get_slice(name) for name in stored}
    file = files.enter_context(Path(path).open("rb"))  # noqa: SIM115 - closed by `files`
    mapped = _MappedFile(file)  # the last tensor to go unmaps it
    return {name: LazyTensor(tensor, mapped) for name, tensor in stored.items()}


def _can_be_mapped(tensor: StoredTensor) -> bool:
    """Tell tensors that torch can take from a file from those that safetensors has to convert or align."""
    dtype = _DTYPES.get(tensor.dtype)
    return CAN_ANNOUNCE and dtype is not None and tensor.begin % dtype.itemsize == 0
