"""The recommended sets of a checkpoint: which layers to keep at each depth, as measured, and what each set scores.

They lie in ``layerdrop.json`` beside the config, where ``keep_layers="best:6"`` and ``"fastest:0.99"`` look.
All sets of a table were measured in one way, on the same rows, so that their scores may be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hf_layerdrop.checkpoints.provenance import Index
from hf_layerdrop.errors import KeepLayersError

VERSION: Literal[1] = 1
MOST_SETS = 1000
MOST_STACKS = 20  # no model has half as many, and a sentence lists them
_SHOWN = 12  # of the depths that were measured
_SAME = 1e-3  # relative; what other batch sizes or machines change in a metric is far below
_Depths = Mapping[str, int]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that are not shown")
    return text


Line = Annotated[str, Field(strict=True, min_length=1, max_length=200), AfterValidator(_printable)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Length = Annotated[int, Field(strict=True, ge=1, le=10**9)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecommendedSet(_Record):
    """One set of layers that was measured.

    Attributes:
        keep_layers: The kept layers of each stack, in the numbering of the checkpoint.
        chosen_by: The strategy that chose them, ``spread``, or ``given`` for layers that somebody named.
        parameters: Number of parameters of the sub-network, tied weights once.
        metrics: What it scored, by name; None for what is no number.
        rows: On how many rows, by metric, as far as that is known.
        intervals: Where each score lies with 95 % confidence: those that are shares of rows (accuracy) have one.
        seconds_per_batch: Median time of its forward; None if it was not timed.
        machine: What it was timed on, and with how many rows a batch.
    """

    keep_layers: dict[Line, Annotated[list[Index], Field(min_length=1)]]
    chosen_by: Line = "given"
    parameters: Index
    metrics: dict[Line, Number | None]
    rows: dict[Line, Index] = {}
    intervals: dict[Line, tuple[Number, Number]] = {}
    seconds_per_batch: Seconds | None = None
    machine: Line | None = None

    @property
    def depths(self) -> dict[str, int]:
        """How many layers of each stack it keeps."""
        return {stack: len(kept) for stack, kept in self.keep_layers.items()}


class MeasuredWith(_Record):
    """How the sets were measured: what is needed to do so again. Paths of local files are not among it.

    Attributes:
        task: Name of the task; None for a classification of one's own.
        dataset: The data set on the Hub; for local files ``local-`` and the task.
        config: Its configuration.
        split: The split that was measured.
        more_splits: Further ones, by what is added to the names of their metrics.
        digest: Of the content of local files; of a local data set, of their names and sizes.
        text_columns: The columns of the texts.
        label_column: The column of the labels.
        max_length: Longer inputs were cut to so many tokens.
        max_target_length: The same for texts that are generated.
        num_beams: Width of the beam where text is generated.
    """

    task: Line | None = None
    dataset: Line | None = None
    config: Line | None = None
    split: Line | None = None
    more_splits: dict[Line, Line] = {}
    digest: Line | None = None
    text_columns: list[Line] = []
    label_column: Line | None = None
    max_length: Length | None = None
    max_target_length: Length | None = None
    num_beams: Length | None = None


class RecommendedSets(_Record):
    """What ``layerdrop.json`` holds.

    Attributes:
        version: Of the form of the file.
        depths: Number of layers of each stack of the checkpoint that was measured, by which a table of another is told.
        metric: The metric that decides.
        greater_is_better: Whether more of it is better.
        measured_with: How it was measured.
        sets: What was measured, each set once.
    """

    version: Literal[1] = VERSION
    depths: Annotated[dict[Line, Annotated[int, Field(strict=True, ge=1, le=100_000)]], Field(max_length=MOST_STACKS)]
    metric: Line
    greater_is_better: Annotated[bool, Field(strict=True)] = True
    measured_with: MeasuredWith = MeasuredWith()
    sets: Annotated[list[RecommendedSet], Field(min_length=1, max_length=MOST_SETS)]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RecommendedSets:
        seen: list[dict[str, list[int]]] = []
        for one in self.sets:
            if set(one.keep_layers) != set(self.depths):
                raise ValueError(f"a set is of {', '.join(one.keep_layers)}, but depths of {', '.join(self.depths)}")
            for stack, kept in one.keep_layers.items():
                if kept != sorted(set(kept)) or kept[-1] >= self.depths[stack]:
                    raise ValueError(
                        f"a set keeps {str(kept)[:60]} of the {stack}: name each of its {self.depths[stack]} layers at "
                        "most once, in order, counted from 0"
                    )
            if one.keep_layers in seen:
                raise ValueError(f"the set {str(one.keep_layers)[:60]} is listed twice")
            seen.append(one.keep_layers)
        return self

    @property
    def whole(self) -> RecommendedSet | None:
        """The whole model, if it was measured."""
        return next((one for one in self.sets if one.depths == self.depths), None)

    def score(self, one: RecommendedSet) -> float | None:
        """Return what a set scores by the metric that decides."""
        return one.metrics.get(self.metric)

    def check(self, depths: _Depths) -> None:
        """Refuse the table for a model of other layers.

        Raises:
            KeepLayersError: If it is not of a model with these.
        """
        if self.depths != dict(depths):
            raise KeepLayersError(
                f"The recommended sets are of {_listed(self.depths)}, but this model has {_listed(depths)}: they "
                "belong to another checkpoint, or it was cut since; measure this one, with hf-layerdrop sweep, or name "
                "the layers."
            )

    def best(self, depths: _Depths) -> RecommendedSet:
        """Return the set with the best score of those that keep so many layers of each stack.

        Raises:
            KeepLayersError: If none of that depth was measured.
        """
        found = [one for one in self._scored() if one.depths == dict(depths)]
        if not found:
            known = [*dict.fromkeys(_listed(one.depths) for one in self._scored())]
            shown = [*known[:_SHOWN], *([f"{len(known) - _SHOWN} others"] if len(known) > _SHOWN else [])]
            raise KeepLayersError(
                f"No recommended set keeps {_listed(depths)}; measured were {', or '.join(shown) or 'none'}: give one "
                "of these, or measure this depth with hf-layerdrop sweep or search."
            )
        return min(found, key=self._order)

    def fastest(self, share: float) -> RecommendedSet:
        """Return the fastest set that scores at most ``1 - share`` worse than the whole model, relative to its score.

        Fastest by measured time, where all such sets were timed on one machine; else by parameters, then layers.

        Raises:
            KeepLayersError: If the whole model was not measured.
        """
        whole = self.score(self.whole) if self.whole else None
        if whole is None:
            raise KeepLayersError(
                f"The whole model's {self.metric} is not among the recommended sets, so that none can be compared with "
                "it: measure it too, with hf-layerdrop sweep."
            )
        room = (1 - share) * abs(whole) + 1e-12  # of rounding
        close = [one for one in self._scored() if self._gain(one, whole) >= -room]
        timed = len({one.machine for one in close}) == 1 and all(one.seconds_per_batch for one in close)
        return min(close, key=lambda one: (one.seconds_per_batch if timed else 0, _size(one), self._order(one)))

    def cut(self, kept: Mapping[str, Any]) -> RecommendedSets | None:
        """Return the sets that lie within kept layers, in the numbering of the model cut to them; None if none does.

        A sub-network of the cut is one of the whole, layer by layer, so that its score and its time are the same.
        """
        places = {stack: {layer: place for place, layer in enumerate(layers)} for stack, layers in kept.items()}
        within = [
            one.model_copy(update={"keep_layers": _renumbered(one, places)})
            for one in self.sets
            if all(set(layers) <= set(places[stack]) for stack, layers in one.keep_layers.items())
        ]
        depths = {stack: len(layers) for stack, layers in kept.items()}
        return self.model_copy(update={"depths": depths, "sets": within}) if within else None

    def joined(self, earlier: RecommendedSets | None, *, same_weights: bool = False) -> RecommendedSets:
        """Return these sets and those of an earlier table, if that was measured in the same way, of the same weights.

        A set that both have is the one of now, but keeps the strategy that once chose it. If its scores differ, the
        weights do, and the earlier table is left out; also if no set is in both, unless the weights are known to be the
        same.
        """
        if earlier is None or not self._is_comparable(earlier):
            return self
        now, before = ({_key(one): one for one in table.sets} for table in (self, earlier))
        both = now.keys() & before.keys()
        if not (both or same_weights) or any(_differ(now[key], before[key]) for key in both):
            return self
        kept = {key: before[key].chosen_by for key in before if now.get(key, before[key]).chosen_by in _UNCHOSEN}
        renewed = [one.model_copy(update={"chosen_by": kept.get(key, one.chosen_by)}) for key, one in now.items()]
        sets = [*renewed, *(one for key, one in before.items() if key not in now)]
        return self.model_copy(update={"sets": sets[:MOST_SETS]})

    def _is_comparable(self, earlier: RecommendedSets) -> bool:
        same = ("depths", "metric", "greater_is_better", "measured_with")
        return all(getattr(self, name) == getattr(earlier, name) for name in same)

    def _scored(self) -> list[RecommendedSet]:
        return [one for one in self.sets if self.score(one) is not None]

    def _gain(self, one: RecommendedSet, over: float) -> float:
        score = self.score(one)
        assert score is not None
        return score - over if self.greater_is_better else over - score

    def _order(self, one: RecommendedSet) -> tuple[float, float, int, list[list[int]]]:
        """Return the key that sorts the best first; an equal accuracy is decided by the loss."""
        loss = one.metrics.get("loss")
        return -self._gain(one, 0.0), math.inf if loss is None else loss, _size(one)[0], [*one.keep_layers.values()]


_UNCHOSEN = ("given", "spread")


def _key(one: RecommendedSet) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((stack, tuple(kept)) for stack, kept in one.keep_layers.items()))


def _differ(now: RecommendedSet, before: RecommendedSet) -> bool:
    pairs = [(now.metrics[name], before.metrics[name]) for name in now.metrics.keys() & before.metrics.keys()]
    return any(
        (one is None) != (other is None)
        or (one is not None and other is not None and not math.isclose(one, other, rel_tol=_SAME, abs_tol=1e-9))
        for one, other in pairs
    )


def _renumbered(one: RecommendedSet, places: Mapping[str, Mapping[int, int]]) -> dict[str, list[int]]:
    return {stack: [places[stack][layer] for layer in layers] for stack, layers in one.keep_layers.items()}


def _size(one: RecommendedSet) -> tuple[int, int]:
    return one.parameters, sum(one.depths.values())


def _listed(depths: _Depths) -> str:
    return " and ".join(
        f"{depth} {'layer' if depth == 1 else 'layers'} of the {name}" for name, depth in depths.items()
    )
