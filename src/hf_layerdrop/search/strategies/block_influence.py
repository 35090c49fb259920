"""Block influence: 1 - the mean cosine between what goes into a layer and what comes out of it, over all tokens.

Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024). A layer that hardly
turns the hidden state is thought to be missed least. It needs inputs, but no labels.
"""

from __future__ import annotations

import torch

from hf_layerdrop.search.importance import keep_most_important, mean_over_tokens
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the layers with the highest influence of each stack."""

    def influence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return 1 - torch.cosine_similarity(before, after, dim=-1)

    return keep_most_important(mean_over_tokens(problem, influence), problem.space)
