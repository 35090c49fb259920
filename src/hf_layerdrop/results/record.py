"""The record that every measurement of a sub-network returns; tables, plots, cards and JSON are views of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hf_layerdrop.checkpoints.provenance import Index, Layers
from hf_layerdrop.samplers.frozen_dict import FrozenDict

_Number = Annotated[float, Field(strict=True)]


class _Stored(BaseModel):
    """A record as it stands in a file, which anyone may have written; a metric of null is one that is no number."""

    model_config = ConfigDict(extra="forbid")

    keep_layers: Layers
    parameters: Index
    metrics: dict[str, _Number | None]
    seconds_per_batch: _Number | None
    layer_forwards: Index
    rows: dict[str, Index] = {}
    intervals: dict[str, tuple[_Number, _Number]] = {}


@dataclass(frozen=True)
class SubNetworkResult:
    """What one sub-network is, what it scored and what it cost.

    Attributes:
        keep_layers: Indices of the kept layers by stack, in the numbering of the model that was measured.
        parameters: Number of parameters of the sub-network, tied weights counted once.
        metrics: Metric values by name, without a prefix (``accuracy``, ``loss``).
        seconds_per_batch: Median wall time of a forward of this sub-network alone, in seconds; None if not timed.
        layer_forwards: Layer forwards that were run for it; prefixes shared with records before it are not counted
            again.
        rows: On how many rows each metric was measured, as far as that is known.
        intervals: Where a metric that is a share of rows (accuracy) lies with 95 % confidence, by Wilson's interval;
            the others have none, but for those of lm_eval's tasks, which come with their standard errors.
    """

    keep_layers: Mapping[str, tuple[int, ...]]
    parameters: int
    metrics: Mapping[str, float]
    seconds_per_batch: float | None
    layer_forwards: int
    rows: Mapping[str, int] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze what the record holds, too."""
        kept = {stack: tuple(layers) for stack, layers in self.keep_layers.items()}
        object.__setattr__(self, "keep_layers", FrozenDict(kept))
        object.__setattr__(self, "metrics", FrozenDict(self.metrics))
        object.__setattr__(self, "rows", FrozenDict(self.rows))
        intervals = {name: (low, high) for name, (low, high) in self.intervals.items()}
        object.__setattr__(self, "intervals", FrozenDict(intervals))

    @property
    def depth(self) -> int:
        """Number of kept layers, over all stacks."""
        return sum(len(kept) for kept in self.keep_layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["keep_layers"] = {stack: list(kept) for stack, kept in self.keep_layers.items()}
        values["metrics"] = dict(self.metrics)
        values["rows"] = dict(self.rows)
        values["intervals"] = {name: list(ends) for name, ends in self.intervals.items()}
        for name in ("rows", "intervals"):
            if not values[name]:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SubNetworkResult:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If it is something else.
        """
        try:
            _Stored.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "a record"
            raise ValueError(f"{place} is {str(first['input'])[:60]!r}: {first['msg']}") from error
        return cls(**values)
