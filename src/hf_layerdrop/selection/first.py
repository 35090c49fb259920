"""The first layers: the baseline that ``from_pretrained(num_hidden_layers=n)`` gives.

The paper finds that removing a run of consecutive layers is harmful, the last half among the most (section 6).
"""

from __future__ import annotations

from hf_layerdrop.selection.scoring import Problem
from hf_layerdrop.selection.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the one set of first layers."""
    return Proposal([{stack: tuple(range(count)) for stack, count in problem.space.target.items()}])
