"""What each of two processes does for test_distributed; prints one JSON object a line, from rank 0.

tests/support/ranks.py starts it; every case trains the same tiny model for a few steps, and says how far it ended from
one process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments

import hf_layerdrop.injection.ranks.agreement
from conftest import build
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.calling_trainer import calling_trainer
from hf_layerdrop.injection.inject import inject_layerdrop, layerdrop_state, set_step
from hf_layerdrop.injection.rates import set_rates
from hf_layerdrop.injection.step_callback import register_with_trainer
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.training.trainers import TaskTrainer
from ranks import run_cases

STEPS, MICRO_STEPS, ROWS = 10, 2, 4
HEAD = "BertForSequenceClassification"


def rows(step: int, micro_step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + micro_step)
    ids = torch.randint(5, 60, (ROWS, 8), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(0, 2, (ROWS,), generator=generator)}


def half(batch: dict[str, torch.Tensor], rank: int, size: int) -> dict[str, torch.Tensor]:
    return {name: value.chunk(size)[rank] for name, value in batch.items()}


def optimizer_for(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=0.1, eps=1e-5
    )  # keys have no bias gradient but noise


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    size: int,
    accumulate: bool = True,
    on_step: Callable[[], None] = lambda: None,
    loss_of: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor] = lambda model, batch: model(**batch).loss,
    steps: int = STEPS,
) -> None:
    """Train with gradient accumulation, on this rank's share of the rows."""
    model.train()
    micro_steps = MICRO_STEPS if accumulate else 1
    for step in range(steps):
        for micro_step in range(micro_steps):
            set_step(model, step, micro_step)
            last = micro_step == micro_steps - 1
            quiet = nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
            with quiet:
                (loss_of(model, half(rows(step, micro_step), rank, size)) / micro_steps).backward()
        optimizer.step()
        on_step()
        optimizer.zero_grad()


def new_model(checkpointing: str, rate: float = 0.5) -> nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(rate, seed=1))
    if checkpointing != "none":
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        if checkpointing == "reentrant":
            model.enable_input_require_grads()
    return model


def distance(model: nn.Module, other: nn.Module) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)


@cache
def trained_alone(
    optimizer: str, *, checkpointing: str = "none", rate: float = 0.5, accumulate: bool = True
) -> nn.Module:
    """Return what one process makes of the joined batches."""
    model = new_model(checkpointing, rate)
    train(model, optimizer_for(optimizer, model), 0, 1, accumulate)
    return model


def ddp(rank: int, size: int, *, find_unused: bool, checkpointing: str, optimizer: str) -> dict[str, object]:
    alone, model = trained_alone(optimizer, checkpointing=checkpointing), new_model(checkpointing)
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    none_seen: list[list[bool]] = []
    train(
        wrapped,
        optimizer_for(optimizer, wrapped),
        rank,
        size,
        on_step=lambda: none_seen.append(without_gradient(model)),
    )
    dropped = sum(map(sum, none_seen))
    return {"distance": distance(model, alone), "dropped": dropped, "spread": spread(model)}


def without_gradient(model: nn.Module) -> list[bool]:
    """Tell for each layer whether an optimizer that stepped now would leave all of it alone."""
    return [all(weight.grad is None for weight in layer.parameters()) for layer in model.bert.encoder.layer]


def spread(model: nn.Module) -> float:
    """Return how far the ranks have come apart."""
    flat = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    first = flat.clone()
    distributed.broadcast(first, 0)
    apart = (flat - first).abs().max()
    distributed.all_reduce(apart, distributed.ReduceOp.MAX)
    return float(apart)


@contextmanager
def counted_gathers() -> Iterator[dict[str, int]]:
    """Count the all-gathers of FSDP2 inside the block."""
    count = {"all": 0}
    original = distributed.all_gather_single

    def counted(*args: object, **kwargs: object) -> object:
        count["all"] += 1
        return original(*args, **kwargs)

    distributed.all_gather_single = counted
    try:
        yield count
    finally:
        distributed.all_gather_single = original


def fsdp(rank: int, size: int) -> dict[str, object]:
    gathered: dict[float, int] = {}
    ends: dict[float, float] = {}
    for rate in (0.0, 0.5, 1.0):
        alone, model = trained_alone("adamw", rate=rate, accumulate=False), new_model("none", rate)
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
        with counted_gathers() as count:
            train(model, optimizer_for("adamw", model), rank, size, accumulate=False)
        gathered[rate] = count["all"]
        ends[rate] = distance_of_shards(model, alone)
    return {"gathered": list(gathered.values()), "distance": max(ends.values())}


def distance_of_shards(model: nn.Module, other: nn.Module) -> float:
    full = [weight.full_tensor() for weight in model.parameters()]
    return max(float((one - two).abs().max()) for one, two in zip(full, other.parameters(), strict=True))


def sharding_accelerator(*, checkpointing: bool) -> Accelerator:
    AcceleratorState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],  # a name, which the class of an injected layer has to keep
        activation_checkpointing=checkpointing,
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    os.environ.pop("ACCELERATE_USE_FSDP")  # it is for this accelerator alone
    # accelerate shards on accelerators only, and plain processes on a CPU train by DDP; all else is its usual way.
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator


def gradients_of_shards(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if weight.grad is None else weight.grad.full_tensor() for weight in model.parameters()]


def counted_runs(model: nn.Module) -> list[int]:
    """Return counters of how often each layer's attention runs, first runs and recomputations alike."""
    layers = model.bert.encoder.layer
    runs = [0] * len(layers)

    def counter(index: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            runs[index] += 1

        return count

    for index, layer in enumerate(layers):
        layer.attention.register_forward_pre_hook(counter(index))
    return runs


def sharded_run(rate: float, rank: int, size: int, *, checkpointing: bool) -> dict[str, Any]:
    """Train with accelerate's FSDP2; with ``checkpointing`` it recomputes each layer's call."""
    alone, model = trained_alone("adamw", rate=rate, accumulate=False), new_model("none", rate)
    runs, gradients = counted_runs(model), []

    def note() -> None:
        if len(gradients) < 6:  # as many steps as show it: each weight is gathered
            gradients.append(gradients_of_shards(model))

    accelerator = sharding_accelerator(checkpointing=checkpointing)
    model, optimizer = accelerator.prepare(model, optimizer_for("adamw", model))
    with counted_gathers() as count:
        train(
            model,
            optimizer,
            rank,
            size,
            accumulate=False,
            on_step=note,
        )
    return {
        "gathered": count["all"],
        "distance": distance_of_shards(model, alone),
        "sharded": sum(type(module).__name__ == "FSDPBertLayer" for module in model.modules()),
        "runs": runs,
        "gradients": gradients,
    }


def fsdp_by_accelerate(rank: int, size: int) -> dict[str, object]:
    """Train with and without recomputation at three rates, and compare the gradients of every step."""
    found: dict[str, object] = {}
    for rate in (0.0, 0.5, 1.0):
        plain, recomputed = (sharded_run(rate, rank, size, checkpointing=way) for way in (False, True))
        pairs = [
            pair
            for steps in zip(plain.pop("gradients"), recomputed.pop("gradients"), strict=True)
            for pair in zip(*steps, strict=True)
        ]
        found[f"rate {rate}"] = {
            "plain": plain,
            "recomputed": recomputed,
            "same_nones": all((one is None) == (two is None) for one, two in pairs),
            "apart": max(float((one - two).abs().max()) for one, two in pairs if one is not None),
        }
    return found


def ddp_by_accelerate(rank: int, size: int, *, find_unused: bool) -> dict[str, object]:
    alone, model = trained_alone("adamw"), new_model("none")
    AcceleratorState._reset_state()
    GradientState._reset_state()
    flags = DistributedDataParallelKwargs(find_unused_parameters=find_unused)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO_STEPS, kwargs_handlers=[flags])
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer_for("adamw", model))
    for step in range(STEPS):
        for micro_step in range(MICRO_STEPS):
            set_step(wrapped, step, micro_step)
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(**half(rows(step, micro_step), rank, size)).loss)
                optimizer.step()
                optimizer.zero_grad()
    GradientState._reset_state()
    return {"distance": distance(model, alone), "spread": spread(model)}


class Watch(TrainerCallback):
    """Note how Trainer wrapped the model."""

    find_unused: bool | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.find_unused = calling_trainer().model_wrapped.find_unused_parameters


def trainer_for(
    model: nn.Module, folder: Path, size: int, kind: Callable[..., Trainer] = Trainer, **changes: Any
) -> Trainer:
    """Return a Trainer of this rank's share of the rows of `train`, in their order, with no flag of DDP's."""
    register_with_trainer()
    data = [
        {name: value[row] for name, value in rows(step, micro_step).items()}
        for step in range(STEPS)
        for micro_step in range(MICRO_STEPS)
        for row in range(ROWS)
    ]
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS // size,
        gradient_accumulation_steps=MICRO_STEPS,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", "logging_strategy": "no", **changes},
    )
    if kind is Trainer:  # which believes that this head divides its loss, see hf_layerdrop.training.accumulation
        model.accepts_loss_kwargs = False
    return kind(model, arguments, train_dataset=data, optimizers=(optimizer_for("adamw", model), None))


def by_trainer(rank: int, size: int, *, checkpointing: bool, folder: Path) -> dict[str, object]:
    """Train by Trainer, and by a loop in one process on the same rows in the same order."""
    alone, model, watch, none_seen = trained_alone("adamw"), new_model("none"), Watch(), []
    kind = TaskTrainer if checkpointing else Trainer
    trainer = trainer_for(model, folder, size, kind, activation_checkpointing=checkpointing)
    trainer.optimizer.register_step_pre_hook(lambda *_: none_seen.append(without_gradient(model)))
    trainer.add_callback(watch)
    trainer.train()
    return {
        "spread": spread(model),
        "distance": distance(model, alone),
        "moved": distance(model, new_model("none")),
        "find_unused": watch.find_unused,
        "dropped": sum(map(sum, none_seen)),
        "steps": layerdrop_state(model).draws["encoder"].step,
    }


def disagreement(rank: int, size: int) -> dict[str, object]:
    """Give the ranks different seeds, then different rates; both must raise on every rank."""
    found = []
    for change in ("seed", "rates"):
        model = build(HEAD)
        inject_layerdrop(model, LayerDropConfig(0.5, seed=rank if change == "seed" else 0))
        if change == "rates":
            set_rates(model, 0.1 + 0.2 * rank)
        wrapped = DistributedDataParallel(model)
        try:
            wrapped.train()(**half(rows(0, 0), rank, size))
            found.append("")
        except LayerDropStateError as error:
            found.append(str(error))
    return {"errors": found}


def rate_changed_by_one(rank: int, size: int) -> dict[str, object]:
    """Change the rates between two micro-steps on rank 0 alone."""
    wrapped = DistributedDataParallel(new_model("none")).train()
    with wrapped.no_sync():
        wrapped(**half(rows(0, 0), rank, size)).loss.backward()
    hf_layerdrop.injection.ranks.agreement.RANKS_TIMEOUT = timedelta(seconds=1)
    if rank == 0:
        set_rates(wrapped, 0.9)
    try:
        wrapped(**half(rows(0, 1), rank, size))
    except LayerDropStateError as error:
        return {"error": str(error)}
    return {"error": ""}


def impossible(rank: int, size: int) -> dict[str, object]:
    wrapped = DistributedDataParallel(new_model("reentrant"), find_unused_parameters=True)
    try:
        wrapped.train()(**half(rows(0, 0), rank, size))
    except LayerDropStateError as error:
        return {"error": str(error)}
    return {"error": ""}


def all_cases(folder: Path) -> dict[str, Callable[[int, int], dict[str, object]]]:
    cases: dict[str, Callable[[int, int], dict[str, object]]] = {}
    for find_unused in (False, True):
        for checkpointing in ("none", "plain", "reentrant"):
            if find_unused and checkpointing == "reentrant":
                continue
            for optimizer in ("sgd", "adamw"):
                cases[f"ddp-{find_unused}-{checkpointing}-{optimizer}"] = partial(
                    ddp, find_unused=find_unused, checkpointing=checkpointing, optimizer=optimizer
                )
    cases |= {"impossible": impossible, "disagreement": disagreement}
    cases |= {"fsdp": fsdp, "fsdp-accelerate": fsdp_by_accelerate}
    for flag in (False, True):
        cases[f"accelerate-{flag}"] = partial(ddp_by_accelerate, find_unused=flag)
        cases[f"trainer-{flag}"] = partial(by_trainer, checkpointing=flag, folder=folder)
    return cases | {"rate-changed-by-one": rate_changed_by_one}  # last: the ranks are out of step afterwards


if __name__ == "__main__":
    run_cases(all_cases(Path(sys.argv[1])), sys.argv[2:])
