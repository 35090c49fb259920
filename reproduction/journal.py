"""The journal of finished runs: one JSON record a line, on the disk before the next run begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reproduction.errors import ReproductionError

FILE = "journal.jsonl"
SHIPPED = Path(__file__).with_name("measured.jsonl")

Record = Mapping[str, Any]


class Journal:
    """Records by the key of their run; a line that a killed process left unfinished is dropped."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._records = {record["key"]: record for record in read_journal(self._path)}
        self._drop_unfinished_line()

    def find(self, key: str) -> Record | None:
        """Return the record of a run, or None if it is not finished."""
        return self._records.get(key)

    def add(self, record: Record, *, write: bool = True) -> None:
        """Write a record, which is on the disk when this returns, or only know it: another process writes it."""
        self._records[record["key"]] = record
        if not write:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _drop_unfinished_line(self) -> None:
        content = self._path.read_bytes() if self._path.exists() else b""
        if content and not content.endswith(b"\n"):
            with self._path.open("rb+") as file:
                file.truncate(content.rfind(b"\n") + 1)


def read_journal(path: str | os.PathLike[str]) -> list[Record]:
    """Read the finished lines of a journal; a file that is not there has none.

    Raises:
        ReproductionError: If it is no journal of runs.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        complete = all({"key", "study", "arm", "seed", "cuts"} <= set(record) for record in records)
    except (OSError, ValueError, TypeError) as error:
        raise ReproductionError(f"{str(path)!r} is no journal of runs: name another --output.") from error
    if not complete:
        raise ReproductionError(f"{str(path)!r} is no journal of runs: name another --output.")
    return records


def records_of(records: Iterable[Record], study: str, arm: str, size: str) -> list[Record]:
    """Return the records of an arm, one a seed, in the order of the seeds; of several of one seed the last."""
    found = {
        record["seed"]: record
        for record in records
        if (record["study"], record["arm"], record["size"]) == (study, arm, size) and not record.get("short")
    }
    return [found[seed] for seed in sorted(found)]
