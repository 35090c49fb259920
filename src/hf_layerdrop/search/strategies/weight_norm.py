"""Weight norm: the root mean square of a layer's weight matrices; it needs no data at all.

The classic magnitude criterion, taken for whole layers. Biases and norms are left out: they begin at 0 and 1.
"""

from __future__ import annotations

import torch
from torch import nn

from hf_layerdrop.search.importance import keep_most_important, read
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the layers of each stack with the largest weights."""
    norms = {stack: read([_norm(layer) for layer in layers]) for stack, layers in problem.cutter.lists.items()}
    return keep_most_important(norms, problem.space)


def _norm(layer: nn.Module) -> torch.Tensor:
    matrices = [weight.detach() for weight in layer.parameters() if weight.dim() > 1]
    squares = sum((matrix.double().square().sum() for matrix in matrices), torch.zeros((), dtype=torch.float64))
    return (squares / max(1, sum(matrix.numel() for matrix in matrices))).sqrt()
