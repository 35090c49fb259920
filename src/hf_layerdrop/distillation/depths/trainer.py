"""A Trainer that trains several depths of its model in each step; its loop, and what a step does, stay Trainer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer

from hf_layerdrop.distillation.budget import CountsLayerForwards, LayerForwardCounter
from hf_layerdrop.distillation.depths.config import TrainedDepths
from hf_layerdrop.distillation.depths.kept_predictions import ROW_KEYS, WithRowKeys
from hf_layerdrop.distillation.depths.plan import SubNetwork, prepare_depths
from hf_layerdrop.distillation.depths.step import DepthStep
from hf_layerdrop.distillation.outputs import share_of_labels
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.evaluation.trainer_loop import replaced
from hf_layerdrop.evaluation.trainer_source import evaluates_as_trainer
from hf_layerdrop.injection.step_callback import LayerDropStepCallback
from hf_layerdrop.training.callbacks import LayerDropScheduleCallback

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers.trainer_utils import TrainOutput


class DepthTrainerMixin(CountsLayerForwards):
    """Put in front of a Trainer: each of its steps trains several depths of the model, from one batch.

    Every depth runs forward and right away backward by Trainer's own ``training_step``, so that accumulation, mixed
    precision, checkpointing, DDP and FSDP are as ever, and one graph is alive at a time. Which depths a step trains
    follows from the seed, the step and the micro-step, so that ranks agree and a resumed run goes on. The log has the
    loss of each depth on its labels, ``loss_depth_6``, averaged over the batches in which it was trained.

    Attributes:
        depth_plan: The sub-networks that are trained, and the settings.
    """

    def __init__(self, *args: Any, depth_training: TrainedDepths | None = None, **kwargs: Any) -> None:
        """Build the Trainer, and inject LayerDrop at rate 0 if it is not.

        Args:
            *args: Trainer's.
            depth_training: The settings (`DepthTraining`), or a list of depths. None takes the depths of
                ``LayerDropConfig.for_depths``, with which the model was injected.
            **kwargs: Trainer's.

        Raises:
            DistillationError: If an argument of Trainer asks for another loss, or for what takes a step a depth.
            LayerDropError: What `prepare_depths` raises.
        """
        super().__init__(*args, **kwargs)
        trainer: Any = self
        _check_arguments(trainer)
        self.depth_plan = prepare_depths(trainer.accelerator.unwrap_model(trainer.model), depth_training)
        trainer.add_callback(LayerForwardCounter())
        if not any(isinstance(callback, LayerDropStepCallback) for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(LayerDropStepCallback())
        self._step: DepthStep | None = None
        self._network: SubNetwork | None = None
        self._sums: dict[str, tuple[torch.Tensor, int]] = {}
        if (teacher := self.depth_plan.teacher) is not None:
            teacher.model = trainer.accelerator.prepare_model(
                teacher.model, device_placement=True, evaluation_mode=True
            )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does; what a frozen teacher predicted is written at the end.

        Raises:
            DistillationError: If a callback is to move rates, of which none is drawn.
        """
        _check_callbacks(self)
        teacher = self.depth_plan.teacher
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            if teacher is not None and teacher.kept is not None:
                teacher.kept.save()

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return Trainer's, whose batches also say what their rows are known by, where predictions are kept."""
        trainer: Any = self
        teacher = self.depth_plan.teacher
        if teacher is None or teacher.kept is None:
            return super().get_train_dataloader()  # type: ignore[misc]
        with replaced(trainer, data_collator=WithRowKeys(trainer.data_collator)):
            return super().get_train_dataloader()  # type: ignore[misc]

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Take a training step of Trainer's for each depth, and return the sum of their losses."""
        model.train()
        counter, teacher = self.layer_forward_counter, self.depth_plan.teacher
        asked = teacher.forwards if teacher is not None else 0
        this = DepthStep(self.depth_plan, inputs, *self.depth_plan.place)
        losses = []
        try:
            for network in this.networks:
                self._step, self._network = this, network
                with this.running(model, network):
                    losses.append(super().training_step(model, dict(this.batch), num_items_in_batch))  # type: ignore[misc]
                counter.student += network.layers
        finally:
            self._step = self._network = None
        if teacher is not None:
            counter.teacher += teacher.layers * (teacher.forwards - asked)
        for name, loss in this.label_losses.items():
            total, batches = self._sums.get(name, (torch.zeros_like(loss), 0))
            self._sums[name] = (total + loss, batches + 1)
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return what the depth whose turn it is learns from, and outside of a training step the model's own loss."""
        if self._step is None or self._network is None:
            inputs = {name: value for name, value in inputs.items() if name != ROW_KEYS}
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        outputs = model(**inputs, **self._step.prepare(self._network, inputs))
        share = share_of_labels(self, inputs.get("labels"), num_items_in_batch, shifts=self.depth_plan.shifts)
        loss = self._step.loss(self._network, outputs) * share
        return (loss, outputs) if return_outputs else loss

    @evaluates_as_trainer
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the loss of each depth on the labels beside their weighted sum."""
        if "loss" in logs and self._sums:
            trainer: Any = self
            means = torch.stack([(total / batches).float() for total, batches in self._sums.values()])
            means = trainer.accelerator.gather(means[None]).mean(0)
            logs |= dict(zip([f"loss_{name}" for name in self._sums], means.tolist(), strict=True))
            self._sums = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class DepthTrainer(DepthTrainerMixin, Trainer):
    """`Trainer` for several depths; see `DepthTrainerMixin`."""


class Seq2SeqDepthTrainer(DepthTrainerMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer` for several depths; see `DepthTrainerMixin`."""


def _check_callbacks(trainer: Any) -> None:
    if any(isinstance(callback, LayerDropScheduleCallback) for callback in trainer.callback_handler.callbacks):
        raise DistillationError(
            "LayerDropScheduleCallback moves drop rates, but a DepthTrainer draws no layers; leave the callback out."
        )


def _check_arguments(trainer: Any) -> None:
    if trainer.label_smoother is not None:
        raise DistillationError(
            f"label_smoothing_factor is {trainer.args.label_smoothing_factor}, but every depth is trained on the "
            "model's own loss; leave it at 0."
        )
    if trainer.compute_loss_func is not None:
        raise DistillationError("compute_loss_func would replace the losses of the depths; leave it out.")
    if trainer.model_init is not None:
        raise DistillationError("model_init builds another model for the training; give the model itself, as model=.")
    if trainer.args.n_gpu > 1:
        raise DistillationError("Several depths are not trained under DataParallel; start it with accelerate launch.")
    if trainer.is_deepspeed_enabled:
        raise DistillationError(
            "DeepSpeed ends a step with each backward pass, and every depth has one; use DDP or FSDP to train several "
            "depths."
        )
