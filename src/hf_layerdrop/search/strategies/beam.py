"""Search on valid (paper, 3.2.2) by a beam: remove one layer after the other, and follow the best few sets.

Width 1 scores 302 layer forwards a batch on the way from 12 layers to 6, and width 2 up to 517, where scoring every set
takes 1,715. In models with several stacks a step removes a layer of whichever stack is too deep yet.

A layer that was removed early, while its neighbours still made up for it, cannot come back. So the best set is then
improved by swaps: a round tries every set that has one other layer, and the next round starts from the best of these.
A round for 8 of 16 layers takes about 240 layer forwards, a hundredth of scoring every set; for 6 of 12 it takes a
fifteenth, so that where there are few sets none is made unless it is asked for.
"""

from __future__ import annotations

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import distinct, whole
from hf_layerdrop.search.strategies import MANY_SETS, SWAP_ROUNDS, Proposal


def select(problem: Problem, *, width: int = 2, swaps: int | None = None) -> Proposal:
    """Propose the sets of the last step, of which ``width`` survive each step before, and what swaps make of the best.

    ``swaps`` is the most rounds of them; they end before if a round finds nothing better. Without it there are three
    where there are more than 5,000 sets, and none where there are fewer.
    """
    space = problem.space
    candidates = [whole(space.depths)]
    for _ in range(sum(space.depths.values()) - sum(space.target.values())):
        survivors = problem.best(candidates, width)
        candidates = distinct([shallower for kept in survivors for shallower in space.without_one(kept)])
    if swaps is None:
        swaps = SWAP_ROUNDS if space.count() > MANY_SETS else 0
    for _ in range(swaps):
        best = problem.best(candidates, 1)[0]
        candidates = distinct([*candidates, *space.with_one_swapped(best)])
        if problem.best(candidates, 1)[0] == best:
            break
    return Proposal(candidates)
