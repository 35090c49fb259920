"""What each of two processes does for test_row_ranks; prints one JSON object a line, from rank 0.

A rank draws rows of its own batch, by their places in it, and all ranks draw the same places. So one process that ends
where two ranks end runs their halves one after the other, each from the same place of the counter.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

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
    train,
)
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_step
from hf_layerdrop.errors import LayerDropStateError
from ranks import Case, run_cases


def new_model(rate: object = 0.4, granularity: str = "row", checkpointing: bool = False) -> nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(rate, seed=1, granularity=granularity))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def joined(step: int, micro_step: int) -> dict[str, torch.Tensor]:
    """Return eight rows, so that each rank has four."""
    batches = [rows(step, micro_step), rows(step + 50, micro_step)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def alone(size: int, accumulate: bool, rate: object = 0.4) -> nn.Module:
    """Return what one process makes of the halves, one after the other."""
    model = new_model(rate).train()
    optimizer = optimizer_for("adamw", model)
    micro_steps = MICRO_STEPS if accumulate else 1
    for step in range(STEPS):
        for micro_step in range(micro_steps):
            for rank in range(size):
                set_step(model, step, micro_step)
                (model(**half(joined(step, micro_step), rank, size)).loss / micro_steps / size).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def counted_rows(model: nn.Module) -> list[set[int]]:
    """Return on how many rows each layer has run, seen by its attention."""
    seen: list[set[int]] = [set() for _ in model.bert.encoder.layer]
    for layer, counts in zip(model.bert.encoder.layer, seen, strict=True):
        layer.attention.register_forward_pre_hook(lambda module, args, counts=counts: counts.add(len(args[0])))
    return seen


def run(model: nn.Module, rank: int, size: int, *, accumulate: bool) -> None:
    """Train as `train` does, on batches of eight rows."""
    optimizer = optimizer_for("adamw", model)

    def loss_of(wrapped: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return wrapped(**batch).loss

    import distributed_worker

    distributed_worker.rows, before = joined, distributed_worker.rows
    try:
        train(model, optimizer, rank, size, accumulate=accumulate, loss_of=loss_of)
    finally:
        distributed_worker.rows = before


def ddp(rank: int, size: int, *, find_unused: bool, checkpointing: bool) -> dict[str, object]:
    model = new_model(checkpointing=checkpointing)
    seen = counted_rows(model)
    run(DistributedDataParallel(model, find_unused_parameters=find_unused), rank, size, accumulate=True)
    return {
        "distance": distance(model, alone(size, accumulate=True)),
        "to rate 0": distance(model, alone(size, accumulate=True, rate=0.0)),
        "spread": spread(model),
        "rows": [sorted(counts) for counts in seen],
    }


def fsdp(rank: int, size: int) -> dict[str, object]:
    gathered = []
    for rate in (0.0, 0.4):
        model = new_model(rate)
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
        with counted_gathers() as count:
            run(model, rank, size, accumulate=False)
        gathered.append(count["all"])
    return {
        "distance": distance_of_shards(model, alone(size, accumulate=False)),
        "to rate 0": distance_of_shards(model, alone(size, accumulate=False, rate=0.0)),
        "gathered": gathered,
    }


def uneven(rank: int, size: int, *, sharded: bool) -> dict[str, object]:
    """Give one rank four rows and the other a single one, of which no layer may be left out."""
    model = new_model((0.0, 0.6, 0.9, 1.0))
    if sharded:
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
    wrapped = model if sharded else DistributedDataParallel(model)
    optimizer = optimizer_for("adamw", wrapped)
    for step in range(3):
        set_step(wrapped, step)
        batch = rows(step, 0)
        wrapped.train()(**{name: value[: 1 if rank else 4] for name, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"spread": 0.0 if sharded else spread(model)}


def mixed(rank: int, size: int) -> dict[str, object]:
    """Let one rank drop by row and the other by batch."""
    wrapped = DistributedDataParallel(new_model(granularity="row" if rank else "batch"))
    try:
        wrapped.train()(**rows(0, 0))
    except LayerDropStateError as error:
        distributed.barrier()
        return {"said": str(error)}
    return {"said": ""}


def all_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {
        f"ddp {find_unused} {checkpointing}": partial(ddp, find_unused=find_unused, checkpointing=checkpointing)
        for find_unused in (False, True)
        for checkpointing in (False, True)
    }
    return cases | {
        "fsdp": fsdp,
        "uneven ddp": partial(uneven, sharded=False),
        "uneven fsdp": partial(uneven, sharded=True),
        "mixed": mixed,
    }


if __name__ == "__main__":
    run_cases(all_cases(), sys.argv[1:])
