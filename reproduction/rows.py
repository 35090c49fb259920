"""The rows of a study: found in files or on the Hub, told apart by a digest, encoded once for all its arms."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import load_task, with_dataset
from hf_layerdrop.tasks.task import Task, TaskData
from reproduction.errors import ReproductionError
from reproduction.study import Data, Study

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Source:
    """Where the user says that the rows are.

    Attributes:
        data_dir: A folder with one folder a data set, and in it one file a split.
        train_file: The training rows, of the only study of a run.
        validation_file: The rows to measure on, likewise.
    """

    data_dir: Path | None = None
    train_file: Path | None = None
    validation_file: Path | None = None

    def files(self, data: Data) -> tuple[Path, Path] | None:
        """Return the files of a data set, or None to take it from the Hub.

        Raises:
            ReproductionError: If a file is missing.
        """
        if self.train_file is not None or self.validation_file is not None:
            if self.train_file is None or self.validation_file is None:
                raise ReproductionError("One of --train-file and --validation-file was given; give both.")
            return self.train_file, self.validation_file
        if self.data_dir is None:
            return None
        return _split(self.data_dir / data.folder, data.train), _split(self.data_dir / data.folder, data.validation)

    def digest(self, data: Data) -> str:
        """Tell the rows apart by the content of their files, or by their name on the Hub."""
        files = self.files(data)
        if files is None:
            return f"hub {data.hub} {data.hub_config}"
        digest = hashlib.blake2b(digest_size=12)
        for file in files:
            if not file.is_file():
                raise ReproductionError(f"There is no data file {str(file)!r}; check the path.")
            digest.update(file.read_bytes())
        return digest.hexdigest()


def load_rows(study: Study, data: Data, source: Source) -> TaskData:
    """Load and check the rows of a study."""
    task: Task = load_task(study.task)
    files = source.files(data)
    if files is None and data.hub is not None:
        task = with_dataset(task, data.hub, data.hub_config)
    named: dict[str, Any] = {} if files is None else {"train_file": files[0], "validation_file": files[1]}
    loaded = load_task_data(task, text_columns=data.text_columns or None, **named)
    train = None if loaded.train is None else _first(loaded.train, data.train_rows)
    validation = {name: _first(rows, data.validation_rows) for name, rows in loaded.validation.items()}
    return replace(loaded, train=train, validation=validation)


def _first(rows: Dataset, count: int) -> Dataset:
    return rows.select(range(min(count, len(rows)))) if count else rows


def _split(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{ending}" for ending in ENDINGS if (folder / f"{name}{ending}").is_file()]
    if not found:
        raise ReproductionError(
            f"There is no {name} file in {str(folder)!r}: --data-dir wants one folder a data set, with files such as "
            f"{name}.parquet; or leave it out to take the data from the Hub."
        )
    return found[0]
