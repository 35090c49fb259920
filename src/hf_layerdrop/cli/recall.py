"""What a checkpoint was measured with, taken again where the command line says nothing: task, data and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console

from hf_layerdrop.checkpoints.recommended import MeasuredWith
from hf_layerdrop.checkpoints.recommended_file import RECOMMENDED_FILE, read_recommended
from hf_layerdrop.errors import LayerDropError, TaskError
from hf_layerdrop.tasks.registry import MORE_TASKS

_OWN = "custom"  # the task of a classification of one's own


@dataclass(frozen=True)
class Asked:
    """The options of a command that say what is measured, and how; None or empty for what was left out."""

    task: str | None
    validation_file: Sequence[Path] | None
    dataset: str | None
    dataset_config: str | None
    text_columns: Sequence[str]
    label_column: str | None
    max_length: int | None
    max_target_length: int | None
    num_beams: int | None


def recalled(asked: Asked, model: str, console: Console) -> Asked:
    """Fill in how a local checkpoint was measured last, if the command line names neither task nor data.

    What it does give, columns or lengths, stands. What is taken is printed.

    Raises:
        TaskError: It was measured on local files that are not known here, or not there any more.
    """
    if asked.task or asked.validation_file or asked.dataset or not Path(model).is_dir():
        return asked
    try:
        before = read_recommended(model).measured_with
    except LayerDropError:  # none: the data is asked for, as ever
        return asked
    files, dataset = ([], None) if _is_embedded(before) else _data(before, model)
    found = Asked(
        task=None if before.task == _OWN else before.task,
        validation_file=files or None,
        dataset=dataset,
        dataset_config=before.config if dataset else None,
        text_columns=asked.text_columns or before.text_columns,
        label_column=asked.label_column or before.label_column,
        max_length=asked.max_length or before.max_length,
        max_target_length=asked.max_target_length or before.max_target_length,
        num_beams=asked.num_beams or before.num_beams,
    )
    data = ", ".join(map(str, files)) or " ".join(filter(None, (dataset, found.dataset_config)))
    what = [f"task {before.task}", data, f"max length {found.max_length}" if found.max_length else ""]
    console.print(f"Measured as before: {', '.join(filter(None, what))}.", soft_wrap=True, markup=False)
    return found


def _is_embedded(before: MeasuredWith) -> bool:
    """Tell whether the rows come with the package: the task alone finds them then."""
    task = MORE_TASKS.get(str(before.task))
    return task is not None and task.embedded is not None and before.dataset == task.hub_name


def _data(before: MeasuredWith, model: str) -> tuple[list[Path], str | None]:
    """Return the local files, or else the data set."""
    from hf_layerdrop.training.recommend import noted_files

    noted = noted_files(model)
    named = noted.get("validation_file")
    files = [Path(str(file)) for file in named] if isinstance(named, list) else []
    if before.dataset is not None and not before.dataset.startswith("local-") and _is_repo_id(before.dataset):
        return [], before.dataset
    if not files and isinstance(noted.get("dataset"), str):
        return [], noted["dataset"]
    if not files or not all(file.is_file() for file in files):
        missing = f"{str(next(file for file in files if not file.is_file()))!r}, which is gone" if files else ""
        raise TaskError(
            f"The sets in {RECOMMENDED_FILE} of {model!r} were measured on "
            f"{missing or 'local files, whose places are not known here'}: give --validation-file, or another --task."
        )
    return files, None


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()
