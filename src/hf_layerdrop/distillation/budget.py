"""What a distillation costs: layer forwards of teacher and student, for a fair comparison with other arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_layerdrop.injection.inject import layerdrop_state
from hf_layerdrop.injection.injected import find_injected
from hf_layerdrop.injection.stack_draw import StackDraw


@dataclass(frozen=True)
class LayerForwards:
    """How many times one batch went forward through one layer while training, in this process.

    Attributes:
        teacher: Through layers of the teacher, which takes no backward pass.
        student: Through layers of the student; layers that LayerDrop dropped do not count.
    """

    teacher: int
    student: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.teacher + self.student


class LayerForwardCounter(TrainerCallback, ExportableState):
    """Count layer forwards, and keep the counts in checkpoints, so that a resumed run counts all that it took."""

    def __init__(self) -> None:
        self.teacher = self.student = 0

    def state(self) -> dict[str, Any]:
        """Return what Trainer saves in each checkpoint."""
        return {"args": {}, "attributes": {"teacher": self.teacher, "student": self.student}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the counts of the checkpoint, or begin at 0."""
        # A checkpoint of a run without this callback does not know its name, under which Trainer saves.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        counts = (saved[-1] if isinstance(saved, list) else saved)["attributes"]
        self.teacher, self.student = (counts["teacher"], counts["student"]) if state.global_step else (0, 0)


class CountsLayerForwards:
    """Mixin of a Trainer to which a `LayerForwardCounter` was added."""

    @property
    def layer_forwards(self) -> LayerForwards:
        """What the training took so far, also before it was resumed."""
        return LayerForwards(self.layer_forward_counter.teacher, round(self.layer_forward_counter.student))

    @property
    def layer_forward_counter(self) -> LayerForwardCounter:
        """What counts: looked up, since Trainer may make another of it, from a checkpoint."""
        callbacks = self.callback_handler.callbacks  # type: ignore[attr-defined]
        return next(callback for callback in callbacks if isinstance(callback, LayerForwardCounter))


def layers_so_far(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return for each stack in which LayerDrop is injected how many forwards it counted, and the layers they ran."""
    return {name: (draw.forwards, draw.layers_run) for name, draw in _draws(model).items()}


def layers_since(model: nn.Module, before: dict[str, tuple[int, int]], depths: dict[str, int]) -> int:
    """Return how many layers the one forward ran that ``model`` has made since `layers_so_far` gave ``before``."""
    draws, total = _draws(model), 0
    for name, depth in depths.items():
        dropping = name in before and draws[name].forwards > before[name][0]
        total += draws[name].layers_run - before[name][1] if dropping else depth
    return total


def _draws(model: nn.Module) -> dict[str, StackDraw]:
    return layerdrop_state(model).draws if find_injected(model) is not None else {}
