"""Rows -> the model's inputs: cut to a length here, padded batch by batch in the collator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.classification import padding_collator
from hf_layerdrop.tasks.data import TaskData
from hf_layerdrop.tasks.kind import Encoding
from hf_layerdrop.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["MAX_LENGTH", "padding_collator", "tokenize"]

MAX_LENGTH = 128  # what the paper's authors and most others use for GLUE


def tokenize(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    max_target_length: int | None = None,
    positions: int | None = None,
    strict: bool = False,
) -> TaskData:
    """Encode every split as the task wants it; the columns of the data give way to the model's inputs.

    Args:
        data: What `load_task_data` returned.
        tokenizer: The model's tokenizer.
        max_length: Longer inputs are cut, at the latest where the tokenizer says that its model ends; None for what is
            usual for the task.
        max_target_length: The same for texts that are generated.
        positions: Most tokens that the model has positions for; None if it has no limit.
        strict: Refuse data with inputs that would be cut.

    Raises:
        TaskError: If the length leaves no room for a word, the tokenizer cannot pad or trace tokens back to words,
            or, with ``strict``, if an input is too long.
    """
    kind = data.task.kind
    limit = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    length = min(max_length or data.task.max_length, limit)
    target_length = min(max_target_length or kind.max_target_length, limit)
    _check_tokenizer(data.task, tokenizer, length)
    examples: list[Any] = []
    cut = {}

    def encoded(name: str, rows: Dataset, *, training: bool) -> Dataset:
        encoding = Encoding(data.task, tokenizer, length, target_length, training, examples=examples)
        inputs = kind.encode(rows, encoding)
        cut[name] = encoding.cut
        if strict and encoding.cut:
            target = f" (or {target_length} of a target)" if kind.generation else ""
            raise TaskError(
                f"{encoding.cut} of {len(rows)} rows of the {name} data are longer than {length} tokens{target}: give "
                "a larger --max-length, a model with more positions, or leave --strict out to have them cut."
            )
        return inputs

    train = None if data.train is None else encoded("train", data.train, training=True)
    validation = {name: encoded(name, rows, training=False) for name, rows in data.validation.items()}
    return replace(data, train=train, validation=validation, examples=examples, cut=cut, max_length=length)


def _check_tokenizer(task: Task, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if length <= special:
        raise TaskError(f"max_length is {length}, but the tokenizer adds {special} special tokens; give a larger one.")
    if tokenizer.pad_token is None and task.kind.needs_padding:
        raise TaskError(
            f"The tokenizer {tokenizer.name_or_path!r} has no padding token; set its pad_token and save it again."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # of the end of a validation set alone, where it is not looked at
    if task.kind.needs_words and not tokenizer.is_fast:
        raise TaskError(
            f"The tokenizer {tokenizer.name_or_path!r} does not say where its tokens stand in the text, which "
            f"{task.name} needs: take a fast one (tokenizer.json)."
        )
