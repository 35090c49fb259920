"""The record that every strategy returns; the selection file that ``keep_layers`` reads is one view of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_layerdrop.checkpoints.outputs import check_new_file, write_whole
from hf_layerdrop.samplers.keep_layers import format_keep_layers

Layers = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Scored:
    """A sub-network and its score; its parameters and its score on separate data, as far as they are known."""

    keep_layers: Layers
    score: float
    parameters: int | None = None
    test_score: float | None = None


@dataclass(frozen=True)
class Neighbour:
    """A sub-network just outside of a budget: what it would give, and what it would cost."""

    keep_layers: Layers
    score: float
    parameters: int
    size_mb: float
    latency_ms: float | None


@dataclass(frozen=True)
class Draft:
    """How to use a sub-network as a draft in assisted generation, and how much of what it proposes is taken.

    Attributes:
        num_assistant_tokens: The best number of tokens to propose a round.
        acceptance: Share of the whole model's tokens that the draft would have chosen as well, after the same text.
        tokens_per_round: Tokens that a forward of the whole model gives.
    """

    num_assistant_tokens: int
    acceptance: float
    tokens_per_round: float

    @property
    def settings(self) -> dict[str, Any]:
        """What ``draft.generation_config.update`` takes: this number of tokens, always, however sure the draft is."""
        return {
            "num_assistant_tokens": self.num_assistant_tokens,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.0,
        }


@dataclass(frozen=True)
class Selection:
    """The layers that a strategy chose, how good they are, and what finding them cost.

    Attributes:
        keep_layers: Kept layers by stack, in the numbering of the model that was searched.
        depths: Number of layers of that model, by stack.
        strategy: Name of the strategy.
        metric: Name of the score.
        greater_is_better: Whether a higher score is better.
        score: Score of the chosen sub-network on the data that was searched on.
        test_score: Its score on data that took no part in the choice; None if there was none.
        whole_score: Score of the whole model on the data that was searched on.
        whole_test_score: Score of the whole model on the separate data.
        split: Where the separate data comes from, in words.
        parameters: Exact number of parameters, tied weights once.
        size_mb: Exact size of the weights in 10^6 bytes, in the model's own precision.
        latency_ms: Median time of a forward on this machine; None if no latency was asked for.
        evaluations: How many sub-networks were scored to choose it.
        from_journal: How many of these had been scored by an earlier run, and were read from its journal.
        layer_forwards: Layer forwards a batch that the choice took. With ``evaluate``, whose batches are its own
            business, all layer forwards of all its calls.
        layer_forwards_alone: What the same sub-networks would have taken one by one.
        extra_layer_forwards: Layer forwards a batch beside the choice: the whole model for comparison, and the random
            sets behind an estimated ``share_as_good``.
        shared: Whether sub-networks with a common prefix of layers ran it once. If not, candidates ran one by one, and
            only what the encoder gives was shared.
        sub_networks: How many sets of layers the model can be cut to at this depth; where not every set can be cut and
            there are more than 20,000, this is an estimate.
        share_as_good: Share of them that score at least as well as the chosen one.
        share_is_exact: Whether all of them were scored; otherwise those that were not are judged by some random ones.
        share_samples: How many sets of this depth were scored for that.
        share_between: Where that share is with 95 % confidence; None in a record of an older version.
        runner_ups: The next best sub-networks of the depth that were scored, best first.
        outside: With a budget: the nearest sub-networks outside of it.
        importances: With a strategy that gives every layer an importance: those, by stack.
        warnings: What the user should know before using it.
        draft: With the objective of a draft: how to use it as one.
    """

    keep_layers: Layers
    depths: Mapping[str, int]
    strategy: str
    metric: str
    greater_is_better: bool
    score: float
    test_score: float | None
    whole_score: float
    whole_test_score: float | None
    split: str
    parameters: int
    size_mb: float
    latency_ms: float | None
    evaluations: int
    from_journal: int
    layer_forwards: int
    layer_forwards_alone: int
    extra_layer_forwards: int
    shared: bool
    sub_networks: int
    share_as_good: float
    share_is_exact: bool
    share_samples: int
    runner_ups: tuple[Scored, ...] = ()
    outside: tuple[Neighbour, ...] = ()
    importances: Mapping[str, tuple[float, ...]] | None = None
    warnings: tuple[str, ...] = ()
    share_between: tuple[float, float] | None = None
    draft: Draft | None = None

    @property
    def as_good(self) -> str:
        """How many sets score as well, in words: a percentage if all were scored, else between which it is."""
        of = f"of {self.sub_networks:,} sets of this depth"
        if self.share_is_exact:
            return f"{self.share_as_good:.1%} {of}"
        low, high = self.share_between or (0.0, 1.0)
        return f"{low:.1%} to {high:.1%} {of} (95 % confidence, by {self.share_samples:,} of them)"

    @property
    def spec(self) -> str:
        """The choice as a line that ``--keep-layers`` reads."""
        return format_keep_layers(self.keep_layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """Read what `to_dict` wrote."""
        importances = values["importances"]
        changed = {
            "keep_layers": _layers(values["keep_layers"]),
            "runner_ups": tuple(Scored(**_with_layers(entry)) for entry in values["runner_ups"]),
            "outside": tuple(Neighbour(**_with_layers(entry)) for entry in values["outside"]),
            "importances": importances and {stack: tuple(numbers) for stack, numbers in importances.items()},
            "warnings": tuple(values["warnings"]),
            "share_between": (between := values.get("share_between")) and tuple(between),
            "draft": (draft := values.get("draft")) and Draft(**draft),
        }
        return cls(**{**values, **changed})

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the selection file, which ``keep_layers`` reads everywhere; it appears whole or not at all.

        Raises:
            OutputExistsError: If the file exists and ``overwrite`` was not given.
        """
        file = Path(path)
        check_new_file(file, "selection file", overwrite)
        write_whole(file, json.dumps(self.to_dict(), indent=2) + "\n")
        return file


def _layers(values: Mapping[str, Any]) -> Layers:
    return {stack: tuple(kept) for stack, kept in values.items()}


def _with_layers(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "keep_layers": _layers(entry["keep_layers"])}
