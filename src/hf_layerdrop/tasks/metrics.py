"""The metrics of a classification, as `evaluate` and as `Trainer` want them; no network is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hf_layerdrop.evaluation.metrics import load_metric, named_metric
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.tasks.task import Task

if TYPE_CHECKING:
    import evaluate
    from transformers import EvalPrediction


def glue_metric(task_name: str) -> evaluate.Metric:
    """Load the metrics of a task of GLUE, with the published definitions.

    Raises:
        TaskError: If there is no task of that name.
    """
    return load_metric(*load_task(task_name).metrics)


def compute_metrics_for(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return `Trainer`'s ``compute_metrics`` for a classification or regression; see `Task.metric` for all tasks."""
    return named_metric(*task.metrics)
