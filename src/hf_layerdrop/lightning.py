"""Follow the steps of PyTorch Lightning's Trainer. This module alone needs ``lightning`` to be installed."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hf_layerdrop.errors import LayerDropStateError
from hf_layerdrop.injection import injected_model, layerdrop_state, set_step


class LayerDropStepCallback(Callback):
    """Tell the draws which step begins, so that a resumed run drops what the uninterrupted one would have dropped.

    The step is Lightning's own, which its checkpoints hold; there is no further state. Rates that are learned need a
    loop that shows the losses (`hf_layerdrop.learned.learn_rates`).
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so before the first step if nothing would ever be dropped.

        Raises:
            LayerDropStateError: If LayerDrop is not injected, or the model is in evaluation mode, in which
                ``from_pretrained`` returns it and Lightning leaves it.
        """
        model = injected_model(pl_module)
        if layerdrop_state(model).drops and not model.training:
            raise LayerDropStateError(
                f"The {type(model).__name__} is in evaluation mode, in which nothing is dropped, and Lightning leaves "
                "it there; call its train() when the LightningModule is built."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the step, or the next of the batches whose gradients it accumulates."""
        set_step(pl_module, trainer.global_step, batch_idx % trainer.accumulate_grad_batches)
