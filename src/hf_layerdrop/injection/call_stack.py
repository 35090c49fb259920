"""Look at who is calling: for the few facts that neither torch nor transformers hands on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FrameType

from torch import nn


def callers() -> Iterator[FrameType]:
    """Yield the frames of the callers of the function that calls this, innermost first."""
    own = inspect.currentframe()
    frame: FrameType | None = own.f_back if own is not None else None
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_running(code: CodeType) -> bool:
    """Tell whether a function is among the callers, by its code; asked in each forward, and so without a generator."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def running_module(otherwise: nn.Module) -> nn.Module:
    """Return the outermost module among the callers: the model that is trained, with all that is wrapped around it."""
    found = otherwise
    for frame in callers():
        if isinstance(module := frame.f_locals.get("self"), nn.Module):
            found = module
    return found
