"""The model that a run trains, and what trains it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.distillation.depths.of_tasks import depth_trainer_for
from hf_layerdrop.distillation.model_for_arm import model_for_arm
from hf_layerdrop.distillation.trainer import DistillationMixin
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.training.trainers import GeneratingTrainer, TaskTrainer, build_trainer
from reproduction.budget import depths_of_a_step, layerdrop_of
from reproduction.errors import ReproductionError
from reproduction.plan import Run
from reproduction.shared_inputs import SharedInputs
from reproduction.study import LAYERS, WHOLE

TRAINED_TOGETHER = "together"
DRAWN = ("depths", TRAINED_TOGETHER)  # starts that are a whole standard model, and differ in what trains it


class DistillingTaskTrainer(DistillationMixin, TaskTrainer):
    """A `TaskTrainer` with a teacher."""


class DistillingGeneratingTrainer(DistillationMixin, GeneratingTrainer):
    """A `GeneratingTrainer` with a teacher."""


def model_of(run: Run, shared: SharedInputs, source: Path | None) -> PreTrainedModel:
    """Return the model that a run trains; one that begins with another's is cut before, if it is to be small."""
    arm, task = run.arm, shared.data.task
    small = arm.start in ("scratch", "distill")
    begin = source or shared.checkpoint
    model = model_for_arm(
        "standard" if arm.start in DRAWN else arm.start,
        str(begin) if begin is not None else shared.config,
        head=task.head,
        depth=run.size.cuts[arm.cut] if small else None,
        rate=arm.rate,
        structure=arm.structure,
        seed=run.seed,
        **(task.kind.settings(task) if begin is not None else {}),
    )
    if arm.cut == WHOLE:
        _check_layers(run, model)
    if arm.start == "depths" or arm.drop:
        inject_layerdrop(model, layerdrop_of(run.size, arm, run.seed))
    if arm.cut != WHOLE and not small:
        prune_layers(model, run.size.cuts[arm.cut])
        inject_layerdrop(model, 0.0)  # a cut takes LayerDrop out; at rate 0 it counts the layers that run
    if run.size.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if arm.dropout:
        add_dropout(model, run.size.dropout_of, arm.dropout)
    return model


def _check_layers(run: Run, model: PreTrainedModel) -> None:
    """A budget in layer forwards needs the right number of layers."""
    if run.arm.budget == LAYERS and depths_of(model) != dict(run.size.layers):
        raise ReproductionError(
            f"Study {run.study.name} says layers: {dict(run.size.layers)}, but the model has {depths_of(model)}; "
            "correct the study."
        )


def add_dropout(model: nn.Module, names: tuple[str, ...], share: float) -> None:
    """Let dropout fall on what the modules of these names give: on residual branches, of any family alike.

    Raises:
        ReproductionError: If the model has none of one of these names.
    """
    for name in names:
        found = [module for path, module in model.named_modules() if path.rpartition(".")[-1] == name]
        if not found:
            raise ReproductionError(
                f"The model has no module {name!r}, on which dropout is to fall; correct dropout_of."
            )
        for module in found:
            module.register_forward_hook(partial(_drop, share))


def _drop(share: float, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(output, share, module.training)


def trainer_of(
    run: Run,
    shared: SharedInputs,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    source: Path | None,
    callbacks: list[Any],
) -> Trainer:
    """Return what trains the model of a run."""
    task = shared.data.task
    more: dict[str, Any] = {}
    if run.arm.start == "distill":
        more["trainer_class"] = DistillingGeneratingTrainer if task.generation else DistillingTaskTrainer
        more["teacher"] = task.model_class.from_pretrained(str(source), layerdrop=0.0)
    elif run.arm.start == TRAINED_TOGETHER:
        settings = {"seed": run.seed, **run.arm.together}
        more["trainer_class"] = depth_trainer_for(task, depths_of_a_step(run.size), **settings)
    return build_trainer(shared.data, model, shared.tokenizer, arguments, callbacks=callbacks, **more)
