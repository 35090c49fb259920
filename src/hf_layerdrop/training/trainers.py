"""Trainers of tasks: what scores generated text and answers needs to know of which row they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainer, Trainer, TrainingArguments

from hf_layerdrop import compat
from hf_layerdrop.errors import TaskError, UnsupportedModelError
from hf_layerdrop.models.mixin import plain_class
from hf_layerdrop.tasks.task import ROW_NUMBERS, Task, TaskData
from hf_layerdrop.training.accumulation import LossScaling

_MASK = "special_tokens_mask"  # what the masking of tokens wants, and no model


class _KnowsRows:
    """Mixin of a Trainer: hand the numbers of the rows to ``compute_metrics``, in place of labels."""

    def prediction_step(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict without the numbers, and return them as the labels."""
        numbers = inputs.get(ROW_NUMBERS)
        inputs = {name: value for name, value in inputs.items() if name != ROW_NUMBERS}
        loss, predictions, labels = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if numbers is None or predictions is None:
            return loss, predictions, labels
        return loss, predictions, numbers.to(self.args.device)  # type: ignore[attr-defined]


def _set_columns(trainer: _KnowsRows) -> None:
    getattr(super(_KnowsRows, trainer), compat.SET_SIGNATURE_COLUMNS.name)()
    columns: list[str] = getattr(trainer, compat.SIGNATURE_COLUMNS.name)
    columns += [name for name in (ROW_NUMBERS, _MASK) if name not in columns]


compat.SET_SIGNATURE_COLUMNS.replace(_KnowsRows, _set_columns)


class TaskTrainer(_KnowsRows, LossScaling, Trainer):
    """A Trainer for tasks whose predictions are scored against whole rows."""


class GeneratingTrainer(_KnowsRows, LossScaling, Seq2SeqTrainer):
    """A Trainer for tasks that are scored on generated text."""


def build_trainer(
    data: TaskData,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    *,
    callbacks: Sequence[Any] = (),
    trainer_class: Callable[..., Trainer] | None = None,
    **more: Any,
) -> Trainer:
    """Return a Trainer for encoded data, with the collator and the metric of its task.

    Args:
        data: The task and its encoded rows.
        model: What is trained or measured.
        tokenizer: Its tokenizer.
        arguments: Trainer's settings.
        callbacks: Trainer's callbacks.
        trainer_class: A Trainer of the same kind instead, such as one that distils.
        **more: What that one takes besides.

    Raises:
        TaskError: If the task generates and the arguments are not those of a trainer that does.
    """
    task = data.task
    if task.generation is not None and not getattr(arguments, "predict_with_generate", False):
        raise TaskError(
            f"Task {task.name} is scored on generated text: give Seq2SeqTrainingArguments with "
            "predict_with_generate=True."
        )
    if task.generation is not None:
        _set_generation(model, task)
    usual = GeneratingTrainer if task.generation else TaskTrainer
    return (trainer_class or usual)(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=next(iter(data.validation.values())),
        processing_class=tokenizer,
        data_collator=task.collator(tokenizer, model),
        compute_metrics=task.metric(data, tokenizer),
        preprocess_logits_for_metrics=task.kind.reduce,
        callbacks=list(callbacks),
        **more,
    )


def generation_flags(task: Task, max_target_length: int | None, num_beams: int | None) -> dict[str, Any]:
    """Return the settings of Seq2SeqTrainingArguments for a task that generates; empty for others."""
    if task.generation is None:
        return {}
    return {
        "predict_with_generate": True,
        "generation_max_length": max_target_length or task.kind.max_target_length,
        "generation_num_beams": num_beams or task.generation.num_beams,
    }


def _set_generation(model: PreTrainedModel, task: Task) -> None:
    generation = task.generation
    assert generation is not None
    if generation.length_penalty is not None:
        model.generation_config.length_penalty = generation.length_penalty
    if generation.no_repeat_ngram_size:
        model.generation_config.no_repeat_ngram_size = generation.no_repeat_ngram_size


def check_head(model: PreTrainedModel, task: Task, name: str) -> None:
    """Refuse a checkpoint that was saved without the head of the task: it would be measured with a random one.

    Raises:
        UnsupportedModelError: If its class is not one of those with the head.
    """
    classes = {getattr(known, "__name__", known) for known in _head_classes(task)}
    found = plain_class(type(model)).__name__
    if found not in classes:
        raise UnsupportedModelError(
            f"{name!r} is a {found}, but task {task.name} measures models with the head of "
            f"{task.model_class.auto_class.__name__}: train one first, with hf-layerdrop train --task {task.name}."
        )


def _head_classes(task: Task) -> set[Any]:
    found: set[Any] = set()
    for value in getattr(task.model_class.auto_class, compat.CLASSES_BY_CONFIG.name).values():
        found |= set(value) if isinstance(value, tuple | list) else {value}
    return found


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Raises:
        TaskError: If it has more.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise TaskError(
            f"The tokenizer has {len(tokenizer):,} tokens, but {name!r} has embeddings for {rows:,}: give the "
            "tokenizer that the model was trained with."
        )


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose tokens see later ones: its perplexity would mean nothing.

    Raises:
        UnsupportedModelError: If a change of the last token changes what comes before it.
    """
    was_training = model.training
    model.eval()
    tokens = torch.zeros((2, 3), dtype=torch.long, device=model.device)
    tokens[1, -1] = 1
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, 0]
    model.train(was_training)
    if not torch.allclose(logits[0], logits[1], atol=1e-5, rtol=1e-4):
        raise UnsupportedModelError(
            f"{name!r} looks at later tokens to predict one, so it is no causal language model: take task mlm, or set "
            "is_decoder in its config."
        )


def positions_of(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model has positions for; None if it has no table of them."""
    config = model.config
    limit = getattr(config, "max_position_embeddings", None)
    for path, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if "position" in path and isinstance(module, torch.nn.Embedding) and padding is not None:
            return module.num_embeddings - padding - 1  # counted from after the padding's, as in RoBERTa
    return limit if isinstance(limit, int) and limit > 0 else None
