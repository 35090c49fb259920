"""What LayerDrop adds to a forward whose layers do next to nothing, with the model on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.part import Measurement
from benchmarks.overhead import DEPTHS, MODES, _added, _model


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """6 to 96 layers, in each mode."""
    for depth in DEPTHS[: 1 if short else None]:
        yield f"{depth} layers", partial(_measure, depth, device, 3 if short else 60)


def _measure(depth: int, device: str, rounds: int) -> dict[str, Any]:
    model = _model(depth).to(device)
    return {f"{mode}, us": _added(model, *setting, rounds, "wall") for mode, setting in MODES.items()}
