"""The losses of distillation: tensors in, a scalar out. ``counts`` tells which positions are not padding."""

from __future__ import annotations

import torch
from torch import nn


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, counts: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the divergence KL(teacher || student) of predictions at a temperature, times its square.

    The square keeps the size of the gradients when the temperature changes (Hinton et al., 2015). A single output is a
    regression, which has no distribution: it is compared by its squared error.

    Args:
        student: Logits, of any number of positions and one row of classes each.
        teacher: The same of the teacher.
        counts: True for the positions to average over.
        temperature: Both logits are divided by it.
    """
    if student.shape[-1] == 1:
        return mean_over((student - teacher).float().pow(2).squeeze(-1), counts)
    own = nn.functional.log_softmax(student.float() / temperature, dim=-1)
    target = nn.functional.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = nn.functional.kl_div(own, target, reduction="none", log_target=True).sum(-1)
    return mean_over(divergence, counts) * temperature**2


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return one minus the cosine between the hidden states of each token, averaged over the tokens that count."""
    return mean_over(1 - nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1), counts)


def mean_over(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Average the values where ``counts`` is true; 0 where it is so nowhere. The device is not waited for."""
    return values.masked_fill(~counts, 0).sum() / counts.sum().clamp(min=1)
