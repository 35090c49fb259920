"""Time what runs on a device without waiting for it: marks in its queue of work, which are read when they are past."""

from __future__ import annotations

import time
from typing import Any

import torch

OF_THE_HOST = ("cpu", "meta")  # devices whose work is done when its call returns


class Stopwatch:
    """Started when it is made, for work on a device; to ask for its seconds waits until the work is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = None if device.type in OF_THE_HOST else device
        self._begin = self._end = self._mark()

    def stop(self) -> Stopwatch:
        """End here."""
        self._end = self._mark()
        return self

    @property
    def seconds(self) -> float:
        """The time between the two marks."""
        if self._device is not None:
            self._end.synchronize()
            self._begin, self._end, self._device = 0.0, self._begin.elapsed_time(self._end) / 1000, None
        return float(self._end - self._begin)

    def _mark(self) -> Any:
        if self._device is None:
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self._device))
        return event
