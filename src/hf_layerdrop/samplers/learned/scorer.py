"""From the activation of each layer to its share of the drops: affine, tanh, softmax, with an optimizer of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import nn

REACH = 2.0  # shares differ by at most e^4, a factor of 55
LEARNING_RATE = 0.1
WEIGHT_DECAY = 0.02
FEATURE_GAIN = 0.1
FEATURES = 2


class Scorer(nn.Module):
    """Share out the drops of one stack over its layers.

    It is no part of the model that it watches: nothing of it is in that model's state dict or optimizer.

    Args:
        shares: Numbers in proportion to the shares to start from.

    Attributes:
        shares: The shares as plain numbers.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        layers = len(shares)
        self.weight = nn.Parameter(torch.zeros(FEATURES, dtype=torch.float64, device="cpu"))
        self.offset = nn.Parameter(torch.tensor(_offsets(shares), dtype=torch.float64, device="cpu"))
        # A weight sums up the gradients of all layers.
        slower: dict[str, Any] = {"params": [self.weight], "lr": LEARNING_RATE / max(layers, 1)}
        groups: list[dict[str, Any]] = [{"params": [self.offset]}, slower]
        self._optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self._seen: list[list[float] | None] = [None] * layers
        self._note_shares()

    def forward(self) -> torch.Tensor:
        """Return the shares, whose sum is 1."""
        columns = [
            _standardised([None if seen is None else seen[column] for seen in self._seen]) for column in range(FEATURES)
        ]
        features = torch.tensor(columns, dtype=torch.float64, device="cpu").T
        return torch.softmax(REACH * torch.tanh((features @ self.weight + self.offset) / REACH), dim=0)

    def note_activation(self, layer: int, before: float, after: float, change: float) -> None:
        """Take what a layer did from the norms of its input, of its output and of their difference."""
        if not (before > 0 and after > 0 and math.isfinite(before * after) and math.isfinite(change)):
            return
        cosine = (before**2 + after**2 - change**2) / (2 * before * after)
        new = [math.log(after / before), 1 - cosine]
        known = self._seen[layer] or new
        self._seen[layer] = [old + FEATURE_GAIN * (now - old) for old, now in zip(known, new, strict=True)]

    def improve(self, costs: Sequence[float]) -> None:
        """Take one step down the gradient of the cost of the shares, given what a share of 1 costs at each layer."""
        with torch.enable_grad():
            self._optimizer.zero_grad()
            (self() @ torch.tensor(costs, dtype=torch.float64, device="cpu")).backward()
        self._optimizer.step()
        self._note_shares()

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {"weight": self.weight.tolist(), "offset": self.offset.tolist(), "seen": list(self._seen)}

    def load_json(self, state: dict[str, Any]) -> None:
        """Continue where `to_json` was taken."""
        with torch.no_grad():
            for name in ("weight", "offset"):
                getattr(self, name).copy_(torch.tensor(state[name], dtype=torch.float64, device="cpu"))
        self._seen = list(state["seen"])
        self._note_shares()

    def _note_shares(self) -> None:
        with torch.no_grad():
            self.shares: list[float] = self().tolist()


def _offsets(shares: Sequence[float]) -> list[float]:
    """Return the offsets that give these shares, as far as they are within reach of each other."""
    scores = [math.log(max(share, 1e-9)) for share in shares]
    middle = (min(scores) + max(scores)) / 2 if scores else 0.0
    return [REACH * math.atanh(min(max((score - middle) / REACH, -0.99), 0.99)) for score in scores]


def _standardised(values: Sequence[float | None]) -> list[float]:
    """Shift and scale to mean 0 and variance 1; 0 for layers that have not run yet, or where all are alike."""
    known = [value for value in values if value is not None]
    mean, spread = (fmean(known), pstdev(known)) if known else (0.0, 0.0)
    return [(value - mean) / spread if value is not None and spread > 1e-9 else 0.0 for value in values]
