"""Tell a winner that is good from one that was lucky on the data it was chosen by."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, lgamma, log, log1p, sqrt

from hf_layerdrop.search.objective import Objective

# One-sided 95 %.
STANDARD_ERRORS = 1.64
CONFIDENCE = 0.95


def overfitting_warning(
    objective: Objective,
    scores: tuple[float, float],
    whole_scores: tuple[float, float],
    examples: tuple[int, int],
) -> str | None:
    """Say so if the winner loses more on the separate data than the whole model does, beyond what chance explains.

    The whole model took no part in the choice, so its gap shows how much harder the separate data is. The tolerance is
    a rule of thumb: 1.64 standard errors of the difference, with the spread of a right-or-wrong answer for scores from
    0 to 1, and of the size of the score itself for others.

    Args:
        objective: Which way is better.
        scores: The winner's on the data of the search, and on the separate data.
        whole_scores: The whole model's on both.
        examples: How many examples each has.
    """
    gap = objective.gain(scores[0], scores[1]) - objective.gain(whole_scores[0], whole_scores[1])
    middle = abs(sum(scores)) / 2
    spread = sqrt(middle * (1 - middle)) if objective.greater_is_better and middle <= 1 else middle
    tolerance = STANDARD_ERRORS * spread * sqrt(sum(1 / max(1, count) for count in examples))
    if gap <= tolerance:
        return None
    return (
        f"The choice overfitted: its {objective.name} is {scores[0]:.4g} on the data of the search and {scores[1]:.4g} "
        f"on separate data, a gap {gap:.2g} larger than the whole model's: search on more data, or use 'spread'."
    )


def share_between(good: int, drawn: int) -> tuple[float, float]:
    """Return where the share of the good ones in a large number is, with 95 % confidence (Clopper and Pearson).

    So many of those that were drawn are good; eight draws without a good one leave room for a third of all.
    """
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if good == 0 else _where(lambda share: 1 - _at_most(good - 1, drawn, share) >= tail)
    high = 1.0 if good == drawn else _where(lambda share: _at_most(good, drawn, share) <= tail)
    return low, high


def _at_most(good: int, drawn: int, share: float) -> float:
    """Return the chance of at most so many good ones among those that are drawn."""
    logarithms = (
        lgamma(drawn + 1) - lgamma(k + 1) - lgamma(drawn - k + 1) + k * log(share) + (drawn - k) * log1p(-share)
        for k in range(good + 1)
    )
    return sum(map(exp, logarithms))


def _where(is_above: Callable[[float], bool]) -> float:
    """Find by halving where, from 0 to 1, a condition begins to hold."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return high
