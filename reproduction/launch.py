"""The processes of a launch: all train, one writes."""

from __future__ import annotations

from accelerate import PartialState
from torch import accelerator


def processes() -> PartialState:
    """Return what knows the processes that ``accelerate launch`` or torchrun started; one, if nothing did.

    It is the same for the whole process, and Trainer's own, so that it has to be told of a machine without accelerator.
    """
    return PartialState(cpu=not accelerator.is_available())
