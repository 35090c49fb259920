"""What dropping a layer costs, learned from losses alone: the estimator of the package's docstring, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

CREDIT_GAIN = 0.02  # credits look back over some 50 losses,
BASELINE_GAIN = 0.1  # the baseline over 10: the loss falls while the model trains
SURPRISE_LIMIT = 3.0


class Credits:
    """Estimate for each layer by how much the expected loss rises where it is dropped.

    Attributes:
        values: The credits, one a layer: the gradient of the expected loss in the rates.
    """

    def __init__(self, layers: int) -> None:
        self.values = [0.0] * layers
        self._baseline: float | None = None
        self._variance = 0.0

    @property
    def scaled(self) -> list[float]:
        """The credits in units of what the loss varies by: by the surprises, and by the drops themselves."""
        scale = math.sqrt(self._variance + fmean(value**2 for value in self.values))
        return [value / scale if scale else 0.0 for value in self.values]

    def update(self, loss: float, deviations: Sequence[float], variances: Sequence[float]) -> None:
        """Move the credits by what one loss says.

        Args:
            loss: The loss.
            deviations: How many more drops of each layer are behind the loss than were expected.
            variances: The variance of that number; 0 for a layer that could not be dropped.
        """
        if not math.isfinite(loss):
            return
        if self._baseline is None:
            self._baseline = loss
            return
        surprise = self._surprise(loss, deviations)
        self._baseline += BASELINE_GAIN * surprise
        self._variance += BASELINE_GAIN * (surprise**2 - self._variance) if self._variance else surprise**2
        # The terms of this sum are 1 on average. A step that explained more than the surprise would make it grow.
        unlikely = sum(k * k / v for k, v in zip(deviations, variances, strict=True) if v)
        gain = CREDIT_GAIN / max(1.0, CREDIT_GAIN * unlikely)
        for layer, (k, v) in enumerate(zip(deviations, variances, strict=True)):
            if v:
                self.values[layer] += gain * surprise * k / v

    def _surprise(self, loss: float, deviations: Sequence[float]) -> float:
        """Return what is left of the loss after all that is known about it."""
        expected = sum(value * k for value, k in zip(self.values, deviations, strict=True))
        surprise = loss - (self._baseline or 0.0) - expected
        limit = SURPRISE_LIMIT * math.sqrt(self._variance) or math.inf
        return min(max(surprise, -limit), limit)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {"values": list(self.values), "baseline": self._baseline, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.values, self._baseline, self._variance = list(state["values"]), state["baseline"], state["variance"]
