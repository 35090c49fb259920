"""The same batches for every sub-network, whatever draws their order or masks their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.state import GradientState
from accelerate.utils import send_to_device

from hf_layerdrop.evaluation.random_streams import RandomStreams
from hf_layerdrop.evaluation.unchanged import tensors_of

# Beyond it, batches are read again in place of being kept.
MOST_BYTES_KEPT = 10**9


class SteadyLoader:
    """A loader that draws the same at every reading, and moves no random stream but for its own length of time."""

    def __init__(self, loader: Any, start: RandomStreams | None = None) -> None:
        self.loader = loader
        self._start = start or RandomStreams(loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        before, present = RandomStreams(self.loader), self._start
        try:
            batches = None
            while True:
                others = RandomStreams()
                present.restore(self.loader)
                try:
                    batches = iter(self.loader) if batches is None else batches
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    present = RandomStreams(self.loader)
                    others.restore()
                yield batch
        finally:
            before.restore_own(self.loader)


class KeptBatches(DataLoaderStateMixin):
    """Batches of one reading of a loader, handed out again and again, each time as if it were read anew.

    What accelerate knows of a reading (is this the last batch, how many of its rows repeat others) comes along, since
    `gather_for_metrics` goes by it.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.gradient_state = GradientState()
        self._kept: list[tuple[Any, torch.device, bool, int]] = []
        self._size = 0
        self.is_complete = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        return len(self._kept) if self.is_complete else len(self.loader)

    def keep(self, batch: Any) -> bool:
        """Keep the batch that has just been read, unless that is too much; tell whether all so far are kept."""
        self._size += size_in_bytes(batch)
        if self._size > MOST_BYTES_KEPT:
            self._kept.clear()
            return False
        device = next((tensor.device for tensor in tensors_of(batch)), torch.device("cpu"))
        # An accelerator's memory is for the model.
        kept = fresh(batch) if device.type == "cpu" else send_to_device(batch, "cpu", non_blocking=True)
        self._kept.append((kept, device, self.gradient_state.end_of_dataloader, self.gradient_state.remainder))
        return True

    def __iter__(self) -> Iterator[Any]:
        return self._again() if self.is_complete else self._read()

    def _read(self) -> Iterator[Any]:
        self._kept.clear()
        self._size, fits = 0, True
        for batch in self.loader:
            fits = fits and self.keep(batch)
            yield batch
        self.is_complete = fits

    def _again(self) -> Iterator[Any]:
        self.begin()
        try:
            for batch, device, end, remainder in self._kept:
                self.end_of_dataloader, self.remainder = end, remainder
                yield fresh(batch) if device.type == "cpu" else send_to_device(batch, device)
        finally:
            self.end()


def fresh(batch: Any) -> Any:
    """Copy a batch, such that nothing that is done to the copy, or to its tensors in place, reaches the original."""
    if torch.is_tensor(batch):
        return batch.clone()
    if isinstance(batch, Mapping):  # of its own kind, as Trainer keeps it
        copied = {name: fresh(value) for name, value in batch.items()}
        kind: Any = type(batch)
        return copied if kind is dict else kind(copied)
    if type(batch) in (list, tuple):
        return type(batch)(fresh(value) for value in batch)
    return batch


def size_in_bytes(value: Any) -> int:
    """Add up the tensors of any nesting of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(value))
