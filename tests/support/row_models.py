"""Tiny models of several families with batches of any number of rows, and what one row of a batch should get."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from architectures.batches import TOKENS
from architectures.tiny import build_tiny
from hf_layerdrop import layerdrop_state, prune_layers, remove_layerdrop
from hf_layerdrop.samplers.rows import RowMask

Batch = dict[str, torch.Tensor]
FAMILIES = ("bert", "roberta", "bart", "llama", "gpt2", "t5", "vit", "mixtral")


def family(model_type: str, rows: int = 5) -> tuple[PreTrainedModel, Batch]:
    """Return a tiny model in double precision, in train mode, and a batch in which rows differ, also in padding."""
    tiny = build_tiny(model_type)
    generator = torch.Generator().manual_seed(2)
    batch = {name: _rows(name, value, rows, generator) for name, value in tiny.batch.items()}
    if "pixel_values" in batch:
        batch.pop("attention_mask", None)  # which is of patches there
    if model_type == "mixtral":
        tiny.model.set_experts_implementation("eager")  # the grouped product is not of doubles
    if "decoder_input_ids" in batch:
        batch["decoder_attention_mask"] = _mask(rows)
    return tiny.model.double().train(), batch


def _rows(name: str, value: torch.Tensor, rows: int, generator: torch.Generator) -> torch.Tensor:
    shape = (rows, *value.shape[1:])
    if name == "attention_mask":
        return _mask(rows)
    if value.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(4, int(value.max()) + 1, shape, generator=generator)


def _mask(rows: int) -> torch.Tensor:
    """Return a mask in which each row has another padding."""
    lengths = TOKENS - torch.arange(rows) % 4
    return (torch.arange(TOKENS) < lengths[:, None]).long()


def output_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the first floating tensor that a model gives with a row for each row of the batch."""
    outputs = model(**batch)
    rows = len(next(iter(batch.values())))
    return next(value for value in outputs.values() if torch.is_tensor(value) and value.dim() and len(value) == rows)


def layers_of_row(model: nn.Module, row: int, rows: int) -> dict[str, list[int]]:
    """Return which layers a row runs at the place where the counters of the model stand."""
    masks: dict[str, RowMask] = {name: draw.draw() for name, draw in layerdrop_state(model).draws.items()}
    return {name: [index for index, kept in enumerate(mask.kept(rows)) if row in kept] for name, mask in masks.items()}


def cut_to(model: PreTrainedModel, keep_layers: Mapping[str, list[int]]) -> tuple[PreTrainedModel, dict[str, str]]:
    """Return a plain copy that is cut to these layers, and for each of its weights the name that it had before."""
    cut = copy.deepcopy(model)
    remove_layerdrop(cut)
    names = {id(weight): name for name, weight in cut.named_parameters()}
    prune_layers(cut, keep_layers)
    return cut.train(), {name: names[id(weight)] for name, weight in cut.named_parameters()}


def loss_of_row(output: torch.Tensor, row: int) -> torch.Tensor:
    """Return a loss of one row in which each number counts otherwise."""
    weights = torch.linspace(-1, 2, output[row].numel(), dtype=output.dtype).view_as(output[row])
    return (output[row] * weights).sum()


def gradients_of(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of each weight; zeros where there is none."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
    }
