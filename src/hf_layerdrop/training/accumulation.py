"""Gradients of several batches or ranks, added up to those of one large batch.

Trainer counts the labels of all batches and ranks of a step, hands that count to every model whose ``forward`` takes
``**kwargs``, and believes that the loss is divided by it. Many heads ignore it and return the mean of their batch
(huggingface/transformers#47688; BERT, RoBERTa and BART are among them): their gradients grow with the number of
accumulated batches and with the number of ranks. Here the model is asked, and its loss gets the weight that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_layerdrop import compat


class LossScaling:
    """Mixin of a Trainer: weigh the loss of a head that ignores the count of labels by its batch's share of them.

    The model is asked once, with its first batch, and only where it matters: with several batches a step, or several
    ranks. It is asked in evaluation mode, so that neither dropout nor LayerDrop draws anything.
    """

    _ignores: bool | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss, such that those of a step add up to the mean over all its labels."""
        share: torch.Tensor | float = 1.0
        if num_items_in_batch is not None and self._may_be_wrong():
            if self._ignores is None:
                self._ignores = self._ignores_count(inputs, num_items_in_batch)
            if self._ignores:
                share = self._labels_in(inputs["labels"]) / num_items_in_batch
        loss, outputs = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        return (loss * share, outputs) if return_outputs else loss * share

    def _may_be_wrong(self) -> bool:
        trainer: Any = self
        if trainer.compute_loss_func is not None or trainer.label_smoother is not None:  # they take the count
            return False
        return trainer.args.n_gpu <= 1 and (trainer.args.gradient_accumulation_steps > 1 or trainer.args.world_size > 1)

    def _ignores_count(self, inputs: Mapping[str, Any], items: torch.Tensor | int) -> bool:
        """Tell whether twice the count leaves the loss as it is."""
        trainer: Any = self
        was_training = trainer.model.training
        trainer.model.eval()
        try:
            with torch.no_grad():
                loss, other = (
                    super(LossScaling, self).compute_loss(  # type: ignore[misc]
                        trainer.model, dict(inputs), num_items_in_batch=count
                    )
                    for count in (items, 2 * items)
                )
        finally:
            trainer.model.train(was_training)
        return bool(torch.isclose(loss.double(), other.double(), rtol=0.01))

    def _labels_in(self, labels: torch.Tensor) -> torch.Tensor:
        """Count as Trainer does; a loss that predicts the next token has none for the first."""
        shifts = getattr(self, compat.SHIFTED_LABELS.name)
        return (labels[..., 1:] if shifts else labels).ne(-100).sum()
