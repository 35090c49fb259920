"""Arms that differ in one setting alone, such as dropout or learning rate: each arm gets its best."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean

from reproduction.errors import ReproductionError
from reproduction.journal import Record, records_of
from reproduction.study import DEEP, WHOLE, Study

CHOSEN_BY = 0  # the seed that decides; the others are then run for the best alone


def best_variant(study: Study, size: str, records: Sequence[Record], *arms: str) -> str | None:
    """Return the best variant of an arm, or several, among those that were measured with seed 0; None without one.

    The standard model is chosen by the whole, every other arm by the mean over the cuts that it is measured at: one
    training serves them all. Of perplexities the logarithm is averaged.
    """
    scores = {
        variant: _score(study, record, arm)
        for arm in arms
        for variant in study.variants_of(arm)
        for record in records_of(records, study.name, variant, size)
        if record["seed"] == CHOSEN_BY
    }
    if not scores:
        return None
    return min(scores, key=scores.__getitem__) if study.lower_is_better else max(scores, key=scores.__getitem__)


def tried_variants(study: Study, size: str, records: Sequence[Record], *arms: str) -> list[str]:
    """Return the variants of arms that were measured with the seed that decides."""
    return [
        variant
        for arm in arms
        for variant in study.variants_of(arm)
        if any(record["seed"] == CHOSEN_BY for record in records_of(records, study.name, variant, size))
    ]


def _score(study: Study, record: Record, arm: str) -> float:
    values = {cut: measured["metrics"][study.metric] for cut, measured in record["cuts"].items()}
    chosen = [values[WHOLE]] if arm == DEEP else [*values.values()]
    return fmean(map(math.log, chosen)) if study.lower_is_better else fmean(chosen)


def of_best_variants(
    studies: Sequence[Study], size: str, records: Sequence[Record], wanted: Collection[str] = ()
) -> list[str]:
    """Return the arms of studies, ``study/arm``: of those with variants the best one alone.

    Args:
        studies: The studies.
        size: The size.
        records: What was measured.
        wanted: Only these arms, without the name of a variant.

    Raises:
        ReproductionError: If nothing was measured that says which is the best, or nothing is left.
    """
    chosen = []
    for study in studies:
        for arm in study.variants or study.arms:
            if wanted and not {arm, f"{study.name}/{arm}"} & {*wanted}:
                continue
            best = best_variant(study, size, records, arm) if study.variants else arm
            if best is None:
                raise ReproductionError(
                    f"Which of {', '.join(study.variants_of(arm))} is the best is not known yet: run study "
                    f"{study.name} with --seeds {CHOSEN_BY} first, or choose other --arms."
                )
            chosen.append(f"{study.name}/{best}")
    if not chosen:
        raise ReproductionError(f"No study here has the arms {', '.join(wanted)}; with --best, leave variants out.")
    return chosen
