"""Every other (paper, 3.2.2): pruning with rate p drops the layers at depth d with d = 0 mod floor(1/p).

Layers are counted from 1, as in ``keep_layers="every_other:p"``; half of them is ``"::2"``. It needs no data and, the
paper finds, is hard to beat.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_layerdrop.errors import KeepLayersError
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, Space
from hf_layerdrop.search.strategies import Proposal


def rule(_: PreTrainedModel, space: Space) -> Layers:
    """Return the set of the paper's form.

    Raises:
        KeepLayersError: If the form cannot keep so many layers, e.g. fewer than half of them.
    """
    return {stack: every_other(space.target[stack], depth) for stack, depth in space.depths.items()}


def select(problem: Problem) -> Proposal:
    """Propose that one set."""
    return Proposal([rule(problem.model, problem.space)])


def every_other(count: int, of: int) -> tuple[int, ...]:
    """Keep ``count`` layers by dropping each whose number, from 1, is a multiple of floor(1/p), p = 1 - count/of."""
    kept = _dropping(of // (of - count), of) if count < of else tuple(range(of))
    if len(kept) != count:
        reachable = sorted({len(_dropping(period, of)) for period in range(2, of + 1)} | {of})
        raise KeepLayersError(
            f"every_other cannot keep {count} of {of} layers, only {', '.join(map(str, reachable))}: take one of "
            "these, or strategy='spread', which has every depth."
        )
    return kept


def _dropping(period: int, of: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(of) if (layer + 1) % period)
