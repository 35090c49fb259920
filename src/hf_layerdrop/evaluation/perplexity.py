"""The perplexity of tokens, from the losses of batches: each counts by the tokens that its loss is the mean of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

IGNORED = -100  # the label of a token that has no loss

Gather = Callable[[torch.Tensor], torch.Tensor]


class LabelShift:
    """Know whether the loss leaves out the first label of a row, since it is of the next tokens.

    Heads for causal language modelling do, but not all of them (BART's does not), and nothing of a model says so. So it
    is asked, once, by giving the first labels other values; ``loss_of`` gives the loss of a batch.
    """

    def __init__(self, loss_of: Callable[[Mapping[str, Any]], torch.Tensor]) -> None:
        self._loss_of = loss_of
        self._answer: bool | None = None

    def of(self, batch: Mapping[str, Any]) -> bool:
        """Tell by a batch, unless it is known."""
        labels = batch.get("labels")
        if self._answer is None and torch.is_tensor(labels) and labels.dim() > 1 and "shift_labels" not in batch:
            one, other = (self._loss_of({**batch, "labels": _with_first(labels, value)}) for value in (0, 1))
            self._answer = one.nan_to_num().equal(other.nan_to_num())  # no number where nothing else has a label
        return bool(self._answer)


class TokenLosses:
    """Add up losses and tokens, a row each, so that rows that a process only repeats can be left out.

    Args:
        shift: Knows which labels have a loss.
        gather: Collects a value of each row over processes.
        divisor_of: Gives the number that the loss of a batch was divided by, where it is another than that of the
            labels that have a loss.
    """

    def __init__(
        self,
        shift: LabelShift,
        gather: Gather = lambda rows: rows,
        divisor_of: Callable[[Mapping[str, Any]], torch.Tensor | None] = lambda batch: None,
    ) -> None:
        self._shift = shift
        self._gather = gather
        self._divisor_of = divisor_of
        self._totals: torch.Tensor | None = None  # of losses and tokens, on the device, for which no batch waits

    def add(self, batch: Mapping[str, Any], loss: torch.Tensor) -> None:
        """Take the mean loss of a batch."""
        if not torch.is_tensor(batch.get("labels")):
            return
        counts = _labels_by_row(batch, shifts=self._shift.of(batch))
        counts = counts.to(loss.device, non_blocking=True).double()
        divisor = self._divisor_of(batch)
        scale = 1.0 if divisor is None else divisor.to(loss.device, non_blocking=True) / counts.sum().clamp(min=1)
        sums = torch.where(counts > 0, loss.detach().double().mean() * counts * scale, 0.0)
        totals = torch.stack([self._gather(sums).sum(), self._gather(counts).sum()])
        self._totals = totals if self._totals is None else self._totals + totals

    def metrics(self) -> dict[str, float]:
        """Return the perplexity; nothing if no token had a loss."""
        loss, tokens = (0.0, 0.0) if self._totals is None else self._totals.tolist()
        if not tokens:
            return {}
        mean = loss / tokens
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}


def _with_first(labels: torch.Tensor, value: int) -> torch.Tensor:
    changed = labels.clone()
    changed[..., 0] = value
    return changed


def _labels_by_row(batch: Mapping[str, Any], *, shifts: bool) -> torch.Tensor:
    """Count the labels of each row that have a loss."""
    labels = batch.get("shift_labels", batch["labels"])
    labels = labels[..., 1:] if shifts and "shift_labels" not in batch else labels
    return labels.ne(IGNORED).reshape(len(labels), -1).sum(dim=1)
