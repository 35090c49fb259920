"""Greedy removal: at each step remove the layer that is missed least; a beam of width 1 without swaps.

Peer, Stabinger and Rodriguez-Sanchez, "Greedy-layer pruning: Speeding up transformer models for natural language
processing" (2022).
"""

from __future__ import annotations

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.strategies import Proposal, beam


def select(problem: Problem) -> Proposal:
    """Propose the sets that the last step scored."""
    return beam.select(problem, width=1, swaps=0)
