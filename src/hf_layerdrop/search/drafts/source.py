"""Score sub-networks as drafts: what they agree with, on prompts that are searched on and on prompts that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.evaluation.divided import Measure, in_shares
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.search.budgets import Target
from hf_layerdrop.search.drafts.rounds import rounds_by_length
from hf_layerdrop.search.drafts.speed import DraftMeter, DraftObjective
from hf_layerdrop.search.drafts.texts import OBJECTIVE, Text, agreement, batches_of, read_prompts, write_texts
from hf_layerdrop.search.held_out import FROM_TEST_DATASET, HELD_OUT_HALF, NO_SPLIT, halves
from hf_layerdrop.search.score_source import ScoreSource, Setting
from hf_layerdrop.search.scoring_function import FunctionMeasure

MAX_NEW_TOKENS = 64


def check_objective(objective: str | None, max_new_tokens: int | None, **others: Any) -> int:
    """Check what goes with an objective; return how many tokens to generate.

    Raises:
        LayerDropConfigError: If there is no such objective, or something that was given is of no use with it.
    """
    if objective is None:
        if max_new_tokens is not None:
            raise LayerDropConfigError(f"max_new_tokens is {max_new_tokens!r}, but it is of objective={OBJECTIVE!r}.")
        return MAX_NEW_TOKENS
    if objective != OBJECTIVE:
        raise LayerDropConfigError(f"objective is {objective!r}: give {OBJECTIVE!r}, or name a number by metric=.")
    for name, value in others.items():
        if value is not None:
            raise LayerDropConfigError(
                f"{name} is {value!r:.60}, of which objective={objective!r} makes no use: leave one of them out."
            )
    new = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if isinstance(new, bool) or not isinstance(new, int) or new < 2:
        raise LayerDropConfigError(f"max_new_tokens is {new!r}: give a whole number from 2.")
    return new


def draft_depths(depths: Mapping[str, int]) -> list[Target]:
    """Return every depth that a draft can have.

    Raises:
        LayerDropConfigError: If the model has several stacks, or one layer.
    """
    (stack, most), *others = depths.items()
    if others or most < 2:
        raise LayerDropConfigError(f"The layers of the model are {dict(depths)}: say by depth= how many a draft has.")
    return [{stack: count} for count in range(1, most)]


def score_drafts(
    model: PreTrainedModel, cutter: Cutter, prompts: Any, test_prompts: Any, max_new_tokens: int, setting: Setting
) -> tuple[ScoreSource, DraftObjective]:
    """Let the whole model write after each prompt; return what counts the rounds of drafts, and what times them.

    Raises:
        UnsupportedModelError: If the model does not generate.
        TaskError: If there are no prompts, or one of them is too long.
    """
    rows, held = read_prompts(model, prompts, max_new_tokens), None
    split = NO_SPLIT
    if test_prompts is not None:
        held, split = read_prompts(model, test_prompts, max_new_tokens), FROM_TEST_DATASET
    elif parts := halves(rows, setting.seed):
        (rows, held), split = parts, HELD_OUT_HALF
    texts, held_texts = setting.ranks.from_first(
        lambda: [write_texts(model, some, max_new_tokens) for some in (rows, held or [])]
    )
    measure_of = partial(_measure, model, cutter, max_new_tokens, setting)
    batches = batches_of(texts, setting.batch_size)
    source = ScoreSource(
        measure=measure_of(texts),
        batches=batches,
        shared=False,
        metric_name=OBJECTIVE,
        test=measure_of(held_texts) if held_texts else None,
        split=split,
        examples=(len(rows), len(held or [])),
        identity=lambda: fingerprint(OBJECTIVE, max_new_tokens, [(text.sequence, text.start) for text in texts]),
    )
    meter = DraftMeter(model, rows, max_new_tokens, setting.ranks)
    return source, DraftObjective(OBJECTIVE, True, cutter.depths, meter.plain, meter.drafted)


def _measure(
    model: PreTrainedModel, cutter: Cutter, max_new_tokens: int, setting: Setting, texts: Sequence[Text]
) -> Measure:
    batches = batches_of(texts, setting.batch_size)

    def counted(cut: PreTrainedModel) -> Mapping[str, float]:
        return rounds_by_length(agreement(cut, batches, texts), max_new_tokens)

    return in_shares(
        FunctionMeasure(model, cutter, counted, OBJECTIVE, setting.memory_limit), setting.ranks, shares_prefixes=False
    )
