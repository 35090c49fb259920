"""Which number of an evaluation is the score, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hf_layerdrop.errors import TaskError
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import format_keep_layers

LOWER_IS_BETTER = ("loss", "perplexity", "ppl", "error", "wer", "cer", "ter", "mse", "rmse", "mae")


@dataclass(frozen=True)
class Objective:
    """A number by name; ``perplexity``, where an evaluation gives none, is the exponential of its loss."""

    name: str
    greater_is_better: bool

    def score(self, result: SubNetworkResult) -> float:
        """Return the score of a sub-network.

        Raises:
            TaskError: If the evaluation gave no such number, or not a number.
        """
        metrics = with_perplexity(result.metrics)
        if self.name not in metrics:
            raise TaskError(
                f"The evaluation gives no {self.name!r}: it gives {', '.join(result.metrics) or 'nothing'}; name one."
            )
        if not math.isfinite(metrics[self.name]):
            raise TaskError(
                f"The {self.name} of the sub-network {format_keep_layers(result.keep_layers)} is {metrics[self.name]}, "
                "which cannot be compared: check the metric or evaluate function, and the data."
            )
        return metrics[self.name]

    def order(self, result: SubNetworkResult) -> tuple[float, float, list[tuple[int, ...]]]:
        """Return the key that sorts the best first: by score, then by loss, so that ties of an accuracy are broken."""
        score = self.score(result)
        loss = result.metrics.get("loss", 0.0)
        return -score if self.greater_is_better else score, loss, [tuple(kept) for kept in result.keep_layers.values()]

    def gain(self, score: float, over: float) -> float:
        """Return by how much a score is better than another."""
        return score - over if self.greater_is_better else over - score


def find_objective(name: str | None, metrics: Mapping[str, float], greater_is_better: bool | None) -> Objective:
    """Choose the score out of the numbers of an evaluation.

    Raises:
        TaskError: If the number that was named is not there, or none was named and there are several.
    """
    if name is None:
        others = [metric for metric in metrics if metric != "loss"]
        if len(others) > 1:
            raise TaskError(f"The evaluation gives {', '.join(others)}: name the one to search by as metric=.")
        name = next(iter(others), "loss")
    elif name not in with_perplexity(metrics):
        raise TaskError(f"The evaluation gives no {name!r}: it gives {', '.join(metrics) or 'nothing'}; name one.")
    if greater_is_better is None:
        greater_is_better = not set(name.lower().replace("-", "_").split("_")) & set(LOWER_IS_BETTER)
    return Objective(name, greater_is_better)


def with_perplexity(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Add the perplexity to metrics that have a loss."""
    if "loss" not in metrics or "perplexity" in metrics:
        return metrics
    loss = metrics["loss"]
    return {**metrics, "perplexity": math.exp(loss) if loss < 700 else math.inf}
