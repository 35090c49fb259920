"""The last layers: a baseline, as `first` is (paper, section 6)."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, Space
from hf_layerdrop.search.strategies import Proposal


def rule(_: PreTrainedModel, space: Space) -> Layers:
    """Return the last layers."""
    return {stack: tuple(range(depth - space.target[stack], depth)) for stack, depth in space.depths.items()}


def select(problem: Problem) -> Proposal:
    """Propose that one set."""
    return Proposal([rule(problem.model, problem.space)])
