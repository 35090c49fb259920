"""Nested sets of layers: each depth keeps what the next smaller one keeps, and one layer more.

The sets follow from the number of layers alone, so that ``keep_layers="nested:6"`` is the set that was trained as a
depth of 6, whatever other depths were trained beside it.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise


@cache
def nested_order(of: int) -> tuple[int, ...]:
    """Order the layers of a stack such that the first r of them are the set of depth r.

    The last and the first layer come first (the paper's Fig. 5: they matter most). Each one more halves the longest
    run of layers that are left out, the foremost of equal ones: as evenly spread as sets can be of which each holds
    the smaller ones.
    """
    order = [of - 1, 0][:of]
    while len(order) < of:
        before, after = max(pairwise(sorted(order)), key=lambda ends: ends[1] - ends[0])
        order.append((before + after) // 2)
    return tuple(order)


def nested_set(depth: int, of: int) -> tuple[int, ...]:
    """Return the sorted layers of a depth, which lie in those of each larger depth."""
    return tuple(sorted(nested_order(of)[:depth]))
