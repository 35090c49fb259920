"""Which positions of a batch count: those that the hard loss counts for predictions, real tokens for hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

IGNORED = -100  # of transformers: a label that no loss counts


def shifts_labels(model: PreTrainedModel) -> bool:
    """Tell a model whose prediction at one token is scored by the label of the next: a causal language model."""
    return model.loss_function is ForCausalLMLoss and not model.config.is_encoder_decoder


def scored(
    logits: torch.Tensor, labels: torch.Tensor | None, inputs: Mapping[str, torch.Tensor], *, shifts: bool
) -> torch.Tensor:
    """Return which rows of logits count: those with a label; without labels, those of real tokens."""
    positions = logits.shape[:-1]
    if labels is None or labels.shape != positions:
        mask = inputs.get("attention_mask")
        return _all(logits) if mask is None or mask.shape != positions else mask.bool()
    return predicts(labels, shifts=shifts)


def predicts(labels: torch.Tensor, *, shifts: bool) -> torch.Tensor:
    """Return which positions have a label to predict: their own, or, where the model shifts labels, the next one's."""
    has_label = labels != IGNORED
    if not shifts or labels.dim() < 2:  # a label a row is never shifted
        return has_label
    return torch.cat([has_label[:, 1:], torch.zeros_like(has_label[:, :1])], dim=1)


def real_tokens(states: torch.Tensor, inputs: Mapping[str, torch.Tensor], *, teacher_forced: bool) -> torch.Tensor:
    """Return which hidden states are of real tokens; ``teacher_forced`` for those of a decoder that reads labels."""
    positions = states.shape[:-1]
    names = ("decoder_attention_mask", "labels") if teacher_forced else ()
    for name in (*names, "attention_mask"):
        mask = inputs.get(name)
        if mask is None or mask.numel() != positions.numel() or mask.shape[-1] != positions[-1]:
            continue  # a choice among several texts has one row each of them in the model
        return (mask != IGNORED if name == "labels" else mask.bool()).reshape(positions)
    return _all(states)


def _all(rows: torch.Tensor) -> torch.Tensor:
    return torch.ones(rows.shape[:-1], dtype=torch.bool, device=rows.device)
