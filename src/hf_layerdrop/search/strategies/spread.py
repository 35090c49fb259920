"""Evenly spread: as far apart as the depth allows, the first and last layers included.

These are the layers of ``keep_layers=6``. Where every other has no set, e.g. for a third of the layers, this has; and
it keeps the ends, which matter most (paper, Fig. 5).
"""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, Space
from hf_layerdrop.search.strategies import Proposal


def rule(_: PreTrainedModel, space: Space) -> Layers:
    """Return the evenly spread set."""
    return space.spread()


def select(problem: Problem) -> Proposal:
    """Propose that one set."""
    return Proposal([rule(problem.model, problem.space)])
