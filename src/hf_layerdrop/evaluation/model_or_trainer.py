"""Where the numbers of a sub-network come from: a model alone, or a Trainer with its own steps, loaders and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer, default_data_collator
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_layerdrop import compat
from hf_layerdrop.architectures.wrappers import transformers_model
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import named_metric, predicted

if TYPE_CHECKING:
    import evaluate

Metric: TypeAlias = Callable[[EvalPrediction], Mapping[str, SupportsFloat] | SupportsFloat]
AnyMetric: TypeAlias = "Metric | str | evaluate.Metric"
Batches: TypeAlias = Iterable[Mapping[str, Any]]
# What a data set gives, the collator takes: neither is anything that could be said here.
Data: TypeAlias = Batches | Dataset[Any]
Collator: TypeAlias = Callable[[list[Any]], Mapping[str, Any]]


class ModelSource:
    """Predict and score with a model alone."""

    def __init__(self, model: PreTrainedModel, metric: Any) -> None:
        self.model = model
        inner = transformers_model(model)  # a plain module may stand around it
        self.device = inner.device
        self.shares_prefixes = True
        if metric is None and "ForSequenceClassification" in type(inner).__name__ and inner.num_labels > 1:
            metric = "accuracy"
        self._metric = as_metric(metric) if metric is not None and metric != "loss" else None

    def prepare(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move a batch to the model."""
        return {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}

    def predict(self, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return loss, predictions and labels of a batch, None where there are none."""
        with torch.no_grad():
            outputs = self.model(**batch)
        labels = batch.get("labels", batch.get("label"))
        logits = outputs.get("logits")
        return outputs.get("loss"), logits if self.keeps_predictions else None, labels

    @property
    def keeps_predictions(self) -> bool:
        """Whether a metric needs the predictions; the loss alone does not."""
        return self._metric is not None

    def score(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Compute the metrics of all predictions."""
        return _as_dict(self._metric(EvalPrediction(predictions, labels))) if self._metric else {}

    def gather(self, value: Any) -> Any:
        """Collect a value over processes: there is one."""
        return value


class TrainerSource:
    """Predict and score as a Trainer does in `Trainer.evaluate`."""

    def __init__(self, trainer: Trainer, metric: Any) -> None:
        self._trainer = trainer
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.device = trainer.args.device
        self._metric = trainer.compute_metrics
        if metric is not None:
            self._metric = as_metric(metric) if metric != "loss" else None
        if metric is None:
            check_compute_metrics(trainer)
        # `generate` calls the decoder many times a batch, so there is no one path of layers to remember.
        self.shares_prefixes = not getattr(trainer.args, "predict_with_generate", False)
        if not self.shares_prefixes:
            _use_generation_arguments(trainer)
        inner = transformers_model(self.model)
        if inner.device != self.device and getattr(inner, "hf_device_map", None) is None:
            self.model.to(self.device)

    @property
    def keeps_predictions(self) -> bool:
        """Whether a metric needs the predictions; the loss alone does not."""
        return self._metric is not None

    def prepare(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave a batch as it is: `prediction_step` moves it."""
        return batch

    def predict(self, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return loss, predictions and labels of a batch, None where there are none."""
        loss, predictions, labels = self._trainer.prediction_step(
            self._trainer.model, batch, prediction_loss_only=not self.keeps_predictions
        )
        if predictions is not None and self._trainer.preprocess_logits_for_metrics is not None:
            predictions = self._trainer.preprocess_logits_for_metrics(predictions, labels)
        return loss, predictions, labels

    def score(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Compute the metrics of all predictions."""
        return _as_dict(self._metric(EvalPrediction(predictions, labels))) if self._metric else {}

    def gather(self, value: Any) -> Any:
        """Collect a value over processes."""
        padded = self._trainer.accelerator.pad_across_processes(value, dim=1, pad_index=-100)
        return self._trainer.accelerator.gather_for_metrics(padded)


Source = ModelSource | TrainerSource


def check_compute_metrics(trainer: Trainer) -> None:
    """Refuse what makes ``compute_metrics`` expect something else than all predictions and labels in one piece.

    Raises:
        TaskError: If it would get batch after batch, a list of batches, or inputs and losses besides.
    """
    args = trainer.args
    given = {
        "batch_eval_metrics=True": args.batch_eval_metrics,
        f"include_for_metrics={args.include_for_metrics}": bool(args.include_for_metrics),
        "eval_do_concat_batches=False": not args.eval_do_concat_batches,
    }
    if trainer.compute_metrics is not None and (unfit := [name for name, is_given in given.items() if is_given]):
        raise TaskError(
            "Sub-networks are measured by all predictions and labels at once, which "
            f"{' and '.join(unfit)} would change for compute_metrics: leave it out of the TrainingArguments, or pass "
            "metric= to evaluate_depths."
        )


@contextmanager
def quiet_eval(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate without dropout and without filling caches that nobody reads; put both back afterwards."""
    held: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = list({id(config): config for config in held if getattr(config, "use_cache", None)}.values())
    for config in configs:
        config.use_cache = False
    try:
        with eval_mode(model):
            yield
    finally:
        for config in configs:
            config.use_cache = True


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate without dropout; put every module back into its mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def trainer_loaders(trainer: Trainer, dataset: Any) -> dict[str, DataLoader]:
    """Return the data loaders of a Trainer's evaluation sets by name; an only one has none.

    Raises:
        TaskError: If there is no evaluation set.
    """
    datasets = dataset if dataset is not None else trainer.eval_dataset
    if datasets is None:
        raise TaskError("The Trainer has no eval_dataset; give it one, or pass a dataset to evaluate_depths.")
    if isinstance(dataset, DataLoader):
        return {"": dataset}
    with _order_drawn_once(trainer):
        if isinstance(datasets, dict):
            return {name: trainer.get_eval_dataloader(part) for name, part in datasets.items()}
        return {"": trainer.get_eval_dataloader(datasets)}


@contextmanager
def _order_drawn_once(trainer: Any) -> Iterator[None]:
    """Give data loaders of a Trainer that groups rows by length the same order at every reading, and in every run.

    It would draw another each time, from the global generator: sub-networks that are measured one after the other would
    see other batches, and share nothing.
    """
    name = compat.EVALUATION_SAMPLER.name
    sampler_of = getattr(trainer, name)

    def drawn_once(dataset: Any) -> Any:
        sampler = sampler_of(dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        sampler.generator = torch.Generator().manual_seed(0)
        return list(sampler)

    setattr(trainer, name, drawn_once)
    try:
        yield
    finally:
        delattr(trainer, name)


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
        return named_metric(metric)
    if hasattr(metric, "compute"):
        return partial(_compute, metric)
    return metric


def _use_generation_arguments(trainer: Any) -> None:
    """Generate as `Seq2SeqTrainer.evaluate` does, which hands these to its prediction steps in this attribute."""
    given = {"max_length": trainer.args.generation_max_length, "num_beams": trainer.args.generation_num_beams}
    attribute = compat.GENERATION_ARGUMENTS.name
    if not getattr(trainer, attribute, None):
        setattr(trainer, attribute, {name: value for name, value in given.items() if value is not None})


def _compute(metric: Any, evaluated: EvalPrediction) -> Mapping[str, float]:
    logits = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
    regression = logits.ndim == 1 or logits.shape[-1] == 1
    return metric.compute(predictions=predicted(logits, regression=regression), references=evaluated.label_ids)


def _as_dict(value: Mapping[str, SupportsFloat] | SupportsFloat) -> dict[str, float]:
    return (
        {name: float(number) for name, number in value.items()}
        if isinstance(value, Mapping)
        else {"metric": float(value)}
    )
