"""A tag for each word of a sentence: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.metrics import load_metric_of
from hf_layerdrop.tasks.classification import CUT, names_of_classes, was_cut, without_cut
from hf_layerdrop.tasks.labels import class_names, label_numbers
from hf_layerdrop.tasks.task import Encoding, Kind, Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


IGNORED = -100
OUTSIDE = "O"


def check(rows: Dataset, task: Task, where: str) -> Dataset:
    """Return ``tokens``, the words, and ``tags``, a number for each."""
    from datasets import Dataset

    words = _lists(rows, task.text_columns[0], where)
    tags = _named(_lists(rows, task.label_column, where), rows, task)
    for row, (of_words, of_tags) in enumerate(zip(words, tags, strict=True)):
        if len(of_words) != len(of_tags):
            raise TaskError(
                f"{where} has {len(of_words)} words and {len(of_tags)} tags in row {row}; every word needs one tag."
            )
    numbers = iter(label_numbers([tag for row in tags for tag in row], task, where))
    return Dataset.from_dict(
        {"tokens": [list(map(str, row)) for row in words], "tags": [[next(numbers) for _ in row] for row in tags]}
    )


def _lists(rows: Dataset, column: str, where: str) -> list[list[Any]]:
    """Return the lists of a column; in a file that has no lists, words stand between blanks."""
    values = [value.split() if isinstance(value, str) else value for value in rows[column]]
    for row, value in enumerate(values):
        if not isinstance(value, list):
            raise TaskError(
                f"{where} has {value!r} in row {row} of column {column!r}; every row needs a list of words."
            )
    return values


def _named(tags: list[list[Any]], rows: Dataset, task: Task) -> list[list[Any]]:
    """Write tags by their names where the column knows them."""
    names = _names_in(rows, task)
    if not names:
        return tags
    return [[names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag for tag in row] for row in tags]


def _names_in(rows: Dataset, task: Task) -> list[str]:
    feature = rows.features[task.label_column]
    return list(getattr(getattr(feature, "feature", None), "names", None) or ())


def name_labels(rows: Dataset, task: Task, where: str) -> Task:
    """Learn the tags."""
    values = [tag for row in _lists(rows, task.label_column, where) for tag in row]
    names = _names_in(rows, task) or class_names(values, where)
    return with_tags(task, tuple(names))


def with_tags(task: Task, names: tuple[str, ...]) -> Task:
    """Return the task with its tags; those that are no entities (parts of speech) are scored by their accuracy."""
    task = replace(task, label_names=names)
    return task if are_entities(names) else replace(task, metrics=("accuracy",))


def are_entities(names: tuple[str, ...]) -> bool:
    """Tell tags of entities (B-PER, I-PER, O) from others."""
    return OUTSIDE in names and all(name == OUTSIDE or name[1:2] == "-" for name in names)


def encode(rows: Dataset, encoding: Encoding) -> Dataset:
    """Tokenize the words; the first token of each carries its tag."""
    job = partial(_encode, tokenizer=encoding.tokenizer, length=encoding.max_length)
    return without_cut(rows.map(job, batched=True, remove_columns=rows.column_names, desc="Tokenizing"), encoding)


def _encode(rows: Mapping[str, list[Any]], *, tokenizer: PreTrainedTokenizerBase, length: int) -> Mapping[str, Any]:
    encoded = tokenizer(rows["tokens"], is_split_into_words=True, truncation=True, max_length=length)
    labels = []
    for number, tags in enumerate(rows["tags"]):
        before = None
        row = []
        for word in encoded.word_ids(number):
            row.append(IGNORED if word is None or word == before else tags[word])
            before = word
        labels.append(row)
    return {**encoded, "labels": labels, CUT: was_cut(encoded, len(labels))}


def collator(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
    """Pad inputs and tags."""
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer)


def compute_metrics(data: TaskData, tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """Compare the likeliest tag of each word."""
    metric = load_metric_of("tags", *data.task.metrics)
    names = data.task.label_names

    def compute(evaluated: EvalPrediction) -> dict[str, float]:
        logits = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
        found, wanted = logits.argmax(axis=-1), evaluated.label_ids
        return metric.compute(
            predictions=_named_rows(found, wanted, names), references=_named_rows(wanted, wanted, names)
        )

    return compute


def _named_rows(tags: Any, labels: Any, names: tuple[str, ...]) -> list[list[str]]:
    """Name the tags of the words, leaving out the tokens that carry none."""
    return [[names[tag] for tag in row[here]] for row, here in zip(tags, labels != IGNORED, strict=True)]


TOKEN_CLASSIFICATION = Kind(
    "token classification",
    "TokenClassification",
    check,
    encode,
    collator,
    compute_metrics,
    name_labels=name_labels,
    with_labels=with_tags,
    settings=names_of_classes,
    needs_words=True,
)
