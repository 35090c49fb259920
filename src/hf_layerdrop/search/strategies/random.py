"""The best of some random sets: what a search has to beat, with as many evaluations."""

from __future__ import annotations

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem, *, samples: int = 32) -> Proposal:
    """Propose ``samples`` different sets, drawn with the seed of the search."""
    return Proposal(problem.space.random_sets(samples, problem.random))
