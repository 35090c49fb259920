"""Keep what was scored: a file with one JSON record a line, so that an interrupted search goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.evaluation.results import SubNetworkResult
from hf_layerdrop.search.space import Layers, key_of


class Journal:
    """Results of sub-networks of one model on one data set, by one metric; all three make the fingerprint.

    Records of other fingerprints may stand in the same file, and are left alone. Each write is on the disk when it
    returns; a line that a killed process left unfinished is dropped.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self._path = Path(path)
        self._fingerprint = fingerprint
        self._known = {key_of(result.keep_layers): result for result in self._read()}

    def find(self, kept: Layers) -> SubNetworkResult | None:
        """Return the result of a sub-network, or None if it was not scored yet."""
        return self._known.get(key_of(kept))

    def add(self, results: Sequence[SubNetworkResult]) -> None:
        """Write down results; they are on the disk afterwards."""
        lines = [json.dumps({"fingerprint": self._fingerprint, **result.to_dict()}) + "\n" for result in results]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._known.update({key_of(result.keep_layers): result for result in results})

    def _read(self) -> list[SubNetworkResult]:
        if not self._path.exists():
            return []
        try:
            whole, _, unfinished = self._path.read_bytes().rpartition(b"\n")
            records = [json.loads(line) for line in whole.splitlines()]
            if unfinished and not unfinished.startswith(b'{"'):
                raise ValueError
            ours = [record for record in records if record.pop("fingerprint") == self._fingerprint]
            results = [SubNetworkResult.from_dict(record) for record in ours]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LayerDropConfigError(
                f"The journal {str(self._path)!r} is not one of a search: give the name of a new file."
            ) from error
        if unfinished:
            with self._path.open("rb+") as file:
                file.truncate(len(whole) + bool(whole))
        return results
