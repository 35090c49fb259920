"""The journal of finished runs, each on the disk before the next begins."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hf_layerdrop.checkpoints import journal
from hf_layerdrop.checkpoints.journal import Record

FILE = "journal.jsonl"
SHIPPED = Path(__file__).with_name("measured.jsonl")
SHIPPED_DEPTHS = Path(__file__).with_name("depths.jsonl")  # of several depths, with the scores of all rows

_KIND, _FIELDS = "runs", ("key", "study", "arm", "seed", "cuts")


class Journal:
    """Records by the key of their run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._journal = journal.Journal(path, _KIND, _FIELDS)
        self._by_key = {record["key"]: record for record in self._journal.records}

    def find(self, key: str) -> Record | None:
        """Return the record of a run, or None if it is not finished."""
        return self._by_key.get(key)

    def add(self, record: Record, *, write: bool = True) -> None:
        """Write a record, which is on the disk when this returns, or only know it: another process writes it."""
        self._by_key[record["key"]] = record
        if write:
            self._journal.add(record)


def read_journal(path: str | os.PathLike[str]) -> list[Record]:
    """Read the finished lines of a journal; a file that is not there has none.

    Raises:
        LayerDropConfigError: If it is no journal of runs.
    """
    return journal.read_journal(path, _KIND, _FIELDS)


def records_of(records: Iterable[Record], study: str, arm: str, size: str) -> list[Record]:
    """Return the records of an arm, one a seed, in the order of the seeds; of several of one seed the last."""
    found = {
        record["seed"]: record
        for record in records
        if (record["study"], record["arm"], record["size"]) == (study, arm, size) and not record.get("short")
    }
    return [found[seed] for seed in sorted(found)]
