"""Look at who is calling: for the few facts that neither torch nor transformers hands on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType


def callers() -> Iterator[FrameType]:
    """Yield the frames of the callers of the function that calls this, innermost first."""
    own = inspect.currentframe()
    frame: FrameType | None = own.f_back if own is not None else None
    while frame is not None:
        yield frame
        frame = frame.f_back
