"""Search on valid (paper, 3.2.2), in full: every set of the depth is scored.

Sets with a common prefix run it once, so all 924 sets of 6 out of 12 layers take 1,715 layer forwards a batch, not
5,544. With so many candidates the winner may owe some of its score to chance: see `Selection.test_score`.
"""

from __future__ import annotations

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import MAX_SETS, Proposal, check_space


def select(problem: Problem, *, max_sub_networks: int = MAX_SETS) -> Proposal:
    """Propose every set there is, unless there are more than ``max_sub_networks``."""
    check_space("exhaustive", problem.space, max_sub_networks)
    return Proposal(problem.scorer.possible_sets(problem.space))
