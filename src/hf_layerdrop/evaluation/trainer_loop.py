"""The loop of ``Trainer.evaluate``, in the parts that several sub-networks go through together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import EvalLoopContainer, find_batch_size
from transformers.trainer_utils import denumpify_detensorize

from hf_layerdrop import compat
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.batches import size_in_bytes
from hf_layerdrop.evaluation.confidence import NO_ROWS, rows_of
from hf_layerdrop.evaluation.perplexity import TokenLosses


class TrainerTally:
    """What Trainer's ``evaluation_loop`` keeps of one model and one data set, and how it scores it; its copy."""

    def __init__(
        self,
        trainer: Any,
        gather: Callable[[Any], Any],
        tokens: Callable[[], TokenLosses | None],
        needs_labels: bool,
    ) -> None:
        self._trainer = trainer
        self._gather = gather
        self._tokens = tokens()
        self._needs_labels = needs_labels
        self._losses, self._predictions, self._labels, self._inputs = (
            EvalLoopContainer(trainer.args.eval_do_concat_batches, padding_index=-100) for _ in range(4)
        )
        self._batch_size = trainer.args.eval_batch_size
        self._batches = 0
        self.size = 0
        self.rows = NO_ROWS

    def add(self, batch: Any, outputs: tuple[Any, Any, Any]) -> None:
        """Take what it gave for a batch."""
        trainer, args = self._trainer, self._trainer.args
        loss, logits, labels = outputs
        self._batch_size = self._batch_size or find_batch_size(batch)
        pad = partial(trainer.accelerator.pad_across_processes, dim=1, pad_index=-100)
        if loss is not None:
            self._losses.add(self._gather(loss.repeat(self._batch_size)))
            if self._tokens is not None:
                self._tokens.add(batch, loss)
        if "inputs" in args.include_for_metrics:
            main_input = batch[getattr(trainer.model, "main_input_name", "input_ids")]
            self._add(self._inputs, self._gather(pad(send_to_device(main_input, args.device))))
        labels = None if labels is None else pad(labels)
        if logits is not None:
            logits = pad(logits)
            if trainer.preprocess_logits_for_metrics is not None:
                logits = trainer.preprocess_logits_for_metrics(logits, labels)
            self._add(self._predictions, self._gather(logits))
        if labels is not None:
            self._add(self._labels, self._gather(labels))
        self._batches += 1
        if args.eval_accumulation_steps is not None and self._batches % args.eval_accumulation_steps == 0:
            for container in (self._losses, self._predictions, self._labels, self._inputs):
                container.to_cpu_and_numpy()

    def metrics(self) -> dict[str, Any]:
        """Score all of it."""
        trainer, args = self._trainer, self._trainer.args
        losses, predictions, labels, inputs = (
            container.get_arrays() for container in (self._losses, self._predictions, self._labels, self._inputs)
        )
        if self._needs_labels and self._batches and (predictions is None or labels is None):
            raise TaskError(
                "The metric compares predictions with labels, but the data has no 'labels' or the model no logits; "
                "give data with labels, or metric='loss'."
            )
        self.rows = rows_of(labels)
        metrics: Mapping[str, Any] = {}
        if trainer.compute_metrics is not None and predictions is not None and labels is not None:
            asked = {
                "losses": losses if "loss" in args.include_for_metrics else None,
                "inputs": inputs if "inputs" in args.include_for_metrics else None,
            }
            metrics = trainer.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels, **asked))
        named = {name.removeprefix("eval_"): value for name, value in denumpify_detensorize(dict(metrics)).items()}
        losses = np.concatenate(losses) if isinstance(losses, list) and losses else losses
        if isinstance(losses, np.ndarray):
            finite = np.isfinite(losses)
            losses = losses[finite] if args.logging_nan_inf_filter and finite.any() else losses
            named.setdefault("loss", losses.mean().item())
        return {**named, **(self._tokens.metrics() if self._tokens is not None else {})}

    def _add(self, container: EvalLoopContainer, value: Any) -> None:
        container.add(value)
        self.size += size_in_bytes(value)


def prepared_step(trainer: Any, description: str, loss_only: bool | None, ignore_keys: Any) -> Callable[[Any], Any]:
    """Let Trainer's own loop make everything ready, and return the prediction step that it then would take."""
    found: list[Any] = []

    def note(model: Any, inputs: Any, loss_only: bool, ignore_keys: Any = None) -> tuple[None, None, None]:
        found.append((model, loss_only))
        return None, None, None

    nothing = {getattr(trainer.model, "main_input_name", "input_ids"): torch.zeros(1, 1)}
    with replaced(trainer, prediction_step=note):
        Trainer.evaluation_loop(trainer, [nothing], description, loss_only, ignore_keys)
    ((model, loss_only),) = found
    return lambda batch: trainer.prediction_step(model, batch, loss_only, ignore_keys=ignore_keys)


@contextmanager
def types_kept(model: torch.nn.Module) -> Iterator[None]:
    """Put weights back that an evaluation in half precision casts; they are held, not copied."""
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(getattr(module, compat.BUFFERS.name))) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, data in weights:
            if parameter.dtype != data.dtype:
                parameter.data = data
        for module, before in buffers:
            present = getattr(module, compat.BUFFERS.name)
            for name, buffer in before.items():
                if buffer is not None and present[name] is not None and present[name].dtype != buffer.dtype:
                    present[name] = buffer


@contextmanager
def replaced(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object for the length of a ``with`` block."""
    before = {name: vars(target)[name] for name in values if name in vars(target)}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(target, name, before[name])
            else:
                vars(target).pop(name, None)
