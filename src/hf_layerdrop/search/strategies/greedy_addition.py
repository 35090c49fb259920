"""Greedy addition: begin with the best single layer of each stack, and at each step add the layer that helps most.

It is cheaper than removal where few layers are kept, and poorer where layers only help together.
"""

from __future__ import annotations

from dataclasses import replace

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the sets that the last step scored; stacks that stay whole are whole from the start."""
    space = problem.space
    start = {stack: depth if space.target[stack] == depth else 1 for stack, depth in space.depths.items()}
    candidates = list(replace(space, target=start).every_set())
    for _ in range(sum(space.target.values()) - sum(start.values())):
        candidates = space.with_one_more(problem.best(candidates, 1)[0])
    return Proposal(candidates)
