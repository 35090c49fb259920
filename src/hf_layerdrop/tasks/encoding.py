"""Text -> token numbers: truncated to a length here, padded batch by batch in the collator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.data import TaskData
from hf_layerdrop.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

MAX_LENGTH = 128  # what the paper's authors and most others use for GLUE


def tokenize(data: TaskData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH) -> TaskData:
    """Tokenize every split; the text columns give way to the model's inputs.

    Args:
        data: What `load_task_data` returned.
        tokenizer: The model's tokenizer.
        max_length: Longer inputs are cut, at the latest where the tokenizer says that its model ends.

    Raises:
        TaskError: If the length leaves no room for a word, or the tokenizer cannot pad.
    """
    length = min(max_length, tokenizer.model_max_length)
    special = tokenizer.num_special_tokens_to_add(pair=len(data.task.text_columns) == 2)
    if length <= special:
        raise TaskError(f"max_length is {length}, but the tokenizer adds {special} special tokens; give a larger one.")
    if tokenizer.pad_token is None:
        raise TaskError(
            f"The tokenizer {tokenizer.name_or_path!r} has no padding token; set its pad_token and save it again."
        )
    return data.map_splits(partial(_tokenize_split, task=data.task, tokenizer=tokenizer, length=length))


def padding_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Pad each batch to its own longest input, which spares most of the work of padding to a fixed length."""
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)


def _tokenize_split(split: Dataset, *, task: Task, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    def encode(rows: Mapping[str, list[Any]]) -> Mapping[str, Any]:
        return tokenizer(*(rows[column] for column in task.text_columns), truncation=True, max_length=length)

    return split.map(encode, batched=True, remove_columns=list(task.text_columns), desc="Tokenizing")
