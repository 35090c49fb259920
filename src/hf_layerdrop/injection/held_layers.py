"""Let training forwards run a given set of layers in place of a draw, for the length of a block.

Forward and backward pass belong inside of the block: what a checkpoint computes again finds the same layers. All else
is as after a draw: layers that are left out do no work, get no gradient, and DDP is told of them. To enter and to leave
takes microseconds, so that a step may train one sub-network after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hf_layerdrop.injection.stack_draw import StackDraw
from hf_layerdrop.samplers.draws import Mask


@contextmanager
def held_layers(draws: Mapping[str, StackDraw], masks: Mapping[str, Mask], on_behalf: str = "") -> Iterator[None]:
    """Run the layers that the masks say in the training forwards inside of the ``with`` block.

    Args:
        draws: The draws of whole layers, by stack.
        masks: What each runs, by stack.
        on_behalf: What chose the masks, in words: the ranks have to agree on it as on a draw.
    """
    before = {name: draw.held for name, draw in draws.items()}
    try:
        for name, draw in draws.items():
            draw.held = (masks[name], on_behalf)
        yield
    finally:
        for name, draw in draws.items():
            draw.held = before[name]
