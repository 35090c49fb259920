"""Keep what is done: a file with one JSON record a line, so that work that was interrupted goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

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
    try:
        finished, _, unfinished = Path(path).read_bytes().rpartition(b"\n")
        records = [json.loads(line) for line in finished.splitlines()]
        whole = all(record.pop("version", VERSION) == VERSION and {*fields} <= {*record} for record in records)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_journal(path, kind) from error
    if not whole or (unfinished and not unfinished.startswith(b'{"')):
        raise _no_journal(path, kind)
    return records


def _no_journal(path: str | os.PathLike[str], kind: str) -> LayerDropConfigError:
    return LayerDropConfigError(
        f"The journal {os.fspath(path)!r} is not one of {kind}, or of a later version: give the name of a new file."
    )
