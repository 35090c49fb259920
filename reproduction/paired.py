"""Differences of two arms on the same rows and seeds, with intervals of a bootstrap over the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from reproduction.criteria import AS_GOOD, Criteria
from reproduction.row_scores import RowScores
from reproduction.summary import FAILS, HOLDS, MISSING

Array = Any
UNRESOLVED = "not resolved"
_SEED = 0  # of the resamples, the same for all arms
UNITS = {"accuracy": " points", "perplexity": " %", "bleu": " BLEU"}  # of differences
_FACTORS = {"accuracy": 100.0, "bleu": 1.0}


@dataclass(frozen=True)
class Interval:
    """A number, and where it lies by the bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """By how much the first arm is better than the second: points of accuracy, percent of perplexity, BLEU.

    Attributes:
        interval: The mean over the seeds; None where no seed has both.
        by_seed: That of each seed.
        verdict: What it says of the claim.
        margin: How far below it may be.
    """

    interval: Interval | None
    by_seed: Mapping[int, float]
    verdict: str
    margin: float = 0.0


class Resampled:
    """The scores of one arm at one cut: of all rows, and of each resample, by seed."""

    def __init__(self, rows: Mapping[int, RowScores], resamples: int) -> None:
        self.metric = next((one.metric for one in rows.values()), "")
        self.whole = {seed: float(one.score()[0]) for seed, one in rows.items()}
        self.drawn = {seed: one.score(_weights(len(one.values), resamples)) for seed, one in rows.items()}

    def mean(self, confidence: float) -> Interval:
        """Return the mean over the seeds."""
        return _interval(np.mean([*self.whole.values()]), np.mean([*self.drawn.values()], axis=0), confidence)


def difference(
    better: Resampled, than: Resampled, criteria: Criteria, *, kind: str = AS_GOOD, share: float = 1.0
) -> Difference:
    """Compare two arms on the seeds that both have, by the margin of a share of the layers, and read the claim."""
    seeds: Sequence[int] = sorted(set(better.whole) & set(than.whole))
    if not seeds:
        return Difference(None, {}, MISSING)
    by_seed = {seed: float(_gap([better.whole[seed]], [than.whole[seed]], better.metric)) for seed in seeds}
    value = _gap([better.whole[seed] for seed in seeds], [than.whole[seed] for seed in seeds], better.metric)
    drawn = _gap([better.drawn[seed] for seed in seeds], [than.drawn[seed] for seed in seeds], better.metric)
    interval = _interval(value, drawn, criteria.confidence)
    margin = criteria.margin(better.metric, share) if kind == AS_GOOD else 0.0
    verdict = HOLDS if interval.low > -margin else FAILS if interval.high < -margin else UNRESOLVED
    return Difference(interval, by_seed, verdict if len(seeds) >= len(criteria.seeds) else UNRESOLVED, margin)


def _gap(better: Sequence[Array], than: Sequence[Array], metric: str) -> Array:
    first, second = np.mean(better, axis=0), np.mean(than, axis=0)
    if metric == "perplexity":
        return 100 * (second - first) / second
    return _FACTORS[metric] * (first - second)


def _interval(value: Any, drawn: Array, confidence: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


@lru_cache(maxsize=2)
def _weights(rows: int, resamples: int) -> Array:
    """Return how often each row is in each resample: the same for every arm, so that differences are paired."""
    return np.random.default_rng(_SEED).multinomial(rows, [1 / rows] * rows, size=resamples).astype("float32")
