"""Trainer callbacks: drop rates that move over training, and quality at several depths at every evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.evaluation.evaluate import depth_name, evaluate_depths, listed_depths
from hf_layerdrop.evaluation.model_or_trainer import check_compute_metrics
from hf_layerdrop.injection.calling_trainer import calling_trainer
from hf_layerdrop.injection.inject import injected_model, layerdrop_state, scale_rates
from hf_layerdrop.samplers.keep_layers import KeepLayers, parse_keep_layers
from hf_layerdrop.samplers.schedules import SCHEDULES, Schedule, make_schedule

_METRIC_OF_A_DEPTH = re.compile(r"depth_\w*?\d")  # and not a user's own, such as depth_error


class LayerDropScheduleCallback(TrainerCallback):
    """Scale the configured rates by a schedule at every step.

    Args:
        schedule: A name of `schedules.SCHEDULES` (``constant``, ``linear``, ``cosine``, ``step``, ``pld``), or a
            function from the share of training that is done, in [0, 1], to a factor in [0, 1].
        numbers: What the named schedule takes, such as ``end=0.5``.

    The rate depends on the step alone, so that a resumed run goes on where it was, and there is no state to restore.

    Raises:
        LayerDropConfigError: If the schedule is unknown, or, during training, leaves [0, 1].
    """

    def __init__(self, schedule: Schedule | str = "constant", **numbers: float) -> None:
        self.schedule: Schedule = make_schedule(schedule, **numbers) if isinstance(schedule, str) else schedule
        if not callable(self.schedule) or (numbers and not isinstance(schedule, str)):
            raise LayerDropConfigError(
                f"schedule is {schedule!r}; give a name ({', '.join(SCHEDULES)}) with its numbers, or a function of "
                "one number."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Say so before the first step if LayerDrop is not injected: a schedule of nothing would do nothing."""
        injected_model(model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Set the rates of the step that begins."""
        scale_rates(model, self.schedule(state.global_step / max(state.max_steps, 1)))


class DepthEvaluationCallback(TrainerCallback):
    """Evaluate sub-networks at each evaluation, next to the whole model.

    The values are logged like any metric, ``eval_depth_6_accuracy``, and stand in what `Trainer.evaluate` returns, so
    that ``metric_for_best_model`` can name one.

    Args:
        depths: The sub-networks, each in any form of ``keep_layers``.

    Raises:
        TaskError: If ``depths`` is no list, or empty.
    """

    def __init__(self, depths: Sequence[KeepLayers]) -> None:
        self.depths = listed_depths(depths)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the depths, and that their metrics are there when Trainer or early stopping looks for them."""
        trainer = calling_trainer()
        check_compute_metrics(trainer)
        callbacks = trainer.callback_handler.callbacks
        depths = depths_of(trainer.accelerator.unwrap_model(trainer.model))
        specs = [spec for callback in callbacks if isinstance(callback, type(self)) for spec in callback.depths]
        _check_best(args.metric_for_best_model, [depth_name(parse_keep_layers(spec, depths), depths) for spec in specs])
        if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks[: callbacks.index(self)]):
            raise LayerDropConfigError(
                "EarlyStoppingCallback stands before DepthEvaluationCallback, so it would not see the metrics "
                "of the depths; "
                "give the callbacks to Trainer in the other order."
            )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Measure the sub-networks on the data that was just evaluated."""
        trainer = calling_trainer()
        prefix = next(name for name in metrics if name.endswith("_runtime")).removesuffix("_runtime")
        found = depth_metrics(trainer, kwargs["eval_dataloader"], self.depths, prefix)
        trainer.log(dict(found))
        metrics.update(found)


class StartCallback(TrainerCallback):
    """Know whether Trainer is done with getting ready.

    Attributes:
        begun: Whether training has begun, or was told to have.
    """

    def __init__(self) -> None:
        self.begun = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note it: optimizer, schedule and data loaders are made."""
        self.begun = True


class LayerForwardsCallback(TrainerCallback, ExportableState):
    """Count the layers that run in training forwards, a batch each: by this number, runs are compared at equal cost.

    Dropped layers do not count, nor do recomputations and evaluations. The count stands in each checkpoint, so that a
    resumed run ends with that of the uninterrupted one.

    Attributes:
        layer_forwards: How many so far, on this process.
    """

    def __init__(self) -> None:
        self.layer_forwards = 0
        self._before = 0

    def state(self) -> dict[str, Any]:
        """Return what Trainer saves of this callback in each checkpoint."""
        return {"args": {}, "attributes": {"layer_forwards": self.layer_forwards}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Go on from the count of the checkpoint."""
        # A checkpoint that was trained without this callback does not know its name, under which Trainer saves.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            self.layer_forwards = (saved[-1] if isinstance(saved, list) else saved)["attributes"]["layer_forwards"]
        self._before = self.layer_forwards - self._run(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the count of the step."""
        self.layer_forwards = self._before + self._run(model)

    def _run(self, model: nn.Module) -> int:
        state = layerdrop_state(model)
        return sum(max(draw.layer_forwards for draw in state.draws_of(name)) for name in state.depths)


def _check_best(metric: str | None, names: Sequence[str]) -> None:
    """Refuse to choose the best model by a depth that is not evaluated; Trainer finds out after the first epoch.

    Raises:
        LayerDropConfigError: If ``metric`` looks like that of a depth, but of none of ``names``.
    """
    wanted = (metric or "").removeprefix("eval_")
    if _METRIC_OF_A_DEPTH.match(wanted) and not any(wanted.startswith(f"{name}_") for name in names):
        raise LayerDropConfigError(
            f"metric_for_best_model is {metric!r}, but no such depth is evaluated: name one of {', '.join(names)} (as "
            f"in eval_{names[0]}_loss), or evaluate that depth too."
        )


def depth_metrics(trainer: Trainer, dataloader: Any, depths: Sequence[KeepLayers], prefix: str) -> dict[str, float]:
    """Return the metrics of sub-networks under the keys by which they are logged."""
    results = evaluate_depths(trainer, dataloader, depths=depths, progress=not trainer.args.disable_tqdm)
    model_depths = depths_of(trainer.accelerator.unwrap_model(trainer.model))
    return {
        f"{prefix}_{depth_name(result.keep_layers, model_depths)}_{name}": value
        for result in results
        for name, value in result.metrics.items()
    }
