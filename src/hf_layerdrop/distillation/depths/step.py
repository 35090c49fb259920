"""One step of training several depths: what runs, what each learns from, and a backward pass right after each loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_layerdrop.distillation.depths.config import TrainedDepths
from hf_layerdrop.distillation.depths.kept_predictions import ROW_KEYS
from hf_layerdrop.distillation.depths.plan import DepthPlan, SubNetwork, prepare_depths
from hf_layerdrop.distillation.outputs import hidden_loss_of, names_of_logits, soft_loss_of
from hf_layerdrop.errors import DistillationError, LayerDropStateError
from hf_layerdrop.injection.held_layers import held_layers
from hf_layerdrop.injection.inject import set_step


class DepthStep:
    """What one batch trains.

    Attributes:
        networks: The sub-networks, in the order in which they have to run: the whole model first, whose predictions
            the others learn.
        label_losses: The loss of each on the labels, by name, as far as they have run.
    """

    def __init__(self, plan: DepthPlan, batch: Mapping[str, Any], step: int, micro_step: int) -> None:
        self._plan = plan
        self.networks = plan.of_step(step, micro_step)
        self.label_losses: dict[str, torch.Tensor] = {}
        self.batch = {name: value for name, value in batch.items() if name != ROW_KEYS}
        self._keys = batch.get(ROW_KEYS)
        self._teacher = plan.teacher if plan.training.learns_from_teacher else None
        self._targets: dict[str, Any] | None = None

    @contextmanager
    def running(self, model: nn.Module, network: SubNetwork) -> Iterator[None]:
        """Let forward and backward pass inside of the ``with`` block be those of a sub-network.

        The ranks of DDP add up their gradients after the last of them.
        """
        if not model.training:
            raise LayerDropStateError("The model is in eval mode, in which no depth is trained; call model.train().")
        self._plan.check_in_force()
        is_last = network is self.networks[-1]
        quiet = nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with held_layers(self._plan.draws, network.masks, self._plan.description), quiet:
            yield

    def prepare(self, network: SubNetwork, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a frozen teacher about the batch, once; return what the model's forward takes beside the batch."""
        if self._teacher is not None and self._targets is None and not network.is_whole:
            self._targets = self._teacher.targets(batch, self._keys)
        return {"output_hidden_states": True} if self._plan.training.hidden_weight else {}

    def loss(self, network: SubNetwork, outputs: Mapping[str, Any]) -> torch.Tensor:
        """Return what a sub-network learns from: its loss on the labels, and how far it is from its teacher."""
        if outputs.get("loss") is None:
            raise DistillationError(
                f"The batch has no labels, only {', '.join(self.batch)}; give labels, which every depth is trained on."
            )
        training, own = self._plan.training, outputs["loss"]
        self.label_losses[network.name] = own.detach()
        if network.is_whole:
            self._note_targets(outputs)
            return network.weight * own
        loss = training.label_weight * own
        if self._targets is not None and training.distillation_weight:
            loss = loss + training.distillation_weight * soft_loss_of(
                outputs,
                self._targets,
                self.batch,
                shifts=self._plan.shifts,
                temperature=training.temperature,
                weight="distillation_weight",
            )
        if self._targets is not None and training.hidden_weight:
            hidden = hidden_loss_of(outputs, self._targets, self.batch, network.pairs)
            loss = loss + training.hidden_weight * hidden
        return network.weight * loss

    def _note_targets(self, outputs: Mapping[str, Any]) -> None:
        """Remember what the whole model says, without its graph, which its backward pass frees."""
        if self._teacher is not None or not self._plan.training.learns_from_teacher:
            return
        names = (
            names_of_logits(outputs, weight="distillation_weight") if self._plan.training.distillation_weight else ()
        )
        self._targets = {name: outputs[name].detach() for name in names}
        for name, states in outputs.items():
            if name.endswith("hidden_states") and isinstance(states, tuple) and self._plan.training.hidden_weight:
                self._targets[name] = tuple(state.detach() for state in states)


def backward_depths(
    model: nn.Module,
    batch: Mapping[str, Any],
    depth_training: TrainedDepths | None = None,
    *,
    step: int,
    micro_step: int = 0,
    backward: Callable[[torch.Tensor], object] = torch.Tensor.backward,
) -> dict[str, torch.Tensor]:
    """Add up the gradients of the depths that this step trains from one batch: the backward passes of one step.

    Each depth runs forward and right away backward, so that one graph is alive at a time; afterwards step the
    optimizer. Layers that none of the depths runs have no gradient. LayerDrop is injected at rate 0 if it is not; a
    model that is wrapped by DDP or FSDP has to be prepared before, by `prepare_depths`.

    Args:
        model: The model in train mode, or DDP around it.
        batch: Its inputs, with labels.
        depth_training: The settings, or a list of depths. The same object in each step is looked at once. None takes
            the depths of ``LayerDropConfig.for_depths``.
        step: The optimizer's step, from which it follows which depths are trained.
        micro_step: Which of the batches whose gradients one step accumulates this is.
        backward: What is done with each loss: ``accelerator.backward``, or a function that scales it first.

    Returns:
        The loss of each depth on its labels by name (``loss_depth_6``), and their weighted sum with all that is
        learned besides (``loss``); tensors on the model's device.

    Raises:
        DistillationError: If a batch has no labels, or the model no logits.
        LayerDropError: What `prepare_depths` raises.
    """
    plan = prepare_depths(model, depth_training)
    set_step(model, step, micro_step)
    this = DepthStep(plan, batch, step, micro_step)
    total: list[torch.Tensor] = []
    for network in this.networks:
        with this.running(model, network):
            more = this.prepare(network, this.batch)
            loss = this.loss(network, model(**this.batch, **more))
            backward(loss)
        total.append(loss.detach())
    losses = {f"loss_{name}": loss for name, loss in this.label_losses.items()}
    return {"loss": torch.stack(total).sum(), **losses}
