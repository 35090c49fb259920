"""What LayerDrop adds to a training forward of layers that do next to nothing: where launching is all, it shows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from benchmarks._contenders import Size, batch_of, bert
from benchmarks.gpu._device import in_turn
from benchmarks.gpu.part import Measurement
from hf_layerdrop import inject_layerdrop, remove_layerdrop
from hf_layerdrop.injection.injected import find_injected


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """6 to 96 layers."""
    for depth in (6,) if short else (6, 12, 24, 48, 96):
        yield f"{depth} layers", partial(_measure, depth, device, 3 if short else 1200 // depth)


def _measure(depth: int, device: str, rounds: int) -> dict[str, Any]:
    size = Size(depth, 8, 1, 4)
    model = bert(size).to(device)
    batch = {name: value.to(device) for name, value in batch_of(size).items()}

    def ready(rate: float | None, _number: int) -> Any:
        if find_injected(model) is not None:
            remove_layerdrop(model)
        if rate is not None:
            inject_layerdrop(model, rate)
        for _ in range(3):
            model(**batch)
        return lambda: model(**batch)

    times = in_turn({"with": partial(ready, 1e-9), "without": partial(ready, None)}, rounds, device)
    added = [one - other for one, other in zip(times["with"], times["without"], strict=True)]
    return {"without_us": 1000 * median(times["without"]), "added_us": 1000 * median(added)}
