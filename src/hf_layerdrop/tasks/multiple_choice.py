"""One of several continuations or answers is right: SWAG and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import named_metric
from hf_layerdrop.tasks.classification import CUT, was_cut, without_cut
from hf_layerdrop.tasks.columns import texts_in
from hf_layerdrop.tasks.task import Encoding, Kind, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


LETTERS = "ABCDEFGHIJ"


def check(rows: Dataset, task: Task, where: str) -> Dataset:
    """Return ``context``, ``choices`` and ``labels``, the place of the right choice.

    The first column is the context; each other one holds a choice, or a single one holds lists of them.
    """
    from datasets import Dataset

    context, *others = task.text_columns
    choices = _lists(rows, others[0], where) if len(others) == 1 else _columns(rows, others, where)
    count = len(choices[0])
    for row, value in enumerate(choices):
        if len(value) != count or count < 2:
            raise TaskError(
                f"{where} has {len(value)} choices in row {row} and {count} in the first; all rows need the same "
                "number, from 2."
            )
    labels = [_place(value, row, count, where) for row, value in enumerate(rows[task.label_column])]
    return Dataset.from_dict({"context": texts_in(rows, context, where), "choices": choices, "labels": labels})


def _columns(rows: Dataset, columns: list[str], where: str) -> list[list[str]]:
    return [list(texts) for texts in zip(*(texts_in(rows, column, where) for column in columns), strict=True)]


def _lists(rows: Dataset, column: str, where: str) -> list[list[str]]:
    # Some data sets hold {"label": ["A", ...], "text": [...]}.
    values: list[Any] = [value.get("text") if isinstance(value, Mapping) else value for value in rows[column]]
    for row, value in enumerate(values):
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise TaskError(
                f"{where} has {value!r} in row {row} of column {column!r}; every row needs a list of texts."
            )
    return values


def _place(value: Any, row: int, count: int, where: str) -> int:
    """Read a label: the place of the right choice from 0, or its letter."""
    place = LETTERS.find(value) if isinstance(value, str) and len(value) == 1 and value in LETTERS else value
    try:
        place = int(place)
    except (TypeError, ValueError):
        place = -1
    if not 0 <= place < count:
        raise TaskError(
            f"{where} has the label {value!r} in row {row}; it must be the place of a choice, 0 to {count - 1}, or its "
            "letter."
        )
    return place


def encode(rows: Dataset, encoding: Encoding) -> Dataset:
    """Tokenize the context with each choice."""
    job = partial(_encode, tokenizer=encoding.tokenizer, length=encoding.max_length)
    return without_cut(rows.map(job, batched=True, remove_columns=["context", "choices"], desc="Tokenizing"), encoding)


def _encode(rows: Mapping[str, list[Any]], *, tokenizer: PreTrainedTokenizerBase, length: int) -> Mapping[str, Any]:
    count = len(rows["choices"][0])
    contexts = [context for context in rows["context"] for _ in range(count)]
    choices = [choice for row in rows["choices"] for choice in row]
    encoded = tokenizer(contexts, choices, truncation=True, max_length=length)
    cut = was_cut(encoded, len(contexts))
    grouped = {
        name: [values[begin : begin + count] for begin in range(0, len(values), count)]
        for name, values in {**encoded, CUT: cut}.items()
    }
    return {**grouped, CUT: [any(row) for row in grouped[CUT]]}


def collator(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """Pad all choices of a batch to one length."""
    from transformers import DataCollatorForMultipleChoice

    return DataCollatorForMultipleChoice(tokenizer)


def compute_metrics(data: TaskData, tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Compare the likeliest choice."""
    return named_metric(*data.task.metrics)


MULTIPLE_CHOICE = Kind("multiple choice", "MultipleChoice", check, encode, collator, compute_metrics)
