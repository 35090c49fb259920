"""What each of two processes does for test_samplers_on_ranks; prints one JSON object a line, from rank 0."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForSequenceClassification

from distributed_worker import STEPS, distance, distance_of_shards, optimizer_for, spread, train
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, scale_rates, set_step
from hf_layerdrop.errors import LayerDropStateError
from ranks import run_cases

CONFIGS = {
    "scaled": LayerDropConfig(0.5, scale="kept", seed=1),
    "pretraining": LayerDropConfig.for_pretraining(0.9, seed=1),
    "depth": LayerDropConfig(0.3, sampler="depth", scale="kept", seed=1),
    "nested": LayerDropConfig.for_depths([4, 2, 1], nested=True, seed=1),
}


def new_model(name: str) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
    config = LlamaConfig(num_hidden_layers=4, initializer_range=0.3, pad_token_id=0, **sizes)
    model = LlamaForSequenceClassification._from_config(config, attn_implementation="eager")
    model.config.use_cache = False
    inject_layerdrop(model, CONFIGS[name])
    return model


def trained(model: nn.Module, rank: int, size: int, wrapped: nn.Module | None = None) -> list[list[bool]]:
    """Train by AdamW with falling rates where the config wants some; return what was drawn in each step."""
    (draw,), step, drawn = layerdrop_state(model).draws.values(), 0, []

    def follow() -> None:
        nonlocal step
        drawn.append(list(draw.draw()))
        step += 1
        if layerdrop_state(model).schedule is not None:
            scale_rates(model, 1 - step / STEPS)

    scale_rates(model, 1.0)
    train(wrapped or model, optimizer_for("adamw", wrapped or model), rank, size, accumulate=False, on_step=follow)
    return drawn


def ddp(rank: int, size: int, *, name: str) -> dict[str, object]:
    alone, model = new_model(name), new_model(name)
    expected = trained(alone, 0, 1)
    drawn = trained(model, rank, size, DistributedDataParallel(model))
    same = drawn == expected and len({tuple(mask) for mask in drawn}) > 1
    return {"distance": distance(model, alone), "spread": spread(model), "same_draws": same}


def fsdp(rank: int, size: int, *, name: str) -> dict[str, object]:
    alone, model = new_model(name), new_model(name)
    trained(alone, 0, 1)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    trained(model, rank, size)
    return {"distance": distance_of_shards(model, alone)}


def disagreement(rank: int, size: int) -> dict[str, object]:
    """Let one rank scale and the other not, though both draw the same."""
    model = new_model("scaled")
    inject_layerdrop(model, LayerDropConfig(0.5, scale=["kept", "none"][rank], seed=1))
    wrapped = DistributedDataParallel(model).train()
    set_step(wrapped, 0)
    try:
        wrapped(input_ids=torch.arange(1, 9)[None])
    except LayerDropStateError as error:
        return {"error": str(error)}
    return {"error": ""}


if __name__ == "__main__":
    cases = {f"{kind.__name__}-{name}": partial(kind, name=name) for kind in (ddp, fsdp) for name in CONFIGS}
    run_cases({**cases, "disagreement": disagreement})
