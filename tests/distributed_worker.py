"""What each of two processes does for tests/test_distributed.py; prints one JSON object a line, from rank 0.

``torchrun`` starts it; every case trains the same tiny model for a few steps, and says how far it ended from
one process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from conftest import build
from hf_layerdrop.config import LayerDropConfig
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection import inject_layerdrop, layerdrop_state, set_rates, set_step
from hf_layerdrop.stepping import register_with_trainer

STEPS, MICRO_STEPS, ROWS = 8, 2, 4
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
) -> None:
    """Train with gradient accumulation, on this rank's share of the rows."""
    model.train()
    micro_steps = MICRO_STEPS if accumulate else 1
    for step in range(STEPS):
        for micro_step in range(micro_steps):
            set_step(model, step, micro_step)
            last = micro_step == micro_steps - 1
            quiet = nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
            with quiet:
                (model(**half(rows(step, micro_step), rank, size)).loss / micro_steps).backward()
        optimizer.step()
        on_step()
        optimizer.zero_grad()


def new_model(checkpointing: str, rate: float = 0.5) -> nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(rate, seed=1))
    if checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        if checkpointing == "reentrant":
            model.enable_input_require_grads()
    return model


def distance(model: nn.Module, other: nn.Module) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)


def ddp(rank: int, size: int, *, find_unused: bool, checkpointing: str, optimizer: str) -> dict[str, object]:
    alone, model = new_model(checkpointing), new_model(checkpointing)
    train(alone, optimizer_for(optimizer, alone), 0, 1)
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    none_seen = []

    def note() -> None:
        layers = model.bert.encoder.layer
        none_seen.append([all(weight.grad is None for weight in layer.parameters()) for layer in layers])

    train(wrapped, optimizer_for(optimizer, wrapped), rank, size, on_step=note)
    dropped = sum(map(sum, none_seen))
    return {"distance": distance(model, alone), "dropped": dropped, "spread": spread(model)}


def spread(model: nn.Module) -> float:
    """Return how far the ranks have come apart."""
    flat = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    first = flat.clone()
    distributed.broadcast(first, 0)
    apart = (flat - first).abs().max()
    distributed.all_reduce(apart, distributed.ReduceOp.MAX)
    return float(apart)


def fsdp(rank: int, size: int) -> dict[str, object]:
    gathered: dict[float, int] = {}
    ends: dict[float, float] = {}
    for rate in (0.0, 0.5, 1.0):
        alone, model = new_model("none", rate), new_model("none", rate)
        train(alone, optimizer_for("adamw", alone), 0, 1, accumulate=False)
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        fully_shard(model)
        count = {"all": 0}
        original = distributed.all_gather_single

        def counted(*args: object, _original: Callable = original, _count: dict = count, **kwargs: object) -> object:
            _count["all"] += 1
            return _original(*args, **kwargs)

        distributed.all_gather_single = counted
        try:
            train(model, optimizer_for("adamw", model), rank, size, accumulate=False)
        finally:
            distributed.all_gather_single = original
        gathered[rate] = count["all"]
        full = [weight.full_tensor() for weight in model.parameters()]
        ends[rate] = max(float((one - two).abs().max()) for one, two in zip(full, alone.parameters(), strict=True))
    return {"gathered": list(gathered.values()), "distance": max(ends.values())}


def by_trainer(rank: int, size: int, *, checkpointing: bool, folder: Path) -> dict[str, object]:
    register_with_trainer()
    model = new_model("none")
    data = [{name: value[row] for name, value in rows(0, 0).items()} for row in range(ROWS)] * 4
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    Trainer(model, arguments, train_dataset=data).train()
    return {
        "spread": spread(model),
        "moved": distance(model, new_model("none")),
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


def impossible(rank: int, size: int) -> dict[str, object]:
    wrapped = DistributedDataParallel(new_model("reentrant"), find_unused_parameters=True)
    try:
        wrapped.train()(**half(rows(0, 0), rank, size))
    except LayerDropStateError as error:
        return {"error": str(error)}
    return {"error": ""}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()

    def say(case: str, found: dict[str, object]) -> None:
        every: list[object] = [None] * size
        distributed.all_gather_object(every, found)
        if rank == 0:
            print(json.dumps({"case": case, "ranks": every}), flush=True)  # noqa: T201 - what the test reads

    for find_unused in (False, True):
        for checkpointing in ("none", "plain", "reentrant"):
            if find_unused and checkpointing == "reentrant":
                continue
            for optimizer in ("sgd", "adamw"):
                case = f"ddp-{find_unused}-{checkpointing}-{optimizer}"
                say(case, ddp(rank, size, find_unused=find_unused, checkpointing=checkpointing, optimizer=optimizer))
    say("impossible", impossible(rank, size))
    say("disagreement", disagreement(rank, size))
    say("fsdp", fsdp(rank, size))
    for checkpointing in (False, True):
        say(f"trainer-{checkpointing}", by_trainer(rank, size, checkpointing=checkpointing, folder=folder))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
