"""Load the data of a task from the Hub or from local files, and check it before anything is trained on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.errors import TaskError, require, said_by
from hf_layerdrop.tasks.columns import check_columns, wanted_columns
from hf_layerdrop.tasks.registry import MORE_TASKS, load_task
from hf_layerdrop.tasks.task import Task, TaskData

if TYPE_CHECKING:
    from datasets import Dataset

PathLike = str | os.PathLike[str]

# How `datasets` reads a file, by its ending. Texts such as "None" and "NA" stay texts. In .tsv a quotation mark is a
# character like any other, as in GLUE's own files: read as quoting, a lone one would swallow the rows up to the next.
TEXT_AS_IT_IS = {"keep_default_na": False}
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", TEXT_AS_IT_IS),
    ".tsv": ("csv", {**TEXT_AS_IT_IS, "delimiter": "\t", "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
# Lines of running text, each with its break, for the tasks that want nothing else.
LINES = ".txt"


def load_task_data(
    task: Task | str,
    *,
    train_file: PathLike | None = None,
    validation_file: PathLike | Sequence[PathLike] | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    train: bool = True,
    otherwise: str | None = None,
) -> TaskData:
    """Load and check the data of a task.

    Args:
        task: A name as for `load_task`, what that found, or a `custom_task`. ``"sst2-sample"`` needs neither files nor
            a network.
        train_file: Training rows; CSV, TSV, JSON, JSONL or Parquet. Without any file the task comes from the Hub.
        validation_file: Validation rows. For a task with several validation sets (MNLI) one file a set, in the task's
            order; with fewer files, the first sets.
        text_columns: The text columns, if the files call them otherwise than the task.
        label_column: The label column, if the files call it otherwise than the task.
        train: Whether the training rows are needed; if not, only the validation sets are read.
        otherwise: What can be done where the Hub cannot be reached, for the error; by default, to give files.

    Raises:
        TaskError: If the data cannot be had, lacks a column, has no rows, or has labels that do not fit the task.
        MissingExtraError: If the libraries of tasks are not installed.
    """
    task = load_task(task) if isinstance(task, str) else task
    files = local_files(task, train_file, validation_file, train=train)
    require("datasets", "evaluate")
    raw = {split: _read_file(path) for split, path in files.items()} if files else {}
    raw = raw or _read_named(task, train=train, otherwise=otherwise or f"pass {_options(train)}")
    first = next(iter(raw))
    raw = {split: _flat(rows) for split, rows in raw.items()}
    task = _with_columns(task, text_columns, label_column, raw[first])
    for split, rows in raw.items():
        check_columns(rows, task, _place(split, files))
    if not task.num_labels and task.kind.name_labels is not None:
        task = task.kind.name_labels(raw[first], task, _place(first, files))
    checked = {split: task.kind.check(rows, task, _place(split, files)) for split, rows in raw.items()}
    if files:  # whatever they hold: a card must not say that it is the data set of the Hub
        task = replace(task, hub_name=None, hub_config=None, embedded=None)
    named = tuple(str(path) for split, path in files.items() if split != "train")
    return TaskData(task, checked.pop("train", None), checked, files=named)


def _with_columns(task: Task, text_columns: Sequence[str] | None, label_column: str | None, rows: Dataset) -> Task:
    """Take the columns that were named, else those of the task that the data has."""
    if not text_columns and not label_column:
        for texts, label in ((task.text_columns, task.label_column), *task.other_columns):
            known = replace(task, text_columns=texts, label_column=label)
            if set(wanted_columns(known)) <= set(rows.column_names):
                return known
    return replace(
        task,
        text_columns=tuple(text_columns or task.text_columns),
        label_column=label_column or task.label_column,
    )


def _flat(rows: Dataset) -> Dataset:
    """Take texts out of a column of {language: text}, as translations on the Hub have it."""
    if rows.column_names != ["translation"] and rows.column_names != ["id", "translation"]:
        return rows
    flat = rows.flatten()
    return flat.rename_columns({name: name.partition(".")[2] for name in flat.column_names if "." in name})


def local_files(
    task: Task,
    train_file: PathLike | None,
    validation_file: PathLike | Sequence[PathLike] | None,
    *,
    train: bool = True,
) -> dict[str, Path]:
    """Match files with the splits of the task, and check what can be seen without reading them; empty: take the Hub.

    Raises:
        TaskError: If a file is missing, of an unknown kind, or not one of the task's splits.
    """
    named = [validation_file] if isinstance(validation_file, str | os.PathLike) else list(validation_file or ())
    if train_file is None and not named:
        if task.hub_name is None:
            needed = _options(train)
            if task.name in MORE_TASKS:
                raise TaskError(f"Task {task.name} has no data of its own; give {needed}, or a --dataset of the Hub.")
            raise TaskError(
                f"No task and no data was given; name a --task (sst2-sample needs no network), or give {needed}."
            )
        return {}
    if not named or (train and train_file is None):
        given, missing = ("--validation-file", "--train-file") if named else ("--train-file", "--validation-file")
        raise TaskError(f"{given} was given without {missing}; give both, or neither for a task from the Hub.")
    if len(named) > len(task.validation_splits):
        allowed = ", ".join(task.validation_splits)
        raise TaskError(
            f"{len(named)} validation files were given, but {task.name} has only {allowed}; give one file for each."
        )
    files = dict(zip(task.validation_splits, map(Path, named), strict=False))
    if train and train_file is not None:
        files = {"train": Path(train_file), **files}
    for path in files.values():
        _check_file(path, [*READERS, *([LINES] if task.kind.has_plain_text else [])])
    return files


def _options(train: bool) -> str:
    return "--train-file and --validation-file" if train else "--validation-file"


def _check_file(path: Path, endings: Sequence[str]) -> None:
    if not path.is_file():
        raise TaskError(f"There is no data file {str(path)!r}; check the path.")
    if path.suffix.lower() not in endings:
        raise TaskError(f"Data file {str(path)!r} is of an unknown kind; its name must end in {', '.join(endings)}.")


def _read_file(path: Path) -> Dataset:
    from datasets import Dataset

    if path.suffix.lower() == LINES:
        return Dataset.from_dict({"text": path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)})
    kind, options = READERS[path.suffix.lower()]
    try:
        # Not `load_dataset`, which counts its use over the network even for local files.
        return getattr(Dataset, f"from_{kind}")(str(path), **options)
    except Exception as error:
        # `datasets` raises its own, pandas' and pyarrow's errors here; the cause is the one that tells most.
        if "corresponds to no data" in str(error):
            raise TaskError(f"{str(path)!r} has no rows; give a file that has some.") from error
        reason = said_by(error.__cause__ or error)
        raise TaskError(f"Data file {str(path)!r} cannot be read as {kind} ({reason}); check its contents.") from error


def _read_named(task: Task, *, train: bool, otherwise: str) -> dict[str, Dataset]:
    """Read a task whose rows come with the package, or from the Hub."""
    import datasets
    import huggingface_hub

    splits = (*(["train"] if train else []), *task.validation_splits)
    if task.embedded is not None:
        rows = task.embedded()
        return {split: rows[split] for split in splits}
    try:
        if not _is_cached(task):
            # Fails at once without a network, where `load_dataset` would retry for half a minute.
            huggingface_hub.HfApi().dataset_info(str(task.hub_name), timeout=10)
        return {split: datasets.load_dataset(task.hub_name, task.hub_config, split=split) for split in splits}
    except Exception as error:
        # No network shows as one of a dozen kinds of error, by what fails first: the client, the cache or `datasets`.
        raise TaskError(
            f"Task {task.name!r} could not be loaded from the Hub ({task.hub_name}: {said_by(error)}); check the "
            f"network, or {otherwise}{_sample_of(task)}."
        ) from error


def _sample_of(task: Task) -> str:
    """Name the part of the task's data that comes with the package, if there is one."""
    source = (task.hub_name, task.hub_config)
    names = [name for name, one in MORE_TASKS.items() if one.embedded and (one.hub_name, one.hub_config) == source]
    return f", or take --task {names[0]}, a part of it that is here" if names else ""


def _is_cached(task: Task) -> bool:
    import datasets

    if Path(str(task.hub_name)).is_dir():
        return True
    folder = Path(datasets.config.HF_DATASETS_CACHE) / str(task.hub_name).replace("/", "___")
    return (folder / (task.hub_config or "default")).is_dir()


def _place(split: str, files: Mapping[str, Path]) -> str:
    return f"{str(files[split])!r}" if split in files else f"The {split} split"
