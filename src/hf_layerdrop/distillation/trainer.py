"""A Trainer whose model learns from a teacher: DistilBERT's three losses, for any head that predicts classes or tokens.

Nothing of Trainer's loop is replaced: the loss of a training step is another, and evaluation is the task's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.checkpoints.provenance import saved_provenance
from hf_layerdrop.checkpoints.recommended_file import recommended_of
from hf_layerdrop.distillation.budget import CountsLayerForwards, LayerForwardCounter, layers_since, layers_so_far
from hf_layerdrop.distillation.config import DistillationConfig
from hf_layerdrop.distillation.outputs import hidden_loss_of, own_loss, share_of_labels, soft_loss_of
from hf_layerdrop.distillation.positions import shifts_labels
from hf_layerdrop.distillation.student import check_fit, match_states
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.evaluation.model_or_trainer import quiet_eval
from hf_layerdrop.evaluation.trainer_source import evaluates_as_trainer
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers

if TYPE_CHECKING:
    from transformers.trainer_utils import TrainOutput


class DistillationMixin(CountsLayerForwards):
    """Put in front of a Trainer: its model, the student, learns from ``teacher`` too.

    The teacher is put in eval mode, moved to the student's device and prepared for the run's precision; each rank
    holds all of it. It takes no gradients, is no part of checkpoints, and does not know of the optimizer.

    The three losses are means over a batch: soft targets where the hard loss counts (every row of a classifier, every
    token that has a label), hidden states over real tokens. Where Trainer accumulates gradients by the number of
    labels, each batch weighs as much as its share of them, so that padding and the size of the last batch change
    nothing.

    Attributes:
        teacher: The prepared teacher.
        distillation: The settings.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        distillation: DistillationConfig | None = None,
        keep_layers: KeepLayers | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the Trainer.

        Args:
            *args: Trainer's.
            teacher: The model to learn from.
            distillation: Weights and temperature.
            keep_layers: The teacher's layers that the student began with; left out, what `student_of` noted.
            **kwargs: Trainer's.

        Raises:
            DistillationError: If teacher and student do not fit, or an argument of Trainer asks for another loss.
        """
        super().__init__(*args, **kwargs)
        trainer: Any = self
        _check_arguments(trainer)
        self.distillation = distillation or DistillationConfig()
        student = trainer.accelerator.unwrap_model(trainer.model)
        check_fit(student, teacher)
        self._depths, self._teacher_depth = depths_of(student), sum(depths_of(teacher).values())
        self._pairs = {}
        if self.distillation.hidden_weight:
            recommended = partial(recommended_of, teacher)
            depths = depths_of(teacher)
            kept = None if keep_layers is None else parse_keep_layers(keep_layers, depths, recommended=recommended)
            self._pairs = match_states(student, teacher, kept)
        self._shifts = shifts_labels(student)
        trainer.add_callback(LayerForwardCounter())
        self._parts: dict[str, torch.Tensor] = {}
        if saved := saved_provenance(student.config):
            saved["distilled_with"] = self.distillation.to_dict()
        self.teacher = trainer.accelerator.prepare_model(teacher.eval(), device_placement=True, evaluation_mode=True)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does; the teacher fills no caches meanwhile."""
        with quiet_eval(self.teacher):
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the weighted sum of the losses in training, and the model's own loss in evaluation."""
        if not model.training:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        before = layers_so_far(model)
        outputs = model(**inputs, output_hidden_states=bool(self._pairs))
        self.layer_forward_counter.student += layers_since(model, before, self._depths)
        loss = self._weigh(self._losses(outputs, self._targets(inputs), inputs))
        loss = loss * share_of_labels(self, inputs.get("labels"), num_items_in_batch, shifts=self._shifts)
        return (loss, outputs) if return_outputs else loss

    @evaluates_as_trainer
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the three losses, without their weights, beside their sum."""
        if "loss" in logs and self._parts:
            batches = self._parts.pop("batches")
            logs |= {name: float(total / batches) for name, total in self._parts.items()}
            self._parts = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _targets(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the teacher's outputs, if anything is learned from them."""
        if not (self.distillation.soft_weight or self._pairs):
            return {}
        self.layer_forward_counter.teacher += self._teacher_depth
        with torch.no_grad():
            return self.teacher(**inputs, output_hidden_states=bool(self._pairs))

    def _losses(
        self, outputs: Mapping[str, Any], targets: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Return the losses that have a weight, by its name without ``_weight``."""
        settings, losses = self.distillation, {}
        if settings.soft_weight:
            temperature = settings.temperature
            losses["soft"] = soft_loss_of(outputs, targets, inputs, shifts=self._shifts, temperature=temperature)
        if settings.hidden_weight:
            losses["hidden"] = hidden_loss_of(outputs, targets, inputs, self._pairs)
        if settings.hard_weight:
            losses["hard"] = own_loss(outputs, inputs)
        return losses

    def _weigh(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        for name, loss in losses.items():
            self._note(f"{name}_loss", loss.detach())
        self._note("batches", torch.ones(()))
        return torch.stack([loss * getattr(self.distillation, f"{name}_weight") for name, loss in losses.items()]).sum()

    def _note(self, name: str, value: torch.Tensor) -> None:
        """Add up what will be logged, on the device, which is not waited for."""
        self._parts[name] = self._parts[name] + value if name in self._parts else value


class DistillationTrainer(DistillationMixin, Trainer):
    """`Trainer` with a teacher; see `DistillationMixin`."""


class Seq2SeqDistillationTrainer(DistillationMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with a teacher, which is forced on the labels like the student; see `DistillationMixin`."""


def _check_arguments(trainer: Any) -> None:
    if trainer.label_smoother is not None:
        raise DistillationError(
            f"label_smoothing_factor is {trainer.args.label_smoothing_factor}, but the teacher's soft targets take its "
            "place; leave it at 0."
        )
    if trainer.compute_loss_func is not None:
        raise DistillationError("compute_loss_func would replace the losses of distillation; leave it out.")
    if trainer.args.n_gpu > 1:
        raise DistillationError("Distillation does not run under DataParallel; start it with accelerate launch.")
