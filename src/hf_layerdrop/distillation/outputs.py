"""The losses of distillation between the outputs of two models, or of one at two depths, whatever its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_layerdrop.distillation.losses import cosine_loss, soft_loss
from hf_layerdrop.distillation.positions import predicts, real_tokens, scored
from hf_layerdrop.errors import DistillationError

_LOGITS = (("logits",), ("start_logits", "end_logits"))  # of one prediction, or of the two of a span


def names_of_logits(outputs: Mapping[str, Any], *, weight: str = "soft_weight") -> tuple[str, ...]:
    """Return under which names a model's outputs hold what it predicts.

    Raises:
        DistillationError: If there is nothing that can be compared; it says to set ``weight`` to 0.
    """
    names = next((names for names in _LOGITS if names[0] in outputs), None)
    if names is None:
        raise DistillationError(
            f"The student's outputs are {', '.join(outputs)}, none of which are logits that can be compared; set "
            f"{weight}=0, or use another head."
        )
    return names


def soft_loss_of(
    outputs: Mapping[str, Any],
    targets: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    shifts: bool,
    temperature: float,
    weight: str = "soft_weight",
) -> torch.Tensor:
    """Return `soft_loss` of a model's predictions, averaged over the two of a span."""
    losses = []
    for name in names_of_logits(outputs, weight=weight):
        counts = scored(outputs[name], inputs.get("labels"), inputs, shifts=shifts)
        losses.append(soft_loss(outputs[name], targets[name], counts, temperature))
    return torch.stack(losses).mean()


def hidden_loss_of(
    outputs: Mapping[str, Any],
    targets: Mapping[str, Any],
    inputs: Mapping[str, Any],
    pairs: Mapping[str, Sequence[tuple[int, int]]],
) -> torch.Tensor:
    """Return `cosine_loss` averaged over the pairs of hidden states, by stack: the model's own number, the other's."""
    losses = []
    for stack, of_stack in pairs.items():
        key = f"{stack}_hidden_states"
        key = key if key in outputs else "hidden_states"
        own, other = outputs[key], targets[key]
        counts = real_tokens(own[0], inputs, teacher_forced=key == "decoder_hidden_states")
        losses += [cosine_loss(own[mine], other[its], counts) for mine, its in of_stack]
    return torch.stack(losses).mean()


def own_loss(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the model's own loss, on the labels.

    Raises:
        DistillationError: If the batch has none.
    """
    if outputs.get("loss") is None:
        raise DistillationError(
            f"The batch has no labels for the hard loss, only {', '.join(inputs)}; give labels, or set hard_weight=0."
        )
    return outputs["loss"]


def share_of_labels(
    trainer: Any, labels: torch.Tensor | None, items: torch.Tensor | int | None, *, shifts: bool
) -> torch.Tensor | float:
    """Return a batch's share of the labels of a step, where Trainer counted them; else Trainer divides.

    Many models of transformers ignore the count that they are given and return the mean of their batch, so none is
    given to them beside this.
    """
    if items is None or labels is None:
        return 1.0
    share = predicts(labels, shifts=shifts).sum() / items
    if trainer.args.average_tokens_across_devices:  # the ranks' gradients are averaged, though items are of all
        share = share * (trainer.accelerator.num_processes // trainer.get_tp_size())
    return share
