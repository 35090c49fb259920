"""Leave one out: how far the output moves when a layer is missing.

The loss is the divergence from what the whole model says, KL(whole || without) for scores of classes or tokens and the
squared difference for other outputs, so that no labels are needed. Prefixes are shared: all N sets take about N^2 / 2
layer forwards a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from hf_layerdrop.evaluation.model_or_trainer import quiet_eval
from hf_layerdrop.evaluation.prefix_sharing import PrefixRunner, shared_prefixes
from hf_layerdrop.search.importance import empty, inputs_of, keep_most_important, read
from hf_layerdrop.search.scoring import Problem
from hf_layerdrop.search.space import Layers, whole
from hf_layerdrop.search.strategies import Proposal


def select(problem: Problem) -> Proposal:
    """Propose the layers of each stack without which the output moves most."""
    return keep_most_important(leave_one_out_losses(problem), problem.space)


def leave_one_out_losses(problem: Problem) -> dict[str, list[float]]:
    """Return the mean divergence over batches of the model without each layer.

    A layer that cannot be left out alone gets 0.
    """
    everything = whole(problem.space.depths)
    batches = inputs_of(problem)
    sets = [entry for entry in _sets_without_one(everything) if problem.space.is_possible(entry[2])]
    with (
        torch.no_grad(),
        quiet_eval(problem.model),
        shared_prefixes(problem.cutter, problem.model.device) as runner,
    ):
        forwards, divergences = _divergences(problem, runner, batches, everything, sets)
        if runner.shared_wrongly():
            forwards, divergences = _divergences(problem, runner, batches, everything, sets)
    alone = sum(sum(map(len, kept.values())) for kept in (everything, *(kept for _, _, kept in sets)))
    problem.scorer.note_forwards(forwards // len(batches), alone)
    losses = empty(problem)
    for (stack, layer, _), of_batches in zip(sets, zip(*read(divergences), strict=True), strict=True):
        losses[stack][layer] = sum(of_batches) / len(batches)
    return losses


def _divergences(
    problem: Problem,
    runner: PrefixRunner,
    batches: Sequence[dict[str, Any]],
    everything: Layers,
    sets: Sequence[tuple[str, int, Layers]],
) -> tuple[int, list[torch.Tensor]]:
    """Return how many layers ran, and for each batch how far the output moves for each of the sets."""
    forwards, divergences = 0, []
    for batch in batches:
        runner.turn_to(None)
        predict = partial(_output, problem.model, batch)
        expected, run = runner.run(everything, predict)
        forwards += run.layer_forwards
        moved = []
        for _, _, kept in sets:
            found, run = runner.run(kept, predict)
            forwards += run.layer_forwards
            moved.append(_divergence(expected, found))
        divergences.append(torch.stack(moved) if moved else torch.zeros(0))
    return forwards, divergences


def _sets_without_one(everything: Layers) -> list[tuple[str, int, Layers]]:
    """List the sets in walking order: those without a late layer share most with the whole model."""
    return [
        (stack, layer, {**everything, stack: tuple(other for other in layers if other != layer)})
        for stack, layers in reversed(list(everything.items()))
        for layer in reversed(layers)
        if len(layers) > 1
    ]


def _output(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    outputs = model(**batch)
    names = ("logits", "prediction_logits", "start_logits", "last_hidden_state")
    return next(outputs[name] for name in names if outputs.get(name) is not None)


def _divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    if expected.shape[-1] == 1:
        return (expected - found).double().square().mean()
    log_expected, log_found = (functional.log_softmax(values.double(), dim=-1) for values in (expected, found))
    return functional.kl_div(log_found, log_expected, log_target=True, reduction="none").sum(-1).mean()
