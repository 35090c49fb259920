"""All sets of half of the layers: prefixes shared, beside a loop that runs every sub-network alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu._device import milliseconds
from benchmarks.gpu.part import Measurement
from benchmarks.search import _data, _model, _score_alone, _search_shared
from hf_layerdrop.search.space import Space


def measurements(device: str, short: bool) -> Iterator[Measurement]:
    """6 of 12 layers, or 2 of 4."""
    keep, layers = (2, 4) if short else (6, 12)
    yield f"{keep} of {layers}", partial(_measure, keep, layers, device, short)


def _measure(keep: int, layers: int, device: str, short: bool) -> dict[str, Any]:
    model = _model(layers, 64 if short else 768, 0).to(device)
    data = [
        {name: value.to(device) for name, value in batch.items()}
        for batch in _data(2, 4 if short else 64, 16 if short else 128, 0)
    ]
    sets = list(Space({"encoder": layers}, {"encoder": keep}).every_set())
    _score_alone(model, data, sets[:3])
    _search_shared(model, data, sets[:3], 4096.0)  # imports and first calls are no part of the comparison
    shared: dict[str, Any] = {}
    alone: dict[Any, Any] = {}
    ours = milliseconds(lambda: shared.update(_search_shared(model, data, sets, 4096.0)), device)
    other = milliseconds(lambda: alone.update(_score_alone(model, data, sets)), device)
    return {
        "sets": len(sets),
        "ours_s": ours / 1000,
        "beside_s": other / 1000,
        "ratio": ours / other,
        "layer_forwards": shared["layer_forwards"] / (len(sets) * keep),
        "same_scores": shared["scores"] == alone,
    }
