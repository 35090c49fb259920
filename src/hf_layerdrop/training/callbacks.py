"""Trainer callbacks: drop rates that move over training, and quality at several depths at every evaluation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
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

from hf_layerdrop import compat
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.evaluation.batches import MOST_BYTES_KEPT, KeptBatches
from hf_layerdrop.evaluation.evaluate import depth_name, evaluate_depths, listed_depths
from hf_layerdrop.evaluation.trainer_source import Evaluation, arguments_of
from hf_layerdrop.injection.call_stack import callers
from hf_layerdrop.injection.calling_trainer import calling_trainer
from hf_layerdrop.injection.inject import injected_model, layerdrop_state
from hf_layerdrop.injection.rates import scale_rates
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.results.collection import SubNetworkResults
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers
from hf_layerdrop.samplers.schedules import SCHEDULES, Schedule, make_schedule

_METRIC_OF_A_DEPTH = re.compile(r"depth_\w*?\d")  # and not a user's own, such as depth_error


class LayerDropScheduleCallback(TrainerCallback):
    """Scale the configured rates by a schedule at every step.

    Args:
        schedule: A name of `schedules.SCHEDULES` (``constant``, ``linear``, ``cosine``, ``step``, ``pld``), or a
            function from the share of training that is done, in [0, 1], to a factor in [0, 1]. It goes before one that
            the `LayerDropConfig` names, which needs no callback.
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
    """Evaluate sub-networks at each evaluation, next to the whole model and on the same batches.

    The values are logged like any metric, ``eval_depth_6_accuracy``, and stand in what `Trainer.evaluate` returns, so
    that ``metric_for_best_model`` can name one. Each is what ``Trainer.evaluate`` would give of the model cut to these
    layers, and the training ends with the weights that it has without this callback.

    Args:
        depths: The sub-networks, each in any form of ``keep_layers``.

    Attributes:
        results: The records of the last evaluation of each name (``eval``, or ``eval_`` and the name of a set), with
            the step after which it was.

    Raises:
        TaskError: If ``depths`` is no list, or empty.
    """

    def __init__(self, depths: Sequence[KeepLayers]) -> None:
        self.depths = listed_depths(depths)
        self.results: dict[str, tuple[int, SubNetworkResults]] = {}
        self._kept: KeptBatches | None = None
        self._fits = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the model can be cut to the depths, and that Trainer and early stopping find their metrics."""
        trainer = calling_trainer()
        callbacks = trainer.callback_handler.callbacks
        cutter = Cutter(trainer.accelerator.unwrap_model(trainer.model))
        self.depths = [cutter.resolve(spec) for spec in self.depths]  # the same ones all along
        specs = [spec for callback in callbacks if isinstance(callback, type(self)) for spec in callback.depths]
        kept = [cutter.parse(spec) for spec in specs]
        _check_best(args.metric_for_best_model, [depth_name(layers, cutter.depths) for layers in kept])
        for layers in kept:
            cutter.check(layers)
        if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks[: callbacks.index(self)]):
            raise LayerDropConfigError(
                "EarlyStoppingCallback stands before DepthEvaluationCallback, so it would not see the metrics "
                "of the depths; "
                "give the callbacks to Trainer in the other order."
            )

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the batch, since a loader may draw others when it is read again (in-batch negatives, masked tokens)."""
        loop = next((frame.f_locals for frame in callers() if frame.f_code is compat.EVALUATION_LOOP.code), None)
        if loop is None:
            return
        if loop["step"] == 0:
            self._kept, self._fits = KeptBatches(kwargs["eval_dataloader"]), True
        if self._kept is not None and self._fits:
            self._fits = self._kept.keep(loop["inputs"])

    def on_predict(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let go of what was predicted."""
        self._kept = None

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
        loader = self._same_batches(kwargs["eval_dataloader"])
        calls = (frame for frame in callers() if frame.f_locals.get("self") is trainer)
        call = next((frame for frame in calls if frame.f_code is type(trainer).evaluate.__code__), None)
        evaluation = Evaluation(arguments_of(call) if call is not None else {}, loader)
        results = evaluate_depths(trainer, evaluation, depths=self.depths, progress=not args.disable_tqdm)
        self.results[evaluation.prefix] = (state.global_step, results)
        found = depth_metrics(trainer, evaluation.prefix, results)
        _log(trainer, evaluation.prefix, found)
        # In front: the table of a notebook takes the last name of a loss for that of the whole model.
        theirs = dict(metrics)
        metrics.clear()
        metrics.update({**found, **theirs})

    def _same_batches(self, loader: Any) -> Any:
        """Return the batches that were just evaluated; those of another reading if they were too many to be kept."""
        kept, self._kept = self._kept, None
        if kept is None:
            return loader
        if not self._fits:
            warnings.warn(
                f"The evaluation data has more than {MOST_BYTES_KEPT / 1e9:g} GB, so depths are measured on a second "
                "reading of it: if its loader shuffles, or masks at random, they see other batches than the whole "
                "model.",
                stacklevel=2,
            )
            return loader
        kept.is_complete = True
        return kept


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
        return round(sum(max(draw.layer_forwards for draw in state.draws_of(name)) for name in state.depths))


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


def depth_metrics(trainer: Trainer, prefix: str, results: Sequence[SubNetworkResult]) -> dict[str, float]:
    """Return the metrics of sub-networks under the keys by which they are logged."""
    model_depths = depths_of(trainer.accelerator.unwrap_model(trainer.model))
    return {
        f"{prefix}_{depth_name(result.keep_layers, model_depths)}_{name}": value
        for result in results
        for name, value in result.metrics.items()
    }


def _log(trainer: Trainer, prefix: str, found: Mapping[str, float]) -> None:
    """Report numbers, and keep them in the record of the evaluation that Trainer has just made, if it has."""
    history = trainer.state.log_history
    known = len(history)
    trainer.log(dict(found))
    if known and any(name.startswith(f"{prefix}_") for name in history[known - 1]):
        for record in history[known:]:
            history[known - 1].update(record)
        del history[known:]
