"""Which sub-networks are measured, from a list of depths on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.samplers.keep_layers import parse_keep_layers

KeptByStack = dict[str, tuple[int, ...]]


def parse_depths(text: str, depths: Mapping[str, int]) -> list[KeptByStack]:
    """Return one sub-network a depth, deepest first: of ``all`` depths, or of those listed (``6,3,1``).

    A depth counts the layers of each stack; a stack that has fewer stays whole.
    """
    deepest = max(depths.values())
    counts = range(deepest, 0, -1) if text.strip() == "all" else [_depth(part, deepest) for part in text.split(",")]
    return [
        parse_keep_layers({stack: min(count, depth) for stack, depth in depths.items()}, depths) for count in counts
    ]


def _depth(text: str, deepest: int) -> int:
    count = int(text) if text.strip().isdecimal() and len(text) < 10 else 0
    if not 1 <= count <= deepest:
        raise KeepLayersError(
            f"{text.strip()!r} is not a depth, which the model has from 1 to {deepest}: list some, such as "
            f"'{deepest},{max(1, deepest // 2)},1', or write 'all'."
        )
    return count
