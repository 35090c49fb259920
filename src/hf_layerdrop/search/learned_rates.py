"""Use learned drop rates (3.2.2, data driven): in a training loop without Trainer, and to choose layers afterwards.

With Trainer, ``LayerDropConfig(0.25, sampler="learned")`` is all it takes; how rates are learned stands in
`samplers/learned/`. They are in ``config.hf_layerdrop`` as ``learned_rates``, next to ``learned_shares``, the
softmax that they are made from. At inference the layers with the smallest shares are run, the same for every input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from hf_layerdrop.checkpoints.outputs import check_new_file, write_whole
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.injection.calling_trainer import learn
from hf_layerdrop.injection.inject import injected_model
from hf_layerdrop.injection.injected import find_injected
from hf_layerdrop.samplers.keep_layers import parse_keep_layers

Depth = int | Mapping[str, int]


def learn_rates(model: nn.Module, loss: torch.Tensor, *, step_ended: bool = True) -> None:
    """Show a loss to what learns the drop rates of ``model``: for training loops without Trainer, which does it itself.

    Call it after each backward pass with that pass's loss, on every rank, and call `set_step` as each step begins.

    Args:
        model: A model in which ``LayerDropConfig(rate, sampler="learned")`` is injected.
        loss: The loss, a tensor on its device.
        step_ended: False if gradients of more micro-steps are to be added before the optimizer steps; a loss is then
            expected to be divided by their number, as Trainer does.

    Raises:
        LayerDropStateError: If LayerDrop is not injected, or its rates are not learned.
    """
    injected_model(model)
    learn(model, loss, step_ended=step_ended)


def learned_keep_layers(model: nn.Module | PreTrainedConfig, depth: Depth) -> dict[str, tuple[int, ...]]:
    """Return the layers that a model of this depth keeps by its learned rates: those with the smallest shares.

    Args:
        model: A model that was trained with learned rates, or its config.
        depth: How many layers to keep; by stack for a model with several, of which those not named stay whole.

    Raises:
        LayerDropConfigError: If the model has no learned rates, or nothing was learned yet.
        KeepLayersError: If the model has no such stack, or not so many layers.
    """
    shares = learned_shares(model)
    wanted = parse_keep_layers(depth, {name: len(values) for name, values in shares.items()})
    return {name: _smallest(shares[name], len(kept), name) for name, kept in wanted.items()}


def write_learned_selection(
    model: nn.Module | PreTrainedConfig, depth: Depth, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write what `learned_keep_layers` returns as a selection file, which ``keep_layers`` reads everywhere.

    Raises:
        OutputExistsError: If the file exists and ``overwrite`` was not given.
        LayerDropConfigError: As `learned_keep_layers` does, and so for KeepLayersError.
    """
    saved = {"strategy": "learned", "keep_layers": learned_keep_layers(model, depth), **_saved(model)}
    entries = {key: saved[key] for key in ("strategy", "keep_layers", "learned_rates", "learned_shares")}
    file = Path(path)
    check_new_file(file, "selection file", overwrite)
    write_whole(file, json.dumps(entries, indent=2) + "\n")
    return file


def _saved(model: nn.Module | PreTrainedConfig) -> dict[str, Any]:
    """Return what the config of a model, or of the model in a wrapper such as DDP, says of LayerDrop."""
    if isinstance(model, nn.Module):
        model = (find_injected(model) or model).config
    return saved_provenance(model)


def learned_shares(model: nn.Module | PreTrainedConfig) -> Mapping[str, list[float]]:
    """Return the softmax behind the learned rates, one share a layer, by stack.

    Raises:
        LayerDropConfigError: If the model has no learned rates, or was cut since it learned them.
    """
    saved = _saved(model)
    shares = saved.get("learned_shares")
    if not shares:
        raise LayerDropConfigError(
            "This model has no learned drop rates; train it with LayerDropConfig(rate, sampler='learned')."
        )
    depths = [{name: len(values) for name, values in saved[key].items()} for key in ("rates", "learned_shares")]
    if depths[0] != depths[1]:
        raise LayerDropConfigError(
            f"This model was cut to {depths[0]}, but its drop rates were learned with {depths[1]}; choose the layers "
            "of the model as it was trained."
        )
    return shares


def _smallest(shares: list[float], count: int, name: str) -> tuple[int, ...]:
    if count < len(shares) and len({share for share in shares if share > 0}) == 1:
        raise LayerDropConfigError(
            f"Nothing was learned of the {name} yet, all its rates are alike; train the model, or choose its layers by "
            "another strategy."
        )
    return tuple(sorted(sorted(range(len(shares)), key=lambda layer: shares[layer])[:count]))
