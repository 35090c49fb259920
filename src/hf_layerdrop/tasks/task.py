"""What a task is: a record of columns, labels and metrics. The nine tasks of GLUE are nine such records."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from hf_layerdrop.errors import TaskError

GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """Everything that one task needs and another does differently.

    Attributes:
        name: Short name, also the configuration's name on the Hub.
        text_columns: One column, or two that the tokenizer joins.
        metrics: Names of its metrics, as `load_metric` knows them; the first is the headline.
        label_names: Names of the classes in the order of their numbers. Empty: a regression, or only the data knows.
        label_range: Smallest and largest label of a regression; None for classes.
        label_column: Column of the labels.
        hub_name: Data set on the Hub; None if the task is only known from local files.
        validation_splits: Names of the validation sets.
        metric_suffixes: What is added to the metric names of each validation set.
        head: The head of the model, as in ``AutoLayerDropModelFor<head>``.
    """

    name: str
    text_columns: tuple[str, ...]
    metrics: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    label_column: str = "label"
    hub_name: str | None = GLUE
    validation_splits: tuple[str, ...] = ("validation",)
    metric_suffixes: tuple[str, ...] = ("",)
    head: str = "SequenceClassification"

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number to be met instead of a class."""
        return self.label_range is not None

    @property
    def num_labels(self) -> int:
        """Number of outputs of the head: one a class, one for a regression."""
        return 1 if self.is_regression else len(self.label_names)

    @property
    def headline(self) -> str:
        """The metric that stands for the task where there is room for one."""
        return self.metrics[0]


ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("matthews_correlation",), ("unacceptable", "acceptable")),
        Task("sst2", ("sentence",), ("accuracy",), ("negative", "positive")),
        Task("mrpc", PAIR, ("accuracy", "f1"), ("not_equivalent", "equivalent")),
        Task("stsb", PAIR, ("pearson", "spearmanr"), label_range=(0.0, 5.0)),
        Task("qqp", ("question1", "question2"), ("accuracy", "f1"), ("not_duplicate", "duplicate")),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("accuracy",),
            ("entailment", "neutral", "contradiction"),
            validation_splits=("validation_matched", "validation_mismatched"),
            metric_suffixes=("", "_mm"),
        ),
        Task("qnli", ("question", "sentence"), ("accuracy",), ENTAILMENT),
        Task("rte", PAIR, ("accuracy",), ENTAILMENT),
        Task("wnli", PAIR, ("accuracy",), ENTAILMENT[::-1]),
    )
}


def find_task(name: str) -> Task:
    """Look a task up by its name, e.g. ``"sst2"``.

    Raises:
        TaskError: If there is none of that name.
    """
    known = name.lower().replace("-", "")
    if known not in TASKS:
        nearest = difflib.get_close_matches(known, TASKS, n=1)
        hint = f" (nearest: {nearest[0]})" if nearest else ""
        raise TaskError(
            f"Task {name!r} is unknown{hint}; choose one of {', '.join(TASKS)}, or leave it out and give your own "
            "files by --train-file and --validation-file."
        )
    return TASKS[known]


def custom_task(
    text_columns: Sequence[str], *, label_column: str = "label", label_names: Sequence[str] = (), name: str = "custom"
) -> Task:
    """Describe a classification of your own, for local files with any column names.

    Args:
        text_columns: One column of text, or two.
        label_column: The column of classes, as text or whole numbers.
        label_names: The classes in the order of their numbers; if empty, the sorted values of the training data.
        name: How the task is called in folder names and tables.

    Raises:
        TaskError: If there is not one text column or two.
    """
    if len(text_columns) > 2 or isinstance(text_columns, str):
        raise TaskError(f"The text columns are {text_columns!r}; give a list of one or two names.")
    return Task(
        name,
        tuple(text_columns),
        ("accuracy",),
        label_names=tuple(label_names),
        label_column=label_column,
        hub_name=None,
    )
