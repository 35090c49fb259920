"""What each of two processes does for test_combinations; prints one JSON object a line, from rank 0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from torch.nn.parallel import DistributedDataParallel

from conftest import build
from distributed_worker import (
    HEAD,
    STEPS,
    counted_gathers,
    distance,
    distance_of_shards,
    optimizer_for,
    spread,
    train,
    without_gradient,
)
from hf_layerdrop import LayerDropConfig, inject_layerdrop
from ranks import Case, run_cases

Batch = dict[str, torch.Tensor]
STRUCTURES = {"attention+ffn": ("attention", "ffn"), "head+attention+layer": ("head", "attention", "layer")}


# --- losses of several forwards -----------------------------------------------------------------------------------


def r_drop(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Run the model twice, and pull the two answers together: two draws before one backward pass."""
    one, two = model(**batch), model(**batch)
    apart = kl_div(log_softmax(one.logits, -1), softmax(two.logits, -1), reduction="batchmean")
    return (one.loss + two.loss) / 2 + apart


def three_forwards(model: nn.Module, batch: Batch) -> torch.Tensor:
    return sum(model(**batch).loss for _ in range(3)) / 3


def cached(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cache the gradients of the answers, as GradCache does: its forwards with gradient run in the backward pass."""
    labels = batch["labels"]
    chunks = [{"input_ids": ids} for ids in batch["input_ids"].chunk(2)]
    with torch.no_grad():
        answers = [model(**chunk).logits for chunk in chunks]
    answers = [answer.detach().requires_grad_() for answer in answers]
    loss = cross_entropy(torch.cat(answers), labels)
    gradients = torch.autograd.grad(loss, answers)

    def repeat(outer: torch.Tensor) -> None:
        with torch.enable_grad():
            for chunk, gradient in zip(chunks, gradients, strict=True):
                ((model(**chunk).logits * gradient).sum() * outer).backward()

    loss = loss.detach().requires_grad_()
    loss.register_hook(repeat)
    return loss


LOSSES: dict[str, Callable[[nn.Module, Batch], torch.Tensor]] = {
    "r-drop": r_drop,
    "three": three_forwards,
    "cached": cached,
}


def new_model(
    rate: float = 0.5, *, execution: str = "skip", structure: object = "layer", checkpointing: bool = False
) -> nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(rate, seed=1, execution=execution, structure=structure))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


@cache
def alone(loss: str, rate: float = 0.5, **how: object) -> nn.Module:
    """Return what one process makes of the joined batches."""
    model = new_model(rate, **how)
    train(model, optimizer_for("adamw", model), 0, 1, **_loss(loss))
    return model


def _loss(name: str) -> dict[str, Any]:
    steps = {"steps": 2 * STEPS} if name == "three" else {}  # that all six forwards of a step drop a layer is rare
    return steps | ({"loss_of": LOSSES[name]} if name in LOSSES else {})


def ddp(rank: int, size: int, *, loss: str, find_unused: bool, **how: object) -> dict[str, object]:
    model, none_seen = new_model(**how), []
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    train(
        wrapped,
        optimizer_for("adamw", wrapped),
        rank,
        size,
        on_step=lambda: none_seen.append(without_gradient(model)),
        **_loss(loss),
    )
    return {
        "distance": distance(model, alone(loss, **how)),
        "spread": spread(model),
        "to rate 0": distance(model, alone(loss, 0.0)),
        "without gradient": sum(map(sum, none_seen)),
    }


def fsdp(rank: int, size: int, **how: object) -> dict[str, object]:
    """Shard by layer by hand, and count what is gathered beside the same at rate 0."""
    gathered = []
    for rate in (0.0, 0.5):
        model = new_model(rate, **how)
        expected, whole = new_model(rate, **how), new_model(0.0, **how)
        for each in (expected, whole):
            train(each, optimizer_for("adamw", each), 0, 1, accumulate=False)
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
        with counted_gathers() as count:
            train(model, optimizer_for("adamw", model), rank, size, accumulate=False)
        gathered.append(count["all"])
    return {
        "distance": distance_of_shards(model, expected),
        "to rate 0": distance_of_shards(model, whole),
        "gathered": gathered,
    }


def all_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for find_unused in (False, True):
        for loss in LOSSES:
            cases[f"ddp {loss} {find_unused}"] = partial(ddp, loss=loss, find_unused=find_unused)
        cases[f"ddp mask {find_unused}"] = partial(ddp, loss="usual", find_unused=find_unused, execution="mask")
    cases["ddp r-drop checkpointed"] = partial(ddp, loss="r-drop", find_unused=False, checkpointing=True)
    cases["ddp r-drop mask"] = partial(ddp, loss="r-drop", find_unused=False, execution="mask")
    cases["fsdp mask"] = partial(fsdp, execution="mask")
    for name, structure in STRUCTURES.items():
        cases[f"fsdp {name}"] = partial(fsdp, structure=structure)
    return cases


if __name__ == "__main__":
    run_cases(all_cases(), sys.argv[1:])
