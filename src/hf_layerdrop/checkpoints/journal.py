"""Keep what is done: a file with one JSON record a line, so that work that was interrupted goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_layerdrop.checkpoints.strangers import LARGEST, Unreadable, admitting, parsed, read_bytes
from hf_layerdrop.errors import LayerDropConfigError

VERSION = 1

Record = Mapping[str, Any]


class Journal:
    """Records of one kind; each is on the disk when `add` returns.

    Args:
        path: The file, which need not be there yet.
        kind: What the records are of, for the message where the file holds others.
        fields: What every record has.

    Raises:
        LayerDropConfigError: If the file is no such journal. It is left alone.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str, fields: Collection[str]) -> None:
        self.path = Path(path)
        self.records = read_journal(path, kind, fields)
        self._drop_unfinished_line()

    def add(self, *records: Record) -> None:
        """Write down records; they are on the disk afterwards."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"version": VERSION, **record}) + "\n" for record in records))
            file.flush()
            os.fsync(file.fileno())
        self.records.extend(records)

    def _drop_unfinished_line(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        if content and not content.endswith(b"\n"):
            with self.path.open("rb+") as file:
                file.truncate(content.rfind(b"\n") + 1)


def read_journal(path: str | os.PathLike[str], kind: str, fields: Collection[str]) -> list[Record]:
    """Read the finished lines of a journal; a file that is not there has none. See `Journal`."""
    with reading_records(path, kind):
        try:
            finished, _, unfinished = read_bytes(path, LARGEST).rpartition(b"\n")
        except Unreadable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        records = [parsed(line) for line in finished.splitlines()]
        whole = all(record.pop("version", VERSION) == VERSION and {*fields} <= {*record} for record in records)
        if not whole or unfinished[:2] not in (b"", b"{", b'{"'):
            raise Unreadable("its lines are no records of this kind")
    return records


@contextmanager
def reading_records(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Refuse a journal whose records are not understood; nothing else may be done in the block.

    Raises:
        LayerDropConfigError: For whatever is raised in it.
    """
    with admitting(lambda _: _no_journal(path, kind)):
        yield


def _no_journal(path: str | os.PathLike[str], kind: str) -> LayerDropConfigError:
    return LayerDropConfigError(
        f"The journal {os.fspath(path)!r} is not one of {kind}, or of a later version: give the name of a new file."
    )
