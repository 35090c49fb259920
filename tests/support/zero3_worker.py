"""What each of two processes does for test_zero3; prints one JSON object a line, from rank 0."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from torch import distributed

GATHERS = {"all": 0}


def counted(gather: Any) -> Any:
    def call(*args: object, **kwargs: object) -> object:
        GATHERS["all"] += 1
        return gather(*args, **kwargs)

    return call


distributed.all_gather_into_tensor = counted(distributed.all_gather_into_tensor)  # before DeepSpeed takes it

import deepspeed  # noqa: E402

from distributed_worker import half, new_model, optimizer_for, rows  # noqa: E402
from hf_layerdrop.errors import LayerDropStateError  # noqa: E402
from hf_layerdrop.injection.inject import set_step  # noqa: E402
from hf_layerdrop.injection.ranks.ddp import leave_ranks  # noqa: E402

STEPS = 10


def alone(rate: float, optimizer_name: str, micro_steps: int) -> torch.nn.Module:
    """Train in one process; layers that were dropped are stepped with a gradient of zero."""
    model = new_model("none", rate).train()
    optimizer = optimizer_for(optimizer_name, model)
    for step in range(STEPS):
        for micro_step in range(micro_steps):
            set_step(model, step, micro_step)
            (model(**rows(step, micro_step)).loss / micro_steps).backward()
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        optimizer.step()
        optimizer.zero_grad()
    return model


def sharded(case: Mapping[str, Any]) -> torch.nn.Module:
    model = new_model(case["checkpointing"], case["rate"]).train()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": case["micro_steps"],
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": case["prefetch"],
            "stage3_param_persistence_threshold": 0,  # it would keep so small a model gathered, and for reuse too
            "stage3_max_reuse_distance": 0,
            **({"offload_optimizer": {"device": "cpu"}} if case["offload"] else {}),
        },
    }
    optimizer = optimizer_for(case["optimizer"], model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    GATHERS["all"] = 0
    for step in range(STEPS):
        for micro_step in range(case["micro_steps"]):
            set_step(model, step, micro_step)
            engine.backward(engine(**half(rows(step, micro_step), distributed.get_rank(), 2)).loss)
            engine.step()
    return model


def distance(model: torch.nn.Module, other: torch.nn.Module) -> float:
    furthest = 0.0
    for weight, expected in zip(model.parameters(), other.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters(weight):
            furthest = max(furthest, float((weight.detach() - expected.detach()).abs().max()))
    return furthest


def main(cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    for case in cases:
        try:
            model = sharded(case)
            found = {"gathers": GATHERS["all"]}
            found["distance"] = distance(model, alone(case["rate"], case["optimizer"], case["micro_steps"]))
        except LayerDropStateError as error:
            found = {"error": str(error)}
        if distributed.get_rank() == 0:
            print(json.dumps({"case": case["name"], **found}), flush=True)  # noqa: T201 - what the test reads
    leave_ranks()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
