"""The settings of distillation, and which layers the student begins with: plain values, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_layerdrop.errors import DistillationError
from hf_layerdrop.samplers.keep_layers import KeepLayers, evenly_spread, parse_keep_layers
from hf_layerdrop.tasks.classification import CLASSIFICATION
from hf_layerdrop.tasks.registry import TASKS
from hf_layerdrop.tasks.task import Task

_WEIGHTS = ("soft_weight", "hidden_weight", "hard_weight")


@dataclass(frozen=True)
class DistillationConfig:
    """What a student learns from: a weighted sum of three losses. The defaults are those DistilBERT was trained with.

    Attributes:
        temperature: Logits are divided by it before teacher and student are compared: the higher, the more the
            unlikely classes count.
        soft_weight: Weight of the divergence between teacher's and student's predictions, at that temperature.
        hidden_weight: Weight of the cosine distance between hidden states.
        hard_weight: Weight of the model's own loss, on the labels.
    """

    temperature: float = 2.0
    soft_weight: float = 5.0
    hidden_weight: float = 1.0
    hard_weight: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise DistillationError(f"{name} is {value!r}; it must be a finite number, 0 or more.")
        if self.temperature == 0:
            raise DistillationError("temperature is 0; it must be above 0, and 1 leaves the predictions as they are.")
        if not any(getattr(self, name) for name in _WEIGHTS):
            raise DistillationError(f"{', '.join(_WEIGHTS)} are all 0; set at least one above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def student_layers(keep_layers: KeepLayers | None, depths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the teacher's layers that the student begins with: by default every other one, spread evenly.

    Raises:
        DistillationError: If these are all layers, so that there is nothing to learn.
        KeepLayersError: If ``keep_layers`` cannot be read, or does not fit.
    """
    half: KeepLayers = {stack: evenly_spread(max(1, depth // 2), depth) for stack, depth in depths.items()}
    kept = parse_keep_layers(half if keep_layers is None else keep_layers, depths)
    if all(len(kept[stack]) == depth for stack, depth in depths.items()):
        every = " and ".join(f"all {depth} layers of the {stack}" for stack, depth in depths.items())
        raise DistillationError(f"keep_layers keeps {every}: the student would be its teacher; keep fewer.")
    return kept


def check_classification(task: Task) -> None:
    """Refuse a task of another kind before anything is loaded for it.

    Raises:
        DistillationError: If it is no classification of texts.
    """
    if task.kind is not CLASSIFICATION:
        raise DistillationError(
            f"Task {task.name} is no classification of texts, which is what is distilled here: give one of "
            f"{', '.join(TASKS)}, sst2-sample, or your own files; for other heads, DistillationTrainer takes the "
            "place of Trainer."
        )
