"""Classification of one text or of a pair, and regression: the tasks of GLUE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_layerdrop.evaluation.metrics import named_metric
from hf_layerdrop.tasks.columns import texts_in
from hf_layerdrop.tasks.labels import class_names, label_numbers
from hf_layerdrop.tasks.task import Encoding, Kind, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


CUT = "was_cut"  # column that encoding adds for a moment


def check(rows: Dataset, task: Task, where: str) -> Dataset:
    """Keep the text columns, and the labels as numbers under ``labels``."""
    from datasets import Dataset, Features, Value

    columns: dict[str, list[Any]] = {column: texts_in(rows, column, where) for column in task.text_columns}
    labels = label_numbers(labels_of(rows, task), task, where)
    kind = "float32" if task.is_regression else "int64"
    features = Features({**{column: Value("string") for column in columns}, "labels": Value(kind)})
    return Dataset.from_dict({**columns, "labels": labels}, features=features)


def labels_of(rows: Dataset, task: Task) -> list[Any]:
    """Read the labels; where the column names its numbers (a ClassLabel), take the names for a user's own task."""
    values = list(rows[task.label_column])
    names = getattr(rows.features[task.label_column], "names", None)
    if not names or task.hub_name is not None:
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in values]


def name_labels(rows: Dataset, task: Task, where: str) -> Task:
    """Learn the classes of a user's own data."""
    return replace(task, label_names=class_names(labels_of(rows, task), where))


def encode(rows: Dataset, encoding: Encoding) -> Dataset:
    """Tokenize one text, or a pair into one input."""
    columns = encoding.task.text_columns
    job = partial(_encode, columns=columns, tokenizer=encoding.tokenizer, length=encoding.max_length)
    return without_cut(rows.map(job, batched=True, remove_columns=list(columns), desc="Tokenizing"), encoding)


def _encode(
    rows: Mapping[str, list[Any]], *, columns: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, length: int
) -> Mapping[str, Any]:
    encoded = tokenizer(*(rows[column] for column in columns), truncation=True, max_length=length)
    return {**encoded, CUT: was_cut(encoded, len(rows[columns[0]]))}


def was_cut(encoded: Any, count: int) -> list[bool]:
    """Tell which inputs lost tokens; a slow tokenizer does not say."""
    return [bool(row.overflowing) for row in encoded.encodings] if encoded.encodings else [False] * count


def without_cut(rows: Dataset, encoding: Encoding) -> Dataset:
    """Note how many rows were cut, and take the column that says so away."""
    encoding.cut += sum(rows[CUT])
    return rows.remove_columns(CUT)


def padding_collator(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """Pad each batch to its own longest input, which spares most of the work of padding to a fixed length."""
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)


def compute_metrics(data: TaskData, tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Compare the likeliest class, or the number."""
    return named_metric(*data.task.metrics)


def settings(task: Task) -> dict[str, Any]:
    """Return what the config says of the outputs."""
    if task.is_regression:
        return {"num_labels": task.num_labels, "problem_type": "regression"}
    return {**names_of_classes(task), "problem_type": "single_label_classification"}


def names_of_classes(task: Task) -> dict[str, Any]:
    """Return the names of the classes as a config holds them."""
    names = dict(enumerate(task.label_names))
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


CLASSIFICATION = Kind(
    "classification",
    "SequenceClassification",
    check,
    encode,
    padding_collator,
    compute_metrics,
    name_labels=name_labels,
    settings=settings,
)
