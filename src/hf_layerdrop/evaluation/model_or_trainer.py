"""Where the numbers of a sub-network come from: a model alone, or a Trainer, whose source is `trainer_source`."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PreTrainedModel, default_data_collator
from transformers.trainer_pt_utils import EvalLoopContainer, nested_detach
from transformers.trainer_utils import denumpify_detensorize

from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.batches import SteadyLoader, size_in_bytes
from hf_layerdrop.evaluation.confidence import NO_ROWS, Rows, rows_of
from hf_layerdrop.evaluation.metrics import named_metric, predicted
from hf_layerdrop.evaluation.perplexity import LabelShift, TokenLosses
from hf_layerdrop.evaluation.random_streams import RandomStreams

if TYPE_CHECKING:
    import evaluate

Metric: TypeAlias = Callable[[EvalPrediction], Mapping[str, SupportsFloat] | SupportsFloat]
AnyMetric: TypeAlias = "Metric | str | evaluate.Metric"
Batches: TypeAlias = Iterable[Mapping[str, Any]]
# What a data set gives, the collator takes: neither is anything that could be said here.
Data: TypeAlias = Batches | Dataset[Any]
Collator: TypeAlias = Callable[[list[Any]], Mapping[str, Any]]
LOSS_ALONE = ("loss", "perplexity")  # names of metrics that need no predictions


class Tally(Protocol):
    """What one sub-network has shown so far on one data set.

    Attributes:
        size: Of its predictions, in bytes.
        rows: How many rows they were, once they are scored.
    """

    size: int
    rows: Rows

    def add(self, batch: Mapping[str, Any], outputs: Any) -> None:
        """Take what it gave for a batch."""

    def metrics(self) -> dict[str, Any]:
        """Score all of it."""


@dataclass(frozen=True)
class Reading:
    """One data set, ready to be read: every sub-network takes each batch in turn.

    Attributes:
        name: Of the evaluation set; empty for an only one.
        loader: Its batches, the same at every reading.
        prepare: What is done with a batch once.
        predict: What is done with it for each sub-network.
        tally: Where the outputs of one sub-network go.
    """

    name: str
    loader: Any
    prepare: Callable[[Any], Any]
    predict: Callable[[Any], Any]
    tally: Callable[[], Tally]


class Source(Protocol):
    """A model, its data, and how it is scored.

    Attributes:
        model: What is cut.
        device: Where it runs.
        shares_prefixes: Whether layers are asked once a batch, so that sub-networks can share what they give.
        in_turn: Whether sub-networks are evaluated one after the other, by the source's own ``evaluate``.
        batches: The inputs, for who looks at the model at work.
    """

    model: Any
    device: torch.device
    shares_prefixes: bool
    in_turn: bool

    @property
    def batches(self) -> Batches: ...  # noqa: D102

    def ready(self) -> AbstractContextManager[None]:
        """Evaluate inside the ``with`` block."""

    def read(self, visit: Callable[[Reading], None]) -> None:
        """Show every evaluation set to ``visit``."""


class ModelSource:
    """Predict and score with a model alone."""

    in_turn = False
    shares_prefixes = True

    def __init__(self, model: PreTrainedModel, batches: Batches, metric: Any, start: RandomStreams) -> None:
        self.model = model
        inner = transformers_model(model)  # a plain module may stand around it
        self.device = inner.device
        self.batches = steady(batches, start)
        if metric is None and "ForSequenceClassification" in type(inner).__name__ and inner.num_labels > 1:
            metric = "accuracy"
        wants_tokens = _is_name(metric, ("perplexity",))
        self._shift = LabelShift(lambda batch: self._predict(batch)[0]) if wants_tokens else None
        self._metric = None if metric is None or _is_name(metric, LOSS_ALONE) else as_metric(metric)

    def ready(self) -> AbstractContextManager[None]:
        """Evaluate inside the ``with`` block."""
        return quiet_eval(self.model)

    def read(self, visit: Callable[[Reading], None]) -> None:
        """Show the data to ``visit``."""
        visit(Reading("", self.batches, self._prepare, self._predict, self._tally))

    def _prepare(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        batch = on_device(batch, self.device)
        if self._shift is not None:
            self._shift.of(batch)
        return batch

    def _predict(self, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        with torch.no_grad():
            outputs = self.model(**batch)
        labels = batch.get("labels", batch.get("label"))
        logits = outputs.get("logits")
        return outputs.get("loss"), logits if self._metric else None, labels

    def _tally(self) -> Tally:
        return _ModelTally(self._metric, TokenLosses(self._shift) if self._shift else None)


@dataclass
class _ModelTally:
    metric: Metric | None
    tokens: TokenLosses | None
    losses: list[torch.Tensor] = field(default_factory=list)  # one value an example
    predictions: EvalLoopContainer = field(default_factory=EvalLoopContainer)
    labels: EvalLoopContainer = field(default_factory=EvalLoopContainer)
    size: int = 0
    rows: Rows = NO_ROWS

    def add(self, batch: Mapping[str, Any], outputs: tuple[Any, Any, Any]) -> None:
        loss, predictions, labels = outputs
        if loss is not None:
            self.losses.append(loss.detach().mean().repeat(examples_in(batch)))
            if self.tokens is not None:
                self.tokens.add(batch, loss)
        if predictions is not None and labels is not None:
            for container, value in ((self.predictions, nested_detach(predictions)), (self.labels, labels)):
                container.add(value)
                self.size += size_in_bytes(value)

    def metrics(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.metric is not None:
            labels = self.labels.get_arrays()
            if labels is None:
                raise TaskError(
                    "The metric compares predictions with labels, but the data has no 'labels' or the model no "
                    "logits; give data with labels, or metric='loss'."
                )
            values = dict(as_dict(self.metric(EvalPrediction(self.predictions.get_arrays(), labels))))
            self.rows = rows_of(labels)
        if self.losses:
            losses = torch.cat(self.losses)
            values["loss"] = float(losses.double().mean())
            self.rows = self.rows if self.rows.number else Rows(len(losses))
        if self.tokens is not None:
            values |= self.tokens.metrics()
        return values


def steady(loader: Any, start: RandomStreams) -> Any:
    """Return batches that are the same at every reading; those in a list are."""
    return loader if type(loader) in (list, tuple) else SteadyLoader(loader, start)


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers; of the others (a matrix, a list by class) a warning says that they are not.

    Trainer keeps them in its own log. A table of depths has no place for them.
    """
    values = denumpify_detensorize(dict(metrics))
    others = [name for name, value in values.items() if not isinstance(value, numbers.Real)]
    if others:
        warnings.warn(
            f"Metric {', '.join(others)} is no number, and is left out of what is said of sub-networks.", stacklevel=2
        )
    return {name: float(value) for name, value in values.items() if name not in others}


@contextmanager
def quiet_eval(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate without dropout and without filling caches that nobody reads; put both back afterwards."""
    held: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = list({id(config): config for config in held if getattr(config, "use_cache", None)}.values())
    try:
        for config in configs:
            config.use_cache = False
        with eval_mode(model):
            yield
    finally:
        for config in configs:
            config.use_cache = True


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluate without dropout; put every module back into its mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def as_batches(dataset: Any, batch_size: int, collator: Any) -> Batches:
    """Return the batches of a dataset, which may be batches already.

    Raises:
        TaskError: If there is no dataset.
    """
    if dataset is None:
        raise TaskError("evaluate_depths got a model but no dataset; pass batches or a data set of examples.")
    if isinstance(dataset, DataLoader):
        return dataset
    if not hasattr(dataset, "__getitem__"):
        return list(dataset)
    if holds_batches(dataset):
        return dataset
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collator or default_data_collator)


def holds_batches(dataset: Any) -> bool:
    """Tell a sequence of batches from one of examples: the token ids of a batch have two dimensions."""
    return bool(len(dataset)) and all(
        torch.is_tensor(value) and value.dim() > 1 for name, value in dataset[0].items() if name == "input_ids"
    )


def as_metric(metric: Any) -> Metric:
    """Turn every form of a metric into a function from `EvalPrediction` to numbers.

    Raises:
        TaskError: If it is a name that is not known.
    """
    if isinstance(metric, str):
        return named_metric(metric, beside=LOSS_ALONE)
    if hasattr(metric, "compute"):
        return partial(_compute, metric)
    return metric


def as_dict(value: Mapping[str, Any] | SupportsFloat) -> Mapping[str, Any]:
    """Give a metric that is a number alone a name."""
    return value if isinstance(value, Mapping) else {"metric": value}


def examples_in(batch: Mapping[str, Any]) -> int:
    """Return how many examples a batch has."""
    return next((len(value) for value in batch.values() if torch.is_tensor(value)), 1)


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device, for which nothing waits."""
    return {
        name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for name, value in batch.items()
    }


def _is_name(metric: Any, names: tuple[str, ...]) -> bool:
    return isinstance(metric, str) and metric in names


def _compute(metric: Any, evaluated: EvalPrediction) -> Mapping[str, float]:
    logits = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
    regression = logits.ndim == 1 or logits.shape[-1] == 1
    return metric.compute(predictions=predicted(logits, regression=regression), references=evaluated.label_ids)
