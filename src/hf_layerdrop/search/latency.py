"""Measure how long a forward of a sub-network takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_layerdrop.evaluation.model_or_trainer import quiet_eval
from hf_layerdrop.evaluation.ranks import ALONE, Ranks
from hf_layerdrop.evaluation.stopwatch import Stopwatch
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.samplers.keep_layers import KeepLayers
from hf_layerdrop.search.importance import without_labels
from hf_layerdrop.search.space import Layers

WARM_UP = 3
REPEATS = 15


def measure_latency(
    model: PreTrainedModel,
    batch: Mapping[str, object],
    *,
    keep_layers: KeepLayers = None,
    batch_size: int = 1,
    length: int | None = None,
) -> float:
    """Return the median time of a forward in milliseconds, after a warm-up, on this machine with its present threads.

    A decoder is timed on one forward over all its tokens, not on generation. On a device it is the time between two
    marks in its queue of work, in which one forward follows the other.

    Args:
        model: The model; it is cut in place for the time of the measurement.
        batch: Inputs to take the values from; its rows and tokens are repeated or cut to the sizes asked for.
        keep_layers: The layers to keep; None for the whole model.
        batch_size: Rows.
        length: Tokens a row; None for as many as the batch has.
    """
    cutter = Cutter(model)
    return LatencyMeter(model, cutter, batch, batch_size, length).milliseconds(cutter.parse(keep_layers))


@dataclass
class LatencyMeter:
    """Time sub-networks of one model on one input; of several ranks, rank 0 does, and the others wait in silence."""

    model: PreTrainedModel
    cutter: Cutter
    batch: Mapping[str, Any]
    batch_size: int = 1
    length: int | None = None
    ranks: Ranks = ALONE
    _inputs: dict[str, Any] | None = field(default=None, repr=False)

    def milliseconds(self, kept: Layers) -> float:
        """Return the median time of a forward of a sub-network."""
        return self.ranks.from_first(lambda: self._milliseconds(kept))

    def _milliseconds(self, kept: Layers) -> float:
        if self._inputs is None:
            self._inputs = without_labels(sized(self.batch, self.batch_size, self.length), self.model)
        with torch.no_grad(), quiet_eval(self.model), self.cutter.sub_network(kept):
            times = [self._time(self._inputs) for _ in range(WARM_UP + REPEATS)]
        return 1000 * median(watch.seconds for watch in times[WARM_UP:])

    def _time(self, inputs: dict[str, Any]) -> Stopwatch:
        watch = Stopwatch(self.model.device)
        self.model(**inputs)
        return watch.stop()


def sized(batch: Mapping[str, Any], rows: int, length: int | None) -> dict[str, Any]:
    """Repeat or cut a batch to a number of rows; token ids and masks (rows x tokens, whole numbers) to a length too."""
    inputs = {}
    for name, value in batch.items():
        if torch.is_tensor(value) and value.dim():
            value = _stretched(value, 0, rows)
            if length is not None and value.dim() == 2 and not value.is_floating_point():
                value = _stretched(value, 1, length)
        inputs[name] = value
    return inputs


def _stretched(value: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    return value.index_select(dim, torch.arange(size, device=value.device) % value.shape[dim])
