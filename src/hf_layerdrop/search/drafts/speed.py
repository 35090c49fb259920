"""How fast assisted generation is with a draft: what a round and a drafted token take, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.evaluation.model_or_trainer import eval_mode
from hf_layerdrop.evaluation.ranks import ALONE, Ranks
from hf_layerdrop.evaluation.stopwatch import Stopwatch
from hf_layerdrop.pruning.shared_weights import shared_sub_network
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.search.drafts.rounds import DRAFT_TOKENS
from hf_layerdrop.search.drafts.texts import generation_settings
from hf_layerdrop.search.objective import Objective
from hf_layerdrop.search.scoring import Scorer
from hf_layerdrop.search.selection import Draft, Selection
from hf_layerdrop.search.space import Layers, key_of, whole

TIMED_LENGTHS = (1, 4, 16)
TIMED_PROMPTS = 2
REPEATS = 3


class Seconds(NamedTuple):
    """What assisted generation takes: so long a round of the whole model, and so long a token that is drafted."""

    a_round: float
    a_drafted_token: float


@dataclass
class DraftMeter:
    """Time generation with drafts of a model, one of each depth; of several ranks, rank 0 does."""

    model: PreTrainedModel
    prompts: Sequence[torch.Tensor]
    max_new_tokens: int
    ranks: Ranks = ALONE
    _known: dict[tuple[int, ...], Seconds] = field(default_factory=dict)

    def plain(self) -> float:
        """Return the seconds of a token without a draft."""
        if () not in self._known:
            self._known[()] = Seconds(self.ranks.from_first(self._plain), 0.0)
        return self._known[()].a_round

    def drafted(self, kept: Layers) -> Seconds:
        """Return what a round and a drafted token take with a draft of so many layers."""
        depths = tuple(len(layers) for layers in kept.values())
        if depths not in self._known:
            self._known[depths] = self.ranks.from_first(lambda: self._drafted(kept))
        return self._known[depths]

    def _plain(self) -> float:
        runs = [self._run(None) for _ in range(1 + REPEATS)][1:]
        return min(seconds / rounds for seconds, rounds, _ in runs)

    def _drafted(self, kept: Layers) -> Seconds:
        """Fit both to whole runs at a few lengths, so that all that ``generate`` does around the forwards counts."""
        draft = shared_sub_network(self.model, dict(kept))
        best: dict[int, tuple[float, int, int]] = {}
        for repeat in range(1 + REPEATS):  # turn by turn; the first warms up, and the fastest was disturbed least
            for length in TIMED_LENGTHS:
                update_settings(draft, length)
                run = self._run(draft)
                best[length] = min(best[length], run) if repeat > 1 else run
        seconds, *counts = (np.array(column, dtype=float) for column in zip(*best.values(), strict=True))
        # Each run weighs the same, however long it took.
        fit, *_ = np.linalg.lstsq(np.stack(counts, 1) / seconds[:, None], np.ones_like(seconds), rcond=None)
        floor = float(seconds.min() / max(1, max(counts[1])) / 100)  # of times that are all noise
        return Seconds(*(max(floor, float(part)) for part in fit))

    def _run(self, draft: PreTrainedModel | None) -> tuple[float, int, int]:
        """Return the seconds of generation, the forwards of the whole model, and those of the draft."""
        counts = {"whole": 0, "draft": 0}
        hooks = [_count_forwards(self.model, counts, "whole")]
        if draft is not None:
            hooks.append(_count_forwards(draft, counts, "draft"))
        try:
            with eval_mode(self.model):
                seconds = self._seconds(draft)
        except ValueError as error:
            raise UnsupportedModelError(
                f"A {type(self.model).__name__} does not generate with a draft: {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        return seconds, counts["whole"], counts["draft"]

    def _seconds(self, draft: PreTrainedModel | None) -> float:
        settings = generation_settings(self.model, self.max_new_tokens)
        generate: Any = self.model.generate
        watch = Stopwatch(self.model.device)
        for prompt in self.prompts[:TIMED_PROMPTS]:
            tokens = prompt[None].to(self.model.device)
            generate(tokens, attention_mask=torch.ones_like(tokens), assistant_model=draft, **settings)
        return watch.stop().seconds


@dataclass(frozen=True)
class DraftObjective(Objective):
    """Tokens per second of greedy assisted generation: rounds are counted, and what they take is measured.

    The whole model, as a reference, scores what it does without a draft.
    """

    depths: Mapping[str, int]
    plain: Callable[[], float]  # seconds of a token without a draft
    drafted: Callable[[Layers], Seconds]

    def score(self, result: SubNetworkResult) -> float:
        """Return the tokens per second at the best length of a draft."""
        kept = {stack: tuple(layers) for stack, layers in result.keep_layers.items()}
        if key_of(kept) == key_of(whole(self.depths)):
            return 1 / self.plain()
        return self._speed(result, self._best_length(result))

    def draft_of(self, result: SubNetworkResult) -> Draft:
        """Return how to use a sub-network as a draft."""
        length = self._best_length(result)
        tokens_per_round = result.metrics["tokens"] / result.metrics[f"rounds_{length}"]
        return Draft(length, result.metrics["acceptance"], tokens_per_round)

    def _best_length(self, result: SubNetworkResult) -> int:
        return max(DRAFT_TOKENS, key=lambda length: self._speed(result, length))

    def _speed(self, result: SubNetworkResult, length: int) -> float:
        seconds = self.drafted({stack: tuple(layers) for stack, layers in result.keep_layers.items()})
        numbers = result.metrics
        taken = numbers[f"rounds_{length}"] * seconds.a_round + numbers[f"drafted_{length}"] * seconds.a_drafted_token
        return numbers["tokens"] / taken


def with_draft(selection: Selection, scorer: Scorer, objective: DraftObjective) -> Selection:
    """Add to a selection how to use it as a draft, and a warning if it is better not used."""
    warnings = selection.warnings
    if selection.score <= selection.whole_score:
        warnings += (
            f"No draft that was tried pays: {selection.score:.4g} tokens a second with this one, "
            f"{selection.whole_score:.4g} without a draft: generate without.",
        )
    draft = objective.draft_of(scorer.results([selection.keep_layers])[0])
    return replace(selection, draft=draft, warnings=warnings)


def update_settings(draft: PreTrainedModel, length: int) -> None:
    """Let a draft propose so many tokens a round, always."""
    generation: Any = draft.generation_config
    generation.update(**Draft(length, 0.0, 0.0).settings)


def _count_forwards(model: PreTrainedModel, counts: dict[str, int], name: str) -> Any:
    def count(*_: Any) -> None:
        counts[name] += 1

    return model.register_forward_hook(count)
