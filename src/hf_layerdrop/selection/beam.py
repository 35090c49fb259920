"""Search on valid (paper, 3.2.2) by a beam: remove one layer after the other, and follow the best few sets.

Widths 1, 2 and 4 score up to 302, 493 and 818 layer forwards a batch on the way from 12 layers to 6, where scoring
every set takes 1,715. In models with several stacks a step removes a layer of whichever stack is too deep yet.
"""

from __future__ import annotations

from hf_layerdrop.selection.scoring import Problem
from hf_layerdrop.selection.space import distinct, whole
from hf_layerdrop.selection.strategies import Proposal


def select(problem: Problem, *, width: int = 2) -> Proposal:
    """Propose the sets that the last step scored; ``width`` sets survive each step before."""
    space = problem.space
    candidates = [whole(space.depths)]
    for _ in range(sum(space.depths.values()) - sum(space.target.values())):
        survivors = problem.best(candidates, width)
        candidates = distinct([shallower for kept in survivors for shallower in space.without_one(kept)])
    return Proposal(candidates)
