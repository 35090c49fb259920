"""Follow the steps of PyTorch Lightning's Trainer. This module alone needs ``lightning`` to be installed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection.calling_trainer import learn
from hf_layerdrop.injection.inject import injected_model, set_step, write_down
from hf_layerdrop.injection.injected import injected_models, states_of

CHECKPOINT_KEY = "hf_layerdrop"
_LEARNED = "scorers"  # what the state of a learner has


class LightningStepCallback(Callback):
    """Tell the draws which step begins, so that a resumed run drops what the uninterrupted one would have dropped.

    The step is Lightning's own, which its checkpoints hold. What a resumed run cannot know otherwise stands in them,
    too: rates that were set, the version of the sampler, and what was learned. Where drop rates are learned, they are
    shown the loss that ``training_step`` returns. A schedule that a `LayerDropConfig` names is followed where the
    number of steps is known.
    """

    def __init__(self) -> None:
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so before the first step if nothing would ever be dropped.

        Raises:
            LayerDropStateError: If LayerDrop is not injected, or the model is in evaluation mode, in which
                ``from_pretrained`` returns it and Lightning leaves it.
        """
        injected_model(pl_module)
        for model, state in zip(injected_models(pl_module).values(), states_of(pl_module).values(), strict=True):
            if state.drops and not model.training and any(weight.requires_grad for weight in model.parameters()):
                raise LayerDropStateError(
                    f"The {type(model).__name__} is in evaluation mode, in which nothing is dropped, and Lightning "
                    "leaves it there; call its train() when the LightningModule is built."
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Begin the step, or the next of the batches whose gradients it accumulates."""
        set_step(pl_module, trainer.global_step, batch_idx % trainer.accumulate_grad_batches)
        self._step = trainer.global_step
        steps = trainer.estimated_stepping_batches
        if 0 < steps < math.inf:
            for state in states_of(pl_module).values():
                state.follow_schedule(min(trainer.global_step / steps, 1.0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Learn from the loss, if the drop rates are learned."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None or all(state.learner is None for state in states_of(pl_module).values()):
            return
        # Lightning divides by the batches of a whole step, and the last step of an epoch may have fewer.
        batches = trainer.accumulate_grad_batches
        here = min(batches, trainer.num_training_batches - (batch_idx - batch_idx % batches))
        learn(pl_module, loss * batches / here, step_ended=trainer.global_step > self._step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the step does not say, of each model under its path."""
        checkpoint[CHECKPOINT_KEY] = {path: state.to_resume() for path, state in states_of(pl_module).items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from it, if the checkpoint is of a run with LayerDrop.

        Raises:
            LayerDropStateError: If it is of a model with other depths, or of other injected models, or drew with a
                later version of the samplers.
        """
        models, saved = injected_models(pl_module), checkpoint.get(CHECKPOINT_KEY, {})
        if _LEARNED in saved:  # of an older version, which kept what was learned alone
            saved = {"": saved}
        for path, state in states_of(pl_module).items() if saved else ():
            if path not in saved:
                raise LayerDropStateError(
                    f"The checkpoint knows injected models by the paths {[*saved]}, and none by {path!r}, as the "
                    "module has one; go on with the module that the run began with."
                )
            entry = saved[path]
            state.resume({"learned": entry} if _LEARNED in entry else entry)
            write_down(models[path])
