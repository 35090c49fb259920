"""What each of two processes does for test_depth_ranks; prints one JSON object a line, from rank 0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from conftest import build
from distributed_worker import (
    HEAD,
    MICRO_STEPS,
    STEPS,
    counted_gathers,
    distance,
    distance_of_shards,
    half,
    optimizer_for,
    rows,
    spread,
    trainer_for,
    without_gradient,
)
from hf_layerdrop import DepthTrainer, DepthTraining, backward_depths, layerdrop_state, prepare_depths
from hf_layerdrop.errors import LayerDropStateError
from ranks import run_cases

# Layer 2 is left to the whole model, which is trained in every third step alone.
TRAINING = DepthTraining([4, [0, 1, 3], [1, 3]], per_step=3, whole_every=3, seed=5)


def train(model: nn.Module, rank: int, size: int, *, accumulate: bool = True) -> list[list[bool]]:
    """Train on this rank's share of the rows; return at each step which layers the optimizer sees without gradient."""
    model.train()
    optimizer, none_seen = optimizer_for("adamw", model), []
    micro_steps = MICRO_STEPS if accumulate else 1
    inner = getattr(model, "module", model)
    for step in range(STEPS):
        for micro_step in range(micro_steps):
            batch = half(rows(step, micro_step), rank, size)
            backward_depths(
                model, batch, TRAINING, step=step, micro_step=micro_step,
                backward=lambda loss: (loss / micro_steps).backward(),
            )  # fmt: skip
        optimizer.step()
        none_seen.append(without_gradient(inner))
        optimizer.zero_grad()
    return none_seen


def new_model(checkpointing: bool = False) -> nn.Module:
    model = build(HEAD).double()  # AdamW makes much of what is rounded in small gradients
    prepare_depths(model, TRAINING)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


@cache
def alone(accumulate: bool = True) -> tuple[nn.Module, list[list[bool]]]:
    """Return what one process makes of the joined batches."""
    model = new_model()
    return model, train(model, 0, 1, accumulate=accumulate)


def ddp(rank: int, size: int, *, find_unused: bool, checkpointing: bool = False) -> dict[str, object]:
    expected, none_expected = alone()
    model = new_model(checkpointing)
    none_seen = train(DistributedDataParallel(model, find_unused_parameters=find_unused), rank, size)
    return {
        "distance": distance(model, expected),
        "moved": distance(model, new_model()),
        "spread": spread(model),
        "same_nones": none_seen == none_expected,
        "without gradient": sum(map(sum, none_seen)),
    }


def fsdp(rank: int, size: int) -> dict[str, object]:
    expected, none_expected = alone(False)
    model = new_model()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    with counted_gathers() as count:
        none_seen = train(model, rank, size, accumulate=False)
    return {
        "distance": distance_of_shards(model, expected),
        "same_nones": none_seen == none_expected,
        "gathered": count["all"],
        "layers": sum(draw.layer_forwards for draw in layerdrop_state(model).draws.values()),
        "networks": sum(len(prepare_depths(model, TRAINING).of_step(step)) for step in range(STEPS)),
    }


def by_trainer(rank: int, size: int, *, folder: Path) -> dict[str, object]:
    expected, _ = alone()
    model, logged = build(HEAD).double(), {}

    class Logged(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            logged.update(logs)

    kind = partial(DepthTrainer, depth_training=TRAINING, callbacks=[Logged()])
    trainer = trainer_for(model, folder, size, kind, logging_strategy="steps", logging_steps=STEPS)
    trainer.train()
    return {"distance": distance(model, expected), "spread": spread(model), "logged": sorted(logged)}


def disagreement(rank: int, size: int) -> dict[str, object]:
    """Give the ranks other lists."""
    model = build(HEAD)
    training = DepthTraining([4, 2] if rank else [4, 3], seed=0)
    prepare_depths(model, training)
    wrapped = DistributedDataParallel(model).train()
    try:
        backward_depths(wrapped, half(rows(0, 0), rank, size), training, step=0)
    except LayerDropStateError as error:
        return {"error": str(error)}
    return {"error": ""}


def all_cases(folder: Path) -> dict[str, Callable[[int, int], dict[str, object]]]:
    cases: dict[str, Callable[[int, int], dict[str, object]]] = {}
    for flag in (False, True):
        cases[f"ddp-{flag}"] = partial(ddp, find_unused=flag)
        cases[f"ddp-{flag}-checkpointed"] = partial(ddp, find_unused=flag, checkpointing=True)
    return cases | {"fsdp": fsdp, "trainer": partial(by_trainer, folder=folder), "disagreement": disagreement}


if __name__ == "__main__":
    run_cases(all_cases(Path(sys.argv[1])), sys.argv[2:])
