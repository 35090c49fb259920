"""Evenly spread: as far apart as the depth allows, the first and last layers included.

These are the layers of ``keep_layers=6``. Where every other has no set, e.g. for a third of the layers, this has; and
it keeps the ends, which matter most (paper, Fig. 5).
"""

from __future__ import annotations

from hf_layerdrop.selection.scoring import Problem
from hf_layerdrop.selection.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the one evenly spread set."""
    return Proposal([problem.space.spread()])
