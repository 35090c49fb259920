"""Follow Trainer's steps, so that the draws need no flag, no callback and no state of their own to be resumed."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_layerdrop import compat
from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.call_stack import callers
from hf_layerdrop.injection.calling_trainer import calling_trainer, learn, log_of
from hf_layerdrop.injection.injected import injected_models, placed_states
from hf_layerdrop.injection.open_blocks import is_in_block


class LayerDropStepCallback(TrainerCallback, ExportableState):
    """Hand Trainer's step, micro-step and seed to the draws of the models inside of the one that it trains, if any.

    A schedule that a `LayerDropConfig` names is followed here, too.

    Each further ``train()`` goes on with the step at which the one before it ended, so that it draws other layers than
    that did. What a resumed run cannot know otherwise is kept in ``trainer_state.json``: the step that its ``train()``
    began with, rates that were set since LayerDrop was injected, the version of the sampler, and, where drop rates are
    learned, what was learned. This file ends a checkpoint, so that a checkpoint is never complete without it.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._first_step = 0

    def state(self) -> dict[str, Any]:
        """Return what Trainer saves of this callback in each checkpoint: that of each model under its path."""
        saved = {path: state.to_resume() for path, state in self._states.items()}
        if not saved:
            return {"args": {}, "attributes": {}}
        attributes = next(iter(saved.values())) if len(saved) == 1 else {"models": saved}
        return {"args": {}, "attributes": {**attributes, "first_step": self._first_step}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the seed of the training arguments where the config has none, write it down, and resume.

        Raises:
            LayerDropStateError: If the checkpoint is of a model with other depths: Trainer loads the layers that fit.
        """
        # A checkpoint that was trained without this callback does not know its name, under which Trainer saves.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        each = [one["attributes"] for one in (saved if isinstance(saved, list) else [saved])]
        attributes: dict[str, Any] = next(filter(None, each), {})
        # Of several, which users may have added, one acts: the steps would be counted twice. Within a block of
        # sub_network, which drops nothing, none does.
        callbacks = calling_trainer().callback_handler.callbacks
        acts = next(one for one in callbacks if isinstance(one, LayerDropStepCallback)) is self
        self._states = placed_states(model) if acts and not is_in_block(model) else {}
        if not self._states:
            return
        # In front of those that report: Trainer puts what it has restored from a checkpoint at the end.
        callbacks.remove(self)
        callbacks.insert(0, self)
        self._first_step = max((draws.next_step for draws in self._states.values()), default=0)
        if state.global_step:
            self._first_step = attributes.get("first_step", 0)
            for path, draws in self._states.items():
                draws.resume(attributes.get("models", {}).get(path, {}) if path else attributes)
        for draws, injected in zip(self._states.values(), injected_models(model).values(), strict=True):
            if draws.config.seed is None:
                draws.set_seed(args.seed)
            if saved := getattr(injected.config, "hf_layerdrop", None):
                saved |= {"seed": draws.seed, "sampler_version": draws.sampler_version, "rates": draws.rates_to_save()}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin the step that the trainer begins: after a resume, the one that the uninterrupted run would begin."""
        for draws in self._states.values():
            draws.begin_step(self._first_step + state.global_step)
            draws.follow_schedule(state.global_step / max(state.max_steps, 1))

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin the next forward of those whose gradients one step accumulates."""
        states = self._states.values()
        if any(draws.learner is not None for draws in states):
            learn(model, _loss_of_trainer(), step_ended=False)
        for draws in states:
            draws.begin_step(self._first_step + state.global_step, draws.micro_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Show the loss of the step to what learns the rates."""
        if any(draws.learner is not None for draws in self._states.values()):
            learn(model, _loss_of_trainer())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the rate in use and the mean number of layers that ran to the record of a training loss.

        Trainer has written the record into its history by now, but hands the same numbers to the callbacks that come
        after, which report them. A record of one's own would empty what a Trainer such as TRL's collects for its next.
        """
        if logs is None or "loss" not in logs:
            return
        states = self._states
        if any(draws.drops or draws.config.mean_rate for draws in states.values()):
            found = log_of(states)
            logs.update(found)
            if state.log_history and "loss" in state.log_history[-1]:
                state.log_history[-1].update(found)


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


def register_with_trainer() -> None:
    """Add `LayerDropStepCallback` to the callbacks that every Trainer starts with, while there are injected models.

    Trainer has no hook that a model could use to learn the step, and asking users for a callback that they can forget
    would make a resumed run draw other layers than the uninterrupted one without a word. For models without LayerDrop
    it does nothing.
    """
    from transformers import trainer

    if LayerDropStepCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(LayerDropStepCallback)


def unregister_from_trainer() -> None:
    """Undo `register_with_trainer`, when the last injected model is gone or no longer injected."""
    trainer = sys.modules.get("transformers.trainer")
    if trainer is not None and LayerDropStepCallback in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.remove(LayerDropStepCallback)
