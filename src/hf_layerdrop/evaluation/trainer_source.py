"""Measure as a Trainer does in `Trainer.evaluate`: by its loaders, its prediction steps, its arguments, its metrics.

Where ``evaluate``, its loop and ``log`` are Trainer's own, the loop is replaced by one that gives every sub-network
each batch in turn, so that they can share work. Its numbers are those of Trainer's loop, of which it is the copy. Where
a Trainer has others (run_qa's, TRL's, Sentence Transformers'), or a metric that is fed batch by batch, nobody can know
what they hold from one batch to the next: ``evaluate`` is called for one sub-network after the other.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainerMemoryTracker

from hf_layerdrop import compat
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.batches import KeptBatches, SteadyLoader
from hf_layerdrop.evaluation.model_or_trainer import LOSS_ALONE, Batches, Reading, as_dict, as_metric, eval_mode
from hf_layerdrop.evaluation.perplexity import LabelShift, TokenLosses
from hf_layerdrop.evaluation.random_streams import RandomStreams, unmoved_streams
from hf_layerdrop.evaluation.stopwatch import Stopwatch
from hf_layerdrop.evaluation.trainer_loop import TrainerTally, prepared_step, replaced, types_kept

# What an evaluation says of itself, and not of the model.
_OF_THE_RUN = ("_runtime", "_per_second", "_model_preparation_time", "_compilation_time")
_OF_THE_TRAINING = ("epoch", "step", "total_flos", "num_input_tokens_seen")
# The methods whose copy measures here, and those that hand an evaluation on to them.
_COPIED = (Trainer.evaluation_loop, Trainer.log, Trainer.evaluate, Seq2SeqTrainer.evaluate)
_AS_TRAINER: set[Any] = set()
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Evaluation:
    """How ``Trainer.evaluate`` is called.

    Attributes:
        arguments: By name.
        loader: Batches in place of those of ``get_eval_dataloader``.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    loader: Any = None

    @property
    def prefix(self) -> str:
        """What the names of its metrics begin with."""
        return self.arguments.get("metric_key_prefix", "eval")


class TrainerSource:
    """Predict and score as a Trainer; see `Source` for the attributes."""

    def __init__(self, trainer: Trainer, dataset: Any, metric: Any, start: RandomStreams) -> None:
        self._trainer: Any = trainer
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.device = trainer.args.device
        self._given = dataset
        self._evaluation = _evaluation_of(trainer, dataset)
        self._start = start
        self._starts: dict[str, RandomStreams] = {}
        self._kept: dict[int, KeptBatches] = {}
        self._instead = _settings_for(metric)
        self._needs_labels = callable(self._instead.get("compute_metrics"))
        self._shift = LabelShift(self._loss_of) if isinstance(metric, str) and metric == "perplexity" else None
        batchwise = trainer.args.batch_eval_metrics and trainer.compute_metrics is not None and metric is None
        self.in_turn = has_own_evaluation(trainer) or batchwise
        # `generate` calls the decoder many times a batch, so there is no one path of layers to remember.
        self.shares_prefixes = not self.in_turn and not getattr(trainer.args, "predict_with_generate", False)

    @property
    def batches(self) -> Batches:
        """The inputs, the same at every reading."""
        loader = self._evaluation.loader
        if loader is None:
            loader = self._trainer.get_eval_dataloader(*([] if self._given is None else [self._given]))
        return SteadyLoader(loader, self._start)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Evaluate inside the ``with`` block: nobody hears of it, and modes, types and random streams come back."""
        trainer = self._trainer
        with ExitStack() as undo:
            undo.enter_context(unmoved_streams())
            undo.enter_context(_muted(trainer))
            undo.enter_context(types_kept(self.model))
            undo.enter_context(eval_mode(trainer.model))
            if self._instead:
                whole = {"batch_eval_metrics": False, "eval_do_concat_batches": True}
                undo.enter_context(replaced(trainer.args, **whole))
                undo.enter_context(replaced(trainer, **self._instead))
            if self._evaluation.loader is not None:
                loader = self._evaluation.loader
                undo.enter_context(replaced(trainer, get_eval_dataloader=lambda *args, **kwargs: loader))
            yield

    def read(self, visit: Callable[[Reading], None]) -> None:
        """Call ``evaluate`` once, and show each of its evaluation sets to ``visit`` where it would begin its loop."""

        def loop(
            dataloader: Any,
            description: str,
            prediction_loss_only: bool | None = None,
            ignore_keys: list[str] | None = None,
            metric_key_prefix: str = "eval",
        ) -> EvalLoopOutput:
            gather = self._trainer.gather_function  # which the end of Trainer's loop takes back
            step = prepared_step(self._trainer, description, prediction_loss_only, ignore_keys)
            self._step_of_shift = step
            name = metric_key_prefix.removeprefix(self._evaluation.prefix).removeprefix("_")
            start = self._starts.setdefault(name, self._start.with_own_of(dataloader))
            tally = partial(TrainerTally, self._trainer, gather, self._tokens, self._needs_labels)
            visit(Reading(name, SteadyLoader(dataloader, start), self._prepare, step, tally))
            return EvalLoopOutput(None, None, {}, 0)

        with replaced(self._trainer, evaluation_loop=loop):
            self._evaluate()

    def evaluate_alone(self, note: Callable[[Stopwatch], None]) -> dict[str, Any]:
        """Call ``evaluate`` as it is, and return its metrics; ``note`` is told the time of each prediction step.

        All calls see the batches of the first.
        """
        trainer, tokens, loaders = self._trainer, self._tokens(), 0
        step, load = trainer.prediction_step, trainer.get_eval_dataloader

        def noted_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            watch = Stopwatch(self.device)
            outputs = step(model, inputs, *args, **kwargs)
            note(watch.stop())
            if tokens is not None and outputs[0] is not None:
                self._step_of_shift = lambda batch: step(model, batch, True)
                tokens.add(inputs, outputs[0])
            return outputs

        def kept_batches(*args: Any, **kwargs: Any) -> Any:
            nonlocal loaders
            number, loaders = loaders, loaders + 1
            if number not in self._kept:
                loader = load(*args, **kwargs)
                self._kept[number] = KeptBatches(SteadyLoader(loader, self._start.with_own_of(loader)))
            return self._kept[number]

        with unmoved_streams(), replaced(trainer, prediction_step=noted_step, get_eval_dataloader=kept_batches):
            self._start.restore()
            metrics = self._evaluate()
        return {**self._named(metrics), **(tokens.metrics() if tokens is not None else {})}

    def _evaluate(self) -> Mapping[str, Any]:
        given = self._evaluation
        with ExitStack() as undo:
            if given.loader is not None and "eval_dataset" not in given.arguments:
                data = getattr(given.loader, "dataset", given.loader)
                undo.enter_context(replaced(self._trainer, eval_dataset=data))
            return self._trainer.evaluate(**given.arguments)

    def _named(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said of the model, without the prefix of the evaluation."""
        prefix = f"{self._evaluation.prefix}_"
        return {
            name.removeprefix(prefix if name.startswith(prefix) else "eval_"): value
            for name, value in metrics.items()
            if not name.endswith(_OF_THE_RUN) and name not in _OF_THE_TRAINING
        }

    def _prepare(self, batch: Any) -> Any:
        if self._shift is not None:
            self._shift.of(batch)
        return batch

    def _loss_of(self, batch: Any) -> torch.Tensor:
        return self._step_of_shift(batch)[0]

    def _tokens(self) -> TokenLosses | None:
        if self._shift is None:
            return None
        return TokenLosses(self._shift, self._trainer.accelerator.gather_for_metrics, self._divisor_of)

    def _divisor_of(self, batch: Any) -> torch.Tensor | None:
        """Return what Trainer lets a loss be divided by: all labels, also where the head has none for the first."""
        shift = self._shift
        if shift is None or not shift.of(batch) or not self._trainer.model_accepts_loss_kwargs:
            return None
        return None if getattr(self._trainer, compat.SHIFTED_LABELS.name, True) else batch["labels"].ne(-100).sum()


def evaluates_as_trainer(method: Method) -> Method:
    """Mark an ``evaluate``, ``evaluation_loop`` or ``log`` that does for an evaluation what the one below it does."""
    _AS_TRAINER.add(method)
    return method


def has_own_evaluation(trainer: Trainer) -> bool:
    """Tell whether a Trainer evaluates or logs in another way than those of transformers."""
    return any(_method_of(trainer, name) not in _COPIED for name in ("evaluate", "evaluation_loop", "log"))


def _method_of(trainer: Trainer, name: str) -> Any:
    """Return the method that a call comes to, past those that hand an evaluation on."""
    defined = (vars(holder).get(name) for holder in (trainer, *type(trainer).__mro__))
    return next(method for method in defined if method is not None and method not in _AS_TRAINER)


def has_own_loader(trainer: Trainer) -> bool:
    """Tell whether a Trainer makes its evaluation batches in another way, and may need no data set for it."""
    return getattr(trainer.get_eval_dataloader, "__func__", None) is not Trainer.get_eval_dataloader


def _evaluation_of(trainer: Trainer, dataset: Any) -> Evaluation:
    """Return how ``evaluate`` is called for a data set.

    Raises:
        TaskError: If there is none.
    """
    if isinstance(dataset, Evaluation):
        return dataset
    if isinstance(dataset, torch.utils.data.DataLoader):
        return Evaluation(loader=dataset)
    if dataset is None and trainer.eval_dataset is None and not has_own_loader(trainer):
        raise TaskError("The Trainer has no eval_dataset; give it one, or pass a dataset to evaluate_depths.")
    return Evaluation({} if dataset is None else {"eval_dataset": dataset})


def _settings_for(metric: Any) -> dict[str, Any]:
    """Return what a metric of one's own puts in place of a Trainer's."""
    if metric is None:
        return {}
    if isinstance(metric, str) and metric in LOSS_ALONE:
        return {"compute_metrics": None}
    function = as_metric(metric)
    return {"compute_metrics": lambda evaluated: as_dict(function(evaluated))}


@contextmanager
def _muted(trainer: Any) -> Iterator[None]:
    """Let nobody hear of an evaluation: no callback, no record of it, no measurement of its memory."""
    handler, state = trainer.callback_handler, trainer.state
    with (
        replaced(handler, callbacks=[], eval_dataloader=getattr(handler, "eval_dataloader", None)),
        replaced(state, log_history=list(state.log_history)),
        replaced(
            trainer,
            control=copy.copy(trainer.control),
            gather_function=trainer.gather_function,
            **{compat.MEMORY_TRACKER.name: TrainerMemoryTracker(skip_memory_metrics=True)},
        ),
    ):
        yield


def arguments_of(frame: Any) -> dict[str, Any]:
    """Return the arguments of the ``evaluate`` that a frame is of, as they are now, such as to call it again."""
    arguments: dict[str, Any] = {}
    values = frame.f_locals
    for name, parameter in inspect.signature(type(values["self"]).evaluate).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= values.get(name, {})
        elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL and name in values:
            arguments[name] = values[name]
    return arguments
