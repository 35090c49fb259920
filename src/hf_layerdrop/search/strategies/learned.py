"""Learned: keep the layers whose drop rates were learned to be the smallest (paper, 3.2.2, data driven).

For models that were trained with ``LayerDropConfig(rate, sampler="learned")``; `samplers/learned/` says how. It
looks at no data here: the choice is what training left in the config.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_layerdrop.search.importance import rounded
from hf_layerdrop.search.learned_rates import learned_keep_layers, learned_shares
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, Space
from hf_layerdrop.search.strategies import Proposal


def rule(model: PreTrainedModel, space: Space) -> Layers:
    """Return the layers with the smallest shares, or refuse a model without: see `learned_keep_layers`."""
    return learned_keep_layers(model, space.target)


def select(problem: Problem) -> Proposal:
    """Propose that one set; one minus a share is shown as the importance of a layer."""
    importances = {stack: [1 - share for share in shares] for stack, shares in learned_shares(problem.model).items()}
    return Proposal([rule(problem.model, problem.space)], rounded(importances))
