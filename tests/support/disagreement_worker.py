"""What each of two processes does for test_disagreement: input that is bad, or that changes on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import hf_layerdrop.injection.ranks.agreement
from conftest import batch_for, build
from distributed_worker import (
    HEAD,
    STEPS,
    distance,
    distance_of_shards,
    half,
    optimizer_for,
    rows,
    spread,
    trained_alone,
    trainer_for,
)
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_rates, set_step
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.training.callbacks import LayerDropScheduleCallback
from ranks import Case, run_cases

USUAL = {"rate": 0.5, "seed": 0}
OTHER: dict[str, dict[str, Any]] = {  # what rank 1 has, and rank 0 has not
    "seed": {"seed": 1},
    "rate": {"rate": 0.3},
    "rate 0": {"rate": 0.0},
    "never_drop": {"never_drop": (0,)},
    "sampler": {"sampler": "depth"},
    "structure": {"structure": "attention"},
    "execution": {"execution": "mask"},
    "rate 0 of a mask": {"rate": 0.0, "execution": "mask"},
}
SUMMARIES = "BartForConditionalGeneration"
RESUMED = STEPS // 2


def sharded(model: nn.Module) -> nn.Module:
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    return fully_shard(model)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {"ddp": DistributedDataParallel, "fsdp": sharded}


def error_of(call: Callable[[], object]) -> dict[str, object]:
    try:
        call()
    except LayerDropError as error:
        return {"error": str(error)}
    return {"error": ""}


def another_config(rank: int, size: int, *, wrapper: str, other: str) -> dict[str, object]:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(**{**USUAL, **(OTHER[other] if rank else {})}))
    wrapped = WRAPPERS[wrapper](model).train()
    return error_of(lambda: wrapped(**half(rows(0, 0), rank, size)))


def after_a_forward_alone(rank: int, size: int) -> dict[str, object]:
    """Train a forward before the model is shared, in which there is nobody to agree with."""
    model = build(HEAD).train()
    inject_layerdrop(model, LayerDropConfig(0.5, seed=rank))
    model(**half(rows(0, 0), rank, size))
    wrapped = DistributedDataParallel(model)
    return error_of(lambda: wrapped(**half(rows(0, 0), rank, size)))


def sharded_after_a_forward_alone(rank: int, size: int) -> dict[str, object]:
    model = build(HEAD).train()
    inject_layerdrop(model, LayerDropConfig(0.5, seed=rank))
    for _ in range(2):  # after the first it is known that nothing is sharded, and that may change
        model(**half(rows(0, 0), rank, size))
    return error_of(lambda: sharded(model)(**half(rows(0, 0), rank, size)))


def stacks_that_one_rank_alone_runs(rank: int, size: int, *, encoder: float) -> dict[str, object]:
    """Leave the encoder out on rank 1, as a batch without images does with a vision stack, and change the rates."""
    model = build(SUMMARIES).train()
    inject_layerdrop(model, LayerDropConfig({"encoder": encoder, "decoder": 0.5}, seed=1))
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = optimizer_for("adamw", wrapped)

    def train() -> None:
        for step in range(6):
            if step in (2, 4):
                set_rates(model, {"decoder": 0.1 * step})
            set_step(model, step)
            batch = batch_for(SUMMARIES, step)
            known = {"encoder_outputs": (torch.ones(*batch["input_ids"].shape, 16),)}
            given = {"decoder_input_ids": batch["input_ids"], **(known if rank and step % 3 == 0 else batch)}
            wrapped(**given).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return {**error_of(train), "spread": spread(model), "moved": distance(model, build(SUMMARIES))}


def not_injected_on_one(rank: int, size: int) -> dict[str, object]:
    hf_layerdrop.injection.ranks.agreement.RANKS_TIMEOUT, usual = (
        timedelta(seconds=1),
        hf_layerdrop.injection.ranks.agreement.RANKS_TIMEOUT,
    )
    model = build(HEAD)
    if rank == 0:
        inject_layerdrop(model, 0.5)
    wrapped = DistributedDataParallel(model).train()
    found = error_of(lambda: wrapped(**half(rows(0, 0), rank, size)))
    hf_layerdrop.injection.ranks.agreement.RANKS_TIMEOUT = usual
    return found


def rate_changed_within_a_step(
    rank: int, size: int, *, wrap: Callable[[nn.Module], nn.Module], measure: Callable[..., float]
) -> dict[str, object]:
    """Change the rates between two micro-steps of every step, on every rank."""

    def train(model: nn.Module, rank: int, size: int) -> None:
        optimizer = optimizer_for("adamw", model)
        for step in range(STEPS):
            for micro_step, rate in enumerate((0.2, [0.0, 1.0, 0.0, 0.6])):
                set_rates(model, rate)
                set_step(model, step, micro_step)
                (model(**half(rows(step, micro_step), rank, size)).loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()

    alone, model = build(HEAD).train(), build(HEAD).train()
    for each in (alone, model):
        inject_layerdrop(each, LayerDropConfig(0.5, seed=1))
    train(alone, 0, 1)
    train(wrap(model), rank, size)
    return {"distance": measure(model, alone), "moved": distance(alone, build(HEAD))}


def sharded_before(rank: int, size: int) -> dict[str, object]:
    """Inject LayerDrop into a model that FSDP2 has sharded already."""
    alone, model = trained_alone("adamw"), sharded(build(HEAD))
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    optimizer = optimizer_for("adamw", model.train())
    for step in range(STEPS):
        for micro_step in range(2):
            set_step(model, step, micro_step)
            (model(**half(rows(step, micro_step), rank, size)).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"distance": distance_of_shards(model, alone)}


def schedule_that_leaves(rank: int, size: int, *, folder: Path) -> dict[str, object]:
    model = new_injected()
    trainer = trainer_for(model, folder, size)
    trainer.add_callback(LayerDropScheduleCallback(lambda progress: 4 * progress))
    return {**error_of(trainer.train), "steps": trainer.state.global_step}


def of_one_process_before(rank: int, size: int, *, folder: Path) -> dict[str, object]:
    """Go on with a checkpoint that one process has written."""
    model = new_injected()
    trainer = trainer_for(model, folder / "ranks", size)
    trainer.train(resume_from_checkpoint=str(folder / "alone" / f"checkpoint-{RESUMED}"))
    return {"distance": distance(model, trained_alone("adamw")), "spread": spread(model)}


def for_one_process_after(rank: int, size: int, *, folder: Path) -> dict[str, object]:
    """Write a checkpoint with which the test goes on in one process."""
    model = new_injected()
    trainer_for(model, folder / "two", size, save_strategy="steps", save_steps=RESUMED).train()
    return {"distance": distance(model, trained_alone("adamw"))}


def new_injected() -> nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    return model


def all_cases(folder: Path) -> dict[str, Case]:
    cases: dict[str, Case] = {
        f"{wrapper}: {other}": partial(another_config, wrapper=wrapper, other=other)
        for wrapper in WRAPPERS
        for other in OTHER
    }
    for name, wrap in WRAPPERS.items():
        measure = distance if name == "ddp" else distance_of_shards
        cases[f"rates within a step: {name}"] = partial(rate_changed_within_a_step, wrap=wrap, measure=measure)
    unused = partial(DistributedDataParallel, find_unused_parameters=True)
    cases["rates within a step: find_unused"] = partial(rate_changed_within_a_step, wrap=unused, measure=distance)
    return cases | {
        "after a forward alone: ddp": after_a_forward_alone,
        "after a forward alone: fsdp": sharded_after_a_forward_alone,
        "stacks of one rank: encoder at 0": partial(stacks_that_one_rank_alone_runs, encoder=0.0),
        "stacks of one rank: encoder at 0.5": partial(stacks_that_one_rank_alone_runs, encoder=0.5),
        "sharded before": sharded_before,
        "schedule": partial(schedule_that_leaves, folder=folder / "schedule"),
        "of one process before": partial(of_one_process_before, folder=folder),
        "for one process after": partial(for_one_process_after, folder=folder),
        "not injected on one": not_injected_on_one,  # last: the ranks are out of step afterwards
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_cases(all_cases(Path(sys.argv[1])), sys.argv[2:])
