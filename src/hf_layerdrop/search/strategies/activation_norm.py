"""Activation norm: the mean size of what a layer adds to the hidden state, relative to what it gets.

The norm of a layer's output alone would say little in models with residual connections, where most of it came in.
"""

from __future__ import annotations

import torch

from hf_layerdrop.search.importance import keep_most_important, mean_over_tokens
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the layers of each stack that add most."""

    def size(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)

    return keep_most_important(mean_over_tokens(problem, size), problem.space)
