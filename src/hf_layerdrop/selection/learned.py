"""Learned: keep the layers whose drop rates were learned to be the smallest (paper, 3.2.2, data driven).

For models that were trained with ``LayerDropConfig(rate, sampler="learned")``; `hf_layerdrop.learning` says how. It
looks at no data here: the choice is what training left in the config.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from hf_layerdrop.learned import learned_keep_layers, learned_shares
from hf_layerdrop.selection.importance import rounded
from hf_layerdrop.selection.scoring import Problem
from hf_layerdrop.selection.strategies import Proposal


def check(model: PreTrainedModel, target: Mapping[str, int]) -> None:
    """Refuse a model without learned rates before anything is scored; see `learned_keep_layers`."""
    learned_keep_layers(model, target)


def select(problem: Problem) -> Proposal:
    """Propose the layers of each stack with the smallest shares; one minus a share is shown as its importance."""
    importances = {stack: [1 - share for share in shares] for stack, shares in learned_shares(problem.model).items()}
    return Proposal([learned_keep_layers(problem.model, problem.space.target)], rounded(importances))
