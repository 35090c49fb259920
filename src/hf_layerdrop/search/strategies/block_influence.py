"""Block influence: 1 - the mean cosine between what goes into a layer and what comes out of it, over all tokens.

Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024). A layer that hardly
turns the hidden state is thought to be missed least. It needs inputs, but no labels.
"""

from __future__ import annotations

import torch

from hf_layerdrop.search.importance import empty, keep_most_important, look_at_layers
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the layers with the highest influence of each stack."""
    influences, tokens = empty(problem), empty(problem)

    def look(stack: str, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        influences[stack][layer] += float((1 - torch.cosine_similarity(before, after, dim=-1)).double().sum())
        tokens[stack][layer] += len(before)

    look_at_layers(problem, look)
    means = {
        stack: [total / count for total, count in zip(totals, tokens[stack], strict=True)]
        for stack, totals in influences.items()
    }
    return keep_most_important(means, problem.space)
