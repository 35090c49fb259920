"""Turn shares into rates whose mean is held: the part of learned drop rates that is plain arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hf_layerdrop.errors import LayerDropConfigError

HIGHEST_RATE = 0.9  # no layer is dropped more often: what never runs is not trained, and cannot show that it is needed


def rates_from_shares(shares: Sequence[float], total: float, highest: float = HIGHEST_RATE) -> list[float]:
    """Return rates in proportion to the shares that sum up to ``total``, none above ``highest``.

    What a capped layer cannot take, the others take in proportion to their shares (water-filling): the rates are
    ``min(level * share, highest)`` for the one level at which the sum is right. A share of 0 gives a rate of 0.
    ``total`` must not be more than the layers with a share can take.
    """
    ordered = sorted((share for share in shares if share > 0), reverse=True)
    level = 0.0
    for capped, largest in enumerate(ordered):
        level = (total - capped * highest) / sum(ordered[capped:])
        if level * largest <= highest:
            break
    return [min(level * share, highest) for share in shares]


def rate_of_the_others(rate: float, depth: int, kept: Collection[int], stack: str) -> float:
    """Return the rate of the layers that may be dropped at which the mean over all layers is ``rate``."""
    share = (depth - len(kept)) / depth
    if rate > share * HIGHEST_RATE:
        raise LayerDropConfigError(
            f"rate is {rate}, but with {len(kept)} of {depth} layers in never_drop and no rate above {HIGHEST_RATE}, "
            f"the {stack} can drop at most {share * HIGHEST_RATE:.3g} on average; give a lower rate."
        )
    return rate / share if rate else 0.0
