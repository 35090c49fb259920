"""Choose which of a list of sub-networks a step trains: a pure function of seed, step and micro-step, as draws are."""

from __future__ import annotations

from collections.abc import Collection

from hf_layerdrop.samplers.draws import uniforms


def choose_depths(
    among: Collection[int], count: int, always: Collection[int], *, seed: int, step: int, micro_step: int = 0
) -> tuple[int, ...]:
    """Return which places of a list are trained: those of ``always``, and others up to ``count``, each as likely.

    The sandwich rule (Yu and Huang, 2019) names the largest and the smallest as always.
    """
    others = sorted(set(among) - set(always))
    numbers = dict(zip(others, uniforms(seed, step, micro_step, 0, "depths", len(others)), strict=True))
    drawn = sorted(others, key=numbers.__getitem__)[: max(count - len(set(always)), 0)]
    return tuple(sorted({*always, *drawn}))
