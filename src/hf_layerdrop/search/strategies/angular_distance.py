"""Angular distance: drop the run of layers across which the hidden state turns least.

Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers" (2024): the distance across n layers from l on is
arccos(cos(x_l, x_{l+n})) / pi, where x_l goes into layer l. They take the last token of a causal model; here it is
the mean over all tokens, which serves encoders as well. It needs inputs, but no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import pi

import torch

from hf_layerdrop.search.importance import empty, look_at_layers, read, rounded, sum_over
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, whole
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the model without the run of each stack, as long as has to go, with the smallest distance.

    Where it cannot be cut without that run, the next one is taken. The importances are the distances of the runs of
    that length that begin at each layer, and 0 where none begins.
    """
    lengths = {stack: depth - problem.space.target[stack] for stack, depth in problem.space.depths.items()}
    distances = window_distances(problem, {stack: length for stack, length in lengths.items() if length})
    kept, importances = whole(problem.space.depths), empty(problem)
    for stack, numbers in distances.items():
        importances[stack][: len(numbers)] = numbers
        found = next(filter(problem.space.is_possible, _without_a_run(kept, stack, lengths[stack], numbers)), None)
        if found is None:
            return Proposal([], rounded(importances))
        kept = found
    return Proposal([kept], rounded(importances))


def _without_a_run(kept: Layers, stack: str, length: int, numbers: Sequence[float]) -> Iterator[Layers]:
    """Yield what is left without each run of a stack, the one with the smallest number first."""
    for begin in sorted(range(len(numbers)), key=lambda begin: numbers[begin]):
        yield {**kept, stack: kept[stack][:begin] + kept[stack][begin + length :]}


def window_distances(problem: Problem, lengths: Mapping[str, int]) -> dict[str, list[float]]:
    """Return the mean angular distance across each run of so many layers, by stack and first layer of the run."""
    found: dict[str, dict[int, list[torch.Tensor]]] = {
        stack: {begin: [] for begin in range(problem.space.depths[stack] - length + 1)}
        for stack, length in lengths.items()
    }
    states: dict[str, list[torch.Tensor]] = {}

    def look(stack: str, layer: int, before: torch.Tensor, after: torch.Tensor, chosen: torch.Tensor) -> None:
        if stack not in lengths:
            return
        if layer == 0:
            states[stack] = [before.double()]
        states[stack].append(after.double())
        begin = layer + 1 - lengths[stack]
        if begin >= 0:
            cosine = torch.cosine_similarity(states[stack][begin], states[stack][-1], dim=-1).clamp(-1, 1)
            found[stack][begin].append(torch.stack([sum_over(chosen, cosine.arccos() / pi), chosen.sum()]))

    look_at_layers(problem, look)
    return {stack: [_mean(read(parts)) for parts in runs.values()] for stack, runs in found.items()}


def _mean(parts: Sequence[Sequence[float]]) -> float:
    totals, counts = zip(*parts, strict=True)
    return sum(totals) / sum(counts)
