"""The last layers: a baseline, as `first` is (paper, section 6)."""

from __future__ import annotations

from hf_layerdrop.selection.scoring import Problem
from hf_layerdrop.selection.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the one set of last layers."""
    space = problem.space
    return Proposal([{s: tuple(range(depth - space.target[s], depth)) for s, depth in space.depths.items()}])
