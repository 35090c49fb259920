"""What each of two processes does for test_structures; prints one JSON object a line, from rank 0."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel

from conftest import build
from distributed_worker import HEAD, distance, optimizer_for, spread, train
from hf_layerdrop import LayerDropConfig, inject_layerdrop
from ranks import run_cases

STRUCTURES = {"attention+ffn": ("attention", "ffn"), "head+attention+layer": ("head", "attention", "layer")}


def new_model(structure: str, checkpointing: str) -> torch.nn.Module:
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1, structure=STRUCTURES[structure]))
    if checkpointing != "none":
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        if checkpointing == "reentrant":
            model.enable_input_require_grads()
    return model


def ddp(rank: int, size: int, structure: str, checkpointing: str, *, find_unused: bool) -> dict[str, float]:
    alone, model = new_model(structure, checkpointing), new_model(structure, checkpointing)
    train(alone, optimizer_for("adamw", alone), 0, 1)
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    dropped = []

    def note() -> None:
        layers = model.bert.encoder.layer
        dropped.append(sum(layer.attention.self.query.weight.grad is None for layer in layers))

    train(wrapped, optimizer_for("adamw", wrapped), rank, size, on_step=note)
    return {"distance": distance(model, alone), "spread": spread(model), "dropped": sum(dropped)}


if __name__ == "__main__":
    run_cases(
        {
            f"{structure}-{find_unused}-{checkpointing}": partial(
                ddp, structure=structure, checkpointing=checkpointing, find_unused=find_unused
            )
            for structure in STRUCTURES
            for find_unused, checkpointing in ((False, "none"), (False, "reentrant"), (True, "none"), (True, "plain"))
        }
    )
