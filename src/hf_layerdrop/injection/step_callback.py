"""Follow Trainer's steps, so that the draws need no flag, no callback and no state of their own to be resumed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.call_stack import callers
from hf_layerdrop.injection.state import STATE_ATTRIBUTE, LayerDropState, find_injected
from hf_layerdrop.injection.trainer_steps import calling_trainer, learn


class LayerDropStepCallback(TrainerCallback, ExportableState):
    """Hand Trainer's step, micro-step and seed to the draws of the model that it trains, if there are any.

    Where drop rates are learned, also hand them the loss, and keep what was learned in ``trainer_state.json``: this
    file ends a checkpoint, so that a checkpoint is never complete without it.
    """

    def __init__(self) -> None:
        self._draws: LayerDropState | None = None

    def state(self) -> dict[str, Any]:
        """Return what Trainer saves of this callback in each checkpoint."""
        attributes: dict[str, Any] = {}
        if self._draws is not None:
            attributes["depths"] = self._draws.depths
            if self._draws.learner is not None:
                attributes["learned"] = self._draws.learner.state_dict()
        return {"args": {}, "attributes": attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the seed of the training arguments where the config has none, write it down, and resume learning.

        Raises:
            LayerDropStateError: If the checkpoint is of a model with other depths: Trainer loads the layers that fit.
        """
        # A checkpoint that was trained without this callback does not know its name, under which Trainer saves.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        attributes = (saved[-1] if isinstance(saved, list) else saved)["attributes"]
        if (injected := find_injected(model)) is None:
            return
        draws = self._draws = _state_of(injected)
        if state.global_step:
            _check_depths(attributes.get("depths", draws.depths), draws.depths)
            if learned := attributes.get("learned"):
                draws.load_learned(learned)
        if draws.config.seed is None:
            draws.set_seed(args.seed)
        if saved := getattr(injected.config, "hf_layerdrop", None):
            saved["seed"] = draws.seed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin the step that the trainer begins: after a resume, the one that the uninterrupted run would begin."""
        if (injected := find_injected(model)) is not None:
            _state_of(injected).begin_step(state.global_step)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin the next forward of those whose gradients one step accumulates."""
        if (injected := find_injected(model)) is not None:
            draws = _state_of(injected)
            if draws.learner is not None:
                learn(injected, _loss_of_trainer(), step_ended=False)
            draws.begin_step(state.global_step, draws.micro_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Log the rate in use and the mean number of layers that ran, each time that the loss is logged."""
        injected = find_injected(model)
        if injected is None:
            return
        draws = _state_of(injected)
        if draws.learner is not None:
            learn(injected, _loss_of_trainer())
        if not control.should_log:
            return
        if draws.drops or draws.config.mean_rate:
            calling_trainer().log(draws.take_log())
            control.should_log = True  # logging takes the wish to log as granted, but the loss is still to come


def _loss_of_trainer() -> torch.Tensor:
    """Return the loss that Trainer has just taken gradients of: whatever computed it, it stands in this variable."""
    name = compat.STEP_LOSS.name
    for frame in callers():
        if torch.is_tensor(loss := frame.f_locals.get(name)):
            return loss
    raise LayerDropStateError(
        "sampler='learned' does not find the loss of this Trainer, which has a training loop of its own; use "
        "another sampler, or a loop that calls hf_layerdrop.learn_rates."
    )


def _check_depths(saved: dict[str, int], depths: dict[str, int]) -> None:
    if saved != depths:
        raise LayerDropStateError(
            f"The checkpoint that this run goes on with is of stacks {saved}, but the model has {depths}; continue "
            "with the model that the run began with."
        )


def _state_of(injected: nn.Module) -> LayerDropState:
    return getattr(injected, STATE_ATTRIBUTE)


def register_with_trainer() -> None:
    """Add `LayerDropStepCallback` to the callbacks that every Trainer starts with.

    Trainer has no hook that a model could use to learn the step, and asking users for a callback that they can forget
    would make a resumed run draw other layers than the uninterrupted one without a word. For models without LayerDrop
    it does nothing.
    """
    from transformers import trainer

    if LayerDropStepCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(LayerDropStepCallback)
