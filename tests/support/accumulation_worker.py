"""What each of two processes does for tests/training/test_accumulation.py: Trainers that weigh losses, on two ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.nn.functional import cross_entropy

from conftest import build
from distributed_worker import distance, distance_of_shards
from hf_layerdrop import LayerDropConfig, inject_layerdrop, set_step
from hf_layerdrop.training.trainers import TaskTrainer
from integrations import training_arguments
from ranks import Case, run_cases

HEAD, STEPS, MICRO_STEPS, BATCH = "BertForTokenClassification", 6, 2, 4
Apart = Callable[[nn.Module, nn.Module], float]


def rows() -> list[dict[str, torch.Tensor]]:
    """Rows of which each has another number of labels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(STEPS * MICRO_STEPS * BATCH):
        ids = torch.randint(5, 60, (8,), generator=generator)
        labels = ids % 2
        labels[: number % 7] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def new_model(execution: str) -> nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1, execution=execution))
    return model.train()


def trained_alone(execution: str, *, weighed: bool = True) -> nn.Module:
    """Train in a loop, by the mean over all labels of a step; or, as Trainer by itself does, by the sum of means."""
    model, data = new_model(execution), iter(rows())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        batches = [[next(data) for _ in range(BATCH)] for _ in range(MICRO_STEPS)]
        labels = sum(int(row["labels"].ne(-100).sum()) for batch in batches for row in batch)
        for micro_step, batch in enumerate(batches):
            set_step(model, step, micro_step)
            joined = {name: torch.stack([row[name] for row in batch]) for name in ("input_ids", "labels")}
            logits = model(input_ids=joined["input_ids"]).logits.flatten(0, 1)
            reduction = "sum" if weighed else "mean"
            loss = cross_entropy(logits, joined["labels"].flatten(), reduction=reduction)
            (loss / (labels if weighed else MICRO_STEPS)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def trainer_for(model: nn.Module, folder: Path, size: int, **changes: object) -> TaskTrainer:
    arguments = training_arguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // size,
        gradient_accumulation_steps=MICRO_STEPS,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        logging_strategy="no",
        **changes,
    )
    return TaskTrainer(model, arguments, train_dataset=rows())


def found_of(trainer: TaskTrainer, model: nn.Module, execution: str, apart: Apart) -> dict[str, object]:
    return {
        "distance": apart(model, trained_alone(execution)),
        "to means": apart(model, trained_alone(execution, weighed=False)),
        "ignores": trainer._ignores,
    }


def ddp(rank: int, size: int, *, execution: str, folder: Path) -> dict[str, object]:
    trainer = trainer_for(new_model(execution), folder, size)
    trainer.train()
    return found_of(trainer, trainer.model, execution, distance)


def fsdp(rank: int, size: int, *, execution: str, folder: Path) -> dict[str, object]:
    trainer = trainer_for(new_model(execution), folder, size)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
        cpu_ram_efficient_loading=False,
    )
    # accelerate shards on accelerators only, and plain processes on a CPU train by DDP; all else is its usual way.
    state = trainer.accelerator.state
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    trainer.is_fsdp_enabled = True
    trainer.train()
    found = found_of(trainer, trainer.model, execution, distance_of_shards)
    return {**found, "sharded": sum(type(module).__name__ == "FSDPBertLayer" for module in trainer.model.modules())}


def all_cases(folder: Path) -> dict[str, Case]:
    return {
        f"{way.__name__} {execution}": partial(way, execution=execution, folder=folder)
        for way in (ddp, fsdp)
        for execution in ("skip", "mask")
    }


if __name__ == "__main__":
    run_cases(all_cases(Path(sys.argv[1])), sys.argv[2:])
