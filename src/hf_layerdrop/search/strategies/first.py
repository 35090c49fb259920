"""The first layers: the baseline that ``from_pretrained(num_hidden_layers=n)`` gives.

The paper finds that removing a run of consecutive layers is harmful, the last half among the most (section 6).
"""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, Space
from hf_layerdrop.search.strategies import Proposal


def rule(_: PreTrainedModel, space: Space) -> Layers:
    """Return the first layers."""
    return {stack: tuple(range(count)) for stack, count in space.target.items()}


def select(problem: Problem) -> Proposal:
    """Propose that one set."""
    return Proposal([rule(problem.model, problem.space)])
