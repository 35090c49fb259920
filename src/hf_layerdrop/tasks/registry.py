"""The tasks that are known by name: those of GLUE, and the paper's others; and tasks of your own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from hf_layerdrop.errors import TaskError
from hf_layerdrop.tasks.classification import CLASSIFICATION
from hf_layerdrop.tasks.embedded import embedded_sst2
from hf_layerdrop.tasks.language_modelling import CAUSAL, MASKED_TOKENS
from hf_layerdrop.tasks.multiple_choice import MULTIPLE_CHOICE
from hf_layerdrop.tasks.question_answering import QUESTION_ANSWERING
from hf_layerdrop.tasks.sequence_to_sequence import SEQUENCE_TO_SEQUENCE
from hf_layerdrop.tasks.task import Task
from hf_layerdrop.tasks.token_classification import TOKEN_CLASSIFICATION

ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

_classified = partial(Task, kind=CLASSIFICATION)
_GLUE = (
    _classified("cola", ("sentence",), ("matthews_correlation",), ("unacceptable", "acceptable")),
    _classified("sst2", ("sentence",), ("accuracy",), ("negative", "positive")),
    _classified("mrpc", PAIR, ("accuracy", "f1"), ("not_equivalent", "equivalent")),
    _classified("stsb", PAIR, ("pearson", "spearmanr"), label_range=(0.0, 5.0)),
    _classified("qqp", ("question1", "question2"), ("accuracy", "f1"), ("not_duplicate", "duplicate")),
    _classified(
        "mnli",
        ("premise", "hypothesis"),
        ("accuracy",),
        ("entailment", "neutral", "contradiction"),
        validation_splits=("validation_matched", "validation_mismatched"),
        metric_suffixes=("", "_mm"),
    ),
    _classified("qnli", ("question", "sentence"), ("accuracy",), ENTAILMENT),
    _classified("rte", PAIR, ("accuracy",), ENTAILMENT),
    _classified("wnli", PAIR, ("accuracy",), ENTAILMENT[::-1]),
)
TASKS: dict[str, Task] = {task.name: replace(task, hub_config=task.name) for task in _GLUE}

# The sample that needs no network, the other tasks of the paper, and those for whose heads the models are there anyway.
MORE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        replace(TASKS["sst2"], name="sst2-sample", embedded=embedded_sst2),
        Task(
            "mlm",
            ("text",),
            ("perplexity",),
            label_column="",
            hub_name="Salesforce/wikitext",
            hub_config="wikitext-103-raw-v1",
            kind=MASKED_TOKENS,
            other_columns=((("sentence",), ""), (("content",), "")),
        ),
        Task(
            "clm",
            ("text",),
            ("perplexity",),
            label_column="",
            hub_name="Salesforce/wikitext",
            hub_config="wikitext-103-raw-v1",
            kind=CAUSAL,
            other_columns=((("sentence",), ""), (("content",), "")),
        ),
        Task(
            "translation",
            ("source", "target"),
            ("bleu", "chrf"),
            label_column="",
            hub_name=None,
            kind=SEQUENCE_TO_SEQUENCE,
        ),
        Task(
            "summarization",
            ("document", "summary"),
            ("rouge1", "rouge2", "rougeL"),
            label_column="",
            hub_name="abisee/cnn_dailymail",
            hub_config="3.0.0",
            kind=SEQUENCE_TO_SEQUENCE,
            other_columns=((("article", "highlights"), ""), (("dialogue", "summary"), ""), (("text", "summary"), "")),
            length=512,
        ),
        Task(
            "long-form-qa",  # ELI5: a question with what was found on it, and a long answer
            ("question", "answer"),
            ("rouge1", "rouge2", "rougeL"),
            label_column="",
            hub_name=None,
            kind=SEQUENCE_TO_SEQUENCE,
            other_columns=((("question+document", "answer"), ""), (("question+context", "answer"), "")),
            length=512,
        ),
        Task(
            "question-answering",
            ("question", "context"),
            ("f1", "exact_match"),
            label_column="answers",
            hub_name="rajpurkar/squad",
            kind=QUESTION_ANSWERING,
        ),
        Task(
            "token-classification",
            ("tokens",),
            ("f1", "precision", "recall", "accuracy"),
            label_column="ner_tags",
            hub_name=None,
            kind=TOKEN_CLASSIFICATION,
            other_columns=((("tokens",), "tags"), (("tokens",), "pos_tags"), (("words",), "tags"), (("words",), "ner")),
        ),
        Task(
            "multiple-choice",
            ("sent1", "sent2+ending0", "sent2+ending1", "sent2+ending2", "sent2+ending3"),
            ("accuracy",),
            hub_name="allenai/swag",
            hub_config="regular",
            kind=MULTIPLE_CHOICE,
            other_columns=(
                (("question", "choices"), "answerKey"),
                (("question", "choices"), "answer"),
                (("question", "choices"), "label"),
                (("premise", "choice1", "choice2"), "label"),
            ),
        ),
    )
}

OWN_FILES = "leave it out and give your own files by --train-file and --validation-file"


def load_task(name: str, *, more: Mapping[str, Task] = MORE_TASKS, otherwise: str = OWN_FILES) -> Task:
    """Look a task up by its name, e.g. ``"sst2"``, ``"glue/sst2"``, ``"sst2-sample"`` or ``"translation"``.

    Args:
        name: The name.
        more: The tasks that there are beside those of GLUE.
        otherwise: What can be done instead of naming one, for the error.

    Raises:
        TaskError: If there is none of that name.
    """
    wanted = name.lower().strip().replace("_", "-")
    if wanted in more:
        return more[wanted]
    wanted = wanted.removeprefix("glue/")
    known = wanted.replace("-", "")
    if known not in TASKS:
        nearest = difflib.get_close_matches(wanted, [*TASKS, *more], n=1)
        hint = f" (nearest: {nearest[0]})" if nearest else ""
        raise TaskError(f"Task {name!r} is unknown{hint}; choose one of {', '.join([*TASKS, *more])}, or {otherwise}.")
    return TASKS[known]


def with_dataset(task: Task, name: str | None, config: str | None = None) -> Task:
    """Return the task with another data set of the Hub, or the folder of one; as it is if none is named.

    Raises:
        TaskError: If a configuration of no data set is named.
    """
    if name is None and config is not None:
        raise TaskError(f"--dataset-config is {config!r}, but no data set was named: give --dataset too.")
    return task if name is None else replace(task, hub_name=name, hub_config=config, embedded=None)


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
        kind=CLASSIFICATION,
    )
