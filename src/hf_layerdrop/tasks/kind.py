"""What a kind of task is: a record of the small functions that differ from one kind to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

    from hf_layerdrop.tasks.data import TaskData
    from hf_layerdrop.tasks.task import Task

ROW_NUMBERS = "row_numbers"  # column of the validation rows by which predictions find what they are scored against


@dataclass(frozen=True)
class Generation:
    """How a model generates where its task is scored on generated text; None leaves it to the model.

    Attributes:
        num_beams: Width of the beam search; 1 is greedy.
        length_penalty: Above 1 favours longer texts, where there are several beams.
        no_repeat_ngram_size: Runs of so many tokens appear once at most; 0 allows all.
    """

    num_beams: int = 1
    length_penalty: float | None = None
    no_repeat_ngram_size: int = 0


@dataclass
class Encoding:
    """The making of model inputs out of one split: what is given, and what is noted on the way.

    Attributes:
        task: The task.
        tokenizer: The model's tokenizer.
        max_length: Most tokens of an input.
        max_target_length: Most tokens of a text that is generated.
        training: Whether the rows are trained on; else they are scored.
        cut: How many inputs lost tokens.
        examples: What scored rows are compared with, by their `ROW_NUMBERS`; grows from split to split.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_target_length: int
    training: bool
    cut: int = 0
    examples: list[Any] = field(default_factory=list)


Metrics = Callable[["EvalPrediction"], dict[str, float]]


def no_settings(task: Task) -> dict[str, Any]:
    """Return the fields of a model's config that the task decides: none."""
    return {}


def with_names(task: Task, names: tuple[str, ...]) -> Task:
    """Return the task with class names."""
    return replace(task, label_names=names)


@dataclass(frozen=True)
class Kind:
    """What the tasks of one kind share.

    Attributes:
        name: Its name.
        head: The head of the model, as in ``AutoLayerDropModelFor<head>``.
        check: Rows as found -> rows with the columns of the kind, all checked.
        encode: Those rows -> the model's inputs.
        collator: Makes a batch of them.
        compute_metrics: Trainer's ``compute_metrics`` for encoded data.
        name_labels: Learns the class names from rows as found, where only they know them.
        with_labels: The task with class names that a model knows.
        settings: Fields of the model's config that the task decides.
        reduce: Trainer's ``preprocess_logits_for_metrics``.
        generation: How text is generated for the metric; None if it is not.
        numbers_rows: Whether scored rows have `ROW_NUMBERS`.
        max_length: Most tokens of an input, if nothing else is asked for.
        max_target_length: Most tokens of a generated text, likewise.
        has_plain_text: Whether a file of lines (.txt) will do.
        needs_padding: Whether rows differ in length.
        needs_words: Whether tokens have to be traced back to the text, which fast tokenizers alone can.
    """

    name: str
    head: str
    check: Callable[[Dataset, Task, str], Dataset]
    encode: Callable[[Dataset, Encoding], Dataset]
    collator: Callable[[PreTrainedTokenizerBase, PreTrainedModel | None], Callable[[Sequence[Any]], Mapping[str, Any]]]
    compute_metrics: Callable[[TaskData, PreTrainedTokenizerBase | None], Metrics]
    name_labels: Callable[[Dataset, Task, str], Task] | None = None
    with_labels: Callable[[Task, tuple[str, ...]], Task] = with_names
    settings: Callable[[Task], dict[str, Any]] = no_settings
    reduce: Callable[[Any, Any], Any] | None = None
    generation: Generation | None = None
    numbers_rows: bool = False
    max_length: int = 128
    max_target_length: int = 128
    has_plain_text: bool = False
    needs_padding: bool = True
    needs_words: bool = False
