"""The models of an experiment's arms: what each begins its training with, on the same data and in the same code."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from hf_layerdrop.architectures.stacks import find_stacks
from hf_layerdrop.checkpoints.model_class import find_config
from hf_layerdrop.distillation.student import student_of
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.models import auto as modeling
from hf_layerdrop.pruning.prune import pruned_config
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers

ARMS = ("layerdrop", "depth", "standard", "scratch", "distill")


def model_for_arm(
    name: str,
    checkpoint_or_config: str | os.PathLike[str] | PreTrainedConfig,
    *,
    head: str,
    depth: KeepLayers | None = None,
    rate: float = 0.2,
    structure: str | Sequence[str] = "layer",
    seed: int = 0,
    **settings: Any,
) -> PreTrainedModel:
    """Return the model that an arm of the paper's comparisons trains.

    ``layerdrop`` drops layers at a rate, ``depth`` draws evenly spread sets at that rate, and ``standard`` drops
    nothing: all three are trained whole and cut afterwards (4.3). ``scratch`` has random weights at the small depth,
    and ``distill`` the teacher's layers, to be trained with a `DistillationTrainer`.

    Args:
        name: One of `ARMS`.
        checkpoint_or_config: A checkpoint to begin with, or a config, whose weights are then random. For ``distill``
            the trained teacher; of a checkpoint, ``scratch`` takes the config alone.
        head: The head, as in ``AutoLayerDropModelFor<head>``.
        depth: The small depth, in any form that ``keep_layers`` takes; arms that are trained whole do not use it.
        rate: Drop rate of ``layerdrop`` and ``depth``.
        structure: What ``layerdrop`` drops, as `LayerDropConfig` takes it (3.2.1).
        seed: Seed of random weights, and of the draws.
        **settings: Passed to ``from_pretrained``, or set in the config.

    Raises:
        LayerDropConfigError: If there is no such arm, or it needs a depth or a checkpoint.
        KeepLayersError: If the depth does not fit.
    """
    if name not in ARMS:
        raise LayerDropConfigError(f"The arm is {name!r}; choose one of {', '.join(ARMS)}.")
    if depth is None and name in ("scratch", "distill"):
        raise LayerDropConfigError(f"The arm {name!r} is trained at a small depth; give depth=, such as 3.")
    set_seed(seed)
    auto = getattr(modeling, f"AutoLayerDropModelFor{head}")
    if name == "distill":
        return student_of(_teacher(auto, checkpoint_or_config, settings), depth)
    if name == "scratch":
        config = _config(checkpoint_or_config, settings)
        return auto.from_config(_shallow(config, auto, depth), layerdrop=0.0)
    drop = LayerDropConfig(
        0.0 if name == "standard" else rate,
        sampler="depth" if name == "depth" else "bernoulli",
        structure="layer" if name == "standard" else structure,
        seed=seed,
    )
    return _whole(auto, checkpoint_or_config, settings, drop)


def _whole(auto: Any, source: Any, settings: dict[str, Any], drop: LayerDropConfig) -> PreTrainedModel:
    if isinstance(source, PreTrainedConfig):
        return auto.from_config(_config(source, settings), layerdrop=drop)
    return auto.from_pretrained(source, layerdrop=drop, **settings)


def _teacher(auto: Any, source: Any, settings: dict[str, Any]) -> PreTrainedModel:
    if isinstance(source, PreTrainedConfig):
        raise LayerDropConfigError("The arm 'distill' got a config, but it learns from a teacher: give its checkpoint.")
    return auto.from_pretrained(source, layerdrop=0.0, **settings)


def _config(source: Any, settings: dict[str, Any]) -> PreTrainedConfig:
    config = copy.deepcopy(source) if isinstance(source, PreTrainedConfig) else find_config(source, {})
    config.__dict__.pop("hf_layerdrop", None)  # what was done to a checkpoint is not true of random weights
    config.update(settings)
    return config


def _shallow(config: PreTrainedConfig, auto: Any, depth: KeepLayers | None) -> PreTrainedConfig:
    """Cut a config to a depth; the stacks are those of a model without weights."""
    with torch.device("meta"):
        stacks = find_stacks(auto.from_config(config, layerdrop=0.0))
    kept = parse_keep_layers(depth, {name: stack.depth for name, stack in stacks.items()})
    pruned_config(config, stacks, kept)
    return config
