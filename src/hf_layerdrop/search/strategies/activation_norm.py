"""Activation norm: the mean size of what a layer adds to the hidden state, relative to what it gets.

The norm of a layer's output alone would say little in models with residual connections, where most of it came in.
"""

from __future__ import annotations

import torch

from hf_layerdrop.search.importance import empty, keep_most_important, look_at_layers
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the layers of each stack that add most."""
    added, tokens = empty(problem), empty(problem)

    def look(stack: str, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        sizes = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
        added[stack][layer] += float(sizes.double().sum())
        tokens[stack][layer] += len(before)

    look_at_layers(problem, look)
    means = {
        stack: [total / count for total, count in zip(totals, tokens[stack], strict=True)]
        for stack, totals in added.items()
    }
    return keep_most_important(means, problem.space)
