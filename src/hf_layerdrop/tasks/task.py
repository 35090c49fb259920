"""What a task is: a record of columns, labels and metrics; the nine tasks of GLUE are nine such records.

What differs between kinds of tasks, but not between the tasks of one kind, stands in `Kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

GLUE = "nyu-mll/glue"
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
        cut_targets: How many texts that are generated did.
        examples: What scored rows are compared with, by their `ROW_NUMBERS`; grows from split to split.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_target_length: int
    training: bool
    cut: int = 0
    cut_targets: int = 0
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


@dataclass(frozen=True)
class Task:
    """Everything that one task needs and another does differently.

    Attributes:
        name: Short name.
        text_columns: One column, or two that the tokenizer joins; for other kinds than classification see their
            ``check``.
        metrics: Names of its metrics; the first is the headline.
        label_names: Names of the classes in the order of their numbers. Empty: a regression, or only the data knows.
        label_range: Smallest and largest label of a regression; None for classes.
        label_column: Column of the labels; empty where the texts are their own labels.
        hub_name: Data set on the Hub; None if the task is only known from local files.
        hub_config: The data set's configuration; None if it has only one.
        validation_splits: Names of the validation sets.
        metric_suffixes: What is added to the metric names of each validation set.
        kind: What it shares with other tasks: the head of the model, preprocessing, collator, generation.
        other_columns: Text columns, and label column, under which other data sets have the same.
        length: Most tokens of an input, if not as others of its kind.
        embedded: Reads the rows where they come with the package, as a part of the data set on the Hub; None if not.
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
    hub_config: str | None = None
    other_columns: tuple[tuple[tuple[str, ...], str], ...] = ()
    length: int | None = None
    embedded: Callable[[], DatasetDict] | None = None
    kind: Kind = field(kw_only=True)

    @property
    def head(self) -> str:
        """The head of the model, as in ``AutoLayerDropModelFor<head>``."""
        return self.kind.head

    @property
    def model_class(self) -> Any:
        """The class that loads models with the head."""
        from hf_layerdrop.models import auto as modeling

        return getattr(modeling, f"AutoLayerDropModelFor{self.head}")

    @property
    def generation(self) -> Generation | None:
        """How text is generated for the metric; None where none is."""
        return self.kind.generation

    @property
    def max_length(self) -> int:
        """Most tokens of an input, if nothing else is asked for."""
        return self.length or self.kind.max_length

    def encode(self, data: TaskData, tokenizer: PreTrainedTokenizerBase, **lengths: Any) -> TaskData:
        """Turn checked rows into the model's inputs; see `tokenize` for the lengths."""
        return tokenize(data, tokenizer, **lengths)

    def collator(self, tokenizer: PreTrainedTokenizerBase, model: Any = None) -> Any:
        """Return what makes a batch of encoded rows."""
        return self.kind.collator(tokenizer, model)

    def metric(self, data: TaskData, tokenizer: PreTrainedTokenizerBase | None = None) -> Metrics:
        """Return Trainer's ``compute_metrics`` for encoded data."""
        return self.kind.compute_metrics(data, tokenizer)

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


@dataclass(frozen=True)
class TaskData:
    """The data of a task: text columns and ``labels`` as numbers; after `tokenize`, the model's inputs and ``labels``.

    Attributes:
        task: The task; its class names are now known.
        train: Training rows; None if only the validation sets were asked for.
        validation: Validation rows by the name of the split.
        examples: What encoded validation rows are scored against, by their number; empty where labels say it all.
        cut: Of how many rows of each split the input lost tokens when they were encoded.
        cut_targets: Of how many the text that is generated did.
        max_length: The most tokens that an input could have.
        max_target_length: The most tokens that a text that is generated could have.
        files: The local files of the validation rows, if they come from such.
    """

    task: Task
    train: Dataset | None
    validation: Mapping[str, Dataset]
    examples: Sequence[Any] = ()
    cut: Mapping[str, int] = field(default_factory=dict)
    cut_targets: Mapping[str, int] = field(default_factory=dict)
    max_length: int | None = None
    max_target_length: int | None = None
    files: tuple[str, ...] = ()

    @property
    def cuts(self) -> Iterator[str]:
        """What lost tokens when it was encoded, in words."""
        for split, count in self.cut.items():
            if count:
                yield f"{count:,} rows of {split} are longer than {self.max_length} tokens"
        for split, count in self.cut_targets.items():
            if count:
                yield f"{count:,} targets of {split} are longer than {self.max_target_length} tokens"


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
        TaskError: If the data was not loaded for a task, the length leaves no room for a word, the tokenizer cannot
            pad or trace tokens back to words, or, with ``strict``, if an input is too long.
    """
    if not isinstance(data, TaskData):
        raise TaskError(
            f"The data is a {type(data).__name__}, whose columns and labels nobody has checked for a task: give what "
            "load_task_data(task) returns, of files (train_file=, validation_file=) or the task's data set on the Hub."
        )
    kind = data.task.kind
    limit = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    length = min(max_length or data.task.max_length, limit)
    target_length = min(max_target_length or kind.max_target_length, limit)
    _check_tokenizer(data.task, tokenizer, length)
    examples: list[Any] = []
    cut, cut_targets = {}, {}

    def encoded(name: str, rows: Dataset, *, training: bool) -> Dataset:
        encoding = Encoding(data.task, tokenizer, length, target_length, training, examples=examples)
        inputs = kind.encode(rows, encoding)
        cut[name], cut_targets[name] = encoding.cut, encoding.cut_targets
        for count, longest, option in ((encoding.cut, length, ""), (encoding.cut_targets, target_length, "-target")):
            if strict and count:
                raise TaskError(
                    f"{count} of {len(rows)} {'targets' if option else 'rows'} of the {name} data are longer than "
                    f"{longest} tokens: give a larger --max{option}-length, a model with more positions, or leave "
                    "--strict out to have them cut."
                )
        return inputs

    train = None if data.train is None else encoded("train", data.train, training=True)
    validation = {name: encoded(name, rows, training=False) for name, rows in data.validation.items()}
    return replace(
        data,
        train=train,
        validation=validation,
        examples=examples,
        cut=cut,
        cut_targets=cut_targets,
        max_length=length,
        max_target_length=target_length,
    )


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
