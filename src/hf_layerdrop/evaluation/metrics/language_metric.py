"""The perplexity of a language model, from sums of losses and numbers of tokens, as one `evaluate.Metric`.

It is the exponential of the mean negative log likelihood of a token, over all tokens: rows that differ in length, and
batches that differ in size, weigh by their tokens.

`evaluate` loads this file by path, as a copy, so it imports nothing of this package. The imports are parsed line by
line, so there is one a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate

LARGEST = 700.0  # the exponential of more is no float


def perplexity(losses: Sequence[float], tokens: Sequence[float]) -> float:
    """Exponential of the mean loss of a token."""
    mean = math.fsum(losses) / math.fsum(tokens)
    return math.exp(mean) if mean < LARGEST else math.inf


class LanguageMetric(evaluate.Metric):
    """The perplexity, from the sum of the losses of each row (in nats) and the number of its tokens."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: the sum of the losses of each row. references: its number of tokens.",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, *, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"perplexity": perplexity(predictions, references)}
