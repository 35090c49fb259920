"""The Trainer of a task that trains a list of depths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import Trainer

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.distillation.depths.config import DepthTraining
from hf_layerdrop.distillation.depths.trainer import DepthTrainerMixin
from hf_layerdrop.samplers.keep_layers import KeepLayers
from hf_layerdrop.tasks.task import Task
from hf_layerdrop.training.trainers import GeneratingTrainer, TaskTrainer


class DepthTaskTrainer(DepthTrainerMixin, TaskTrainer):
    """A Trainer for tasks whose predictions are scored against whole rows."""


class GeneratingDepthTrainer(DepthTrainerMixin, GeneratingTrainer):
    """A Trainer for tasks that are scored on generated text."""


def depth_trainer_for(
    task: Task, depths: Sequence[KeepLayers] | Callable[[Mapping[str, int]], Sequence[KeepLayers]], **settings: Any
) -> Callable[..., Trainer]:
    """Return what builds the Trainer of a task that trains these depths, or those that a function chooses of stacks.

    ``settings`` are those of `DepthTraining`.
    """
    usual = DepthTaskTrainer if task.generation is None else GeneratingDepthTrainer
    return partial(_build, usual, depths, settings)


def _build(trainer_class: type[Any], depths: Any, settings: Mapping[str, Any], *, model: Any, **given: Any) -> Trainer:
    chosen = depths(depths_of(model)) if callable(depths) else depths
    return trainer_class(model=model, depth_training=DepthTraining(chosen, **settings), **given)
