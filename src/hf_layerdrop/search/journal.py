"""Keep what was scored, so that an interrupted search goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields

from hf_layerdrop.checkpoints.journal import Journal, Record, reading_records
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.search.space import Key, Layers, key_of

_KIND = "a search"
_LATER = ("rows", "intervals")  # which a journal of an older version has not
_FIELDS = [field.name for field in fields(SubNetworkResult) if field.name not in _LATER]


class KnownScores:
    """Results of sub-networks that another process keeps: it writes down what is added here."""

    def __init__(self, known: Mapping[Key, SubNetworkResult]) -> None:
        self.known = dict(known)

    def find(self, kept: Layers) -> SubNetworkResult | None:
        """Return the result of a sub-network, or None if it was not scored yet."""
        return self.known.get(key_of(kept))

    def add(self, results: Sequence[SubNetworkResult]) -> None:
        """Know results."""
        self.known.update({key_of(result.keep_layers): result for result in results})


class ScoreJournal(KnownScores):
    """Results of sub-networks of one model on one data set, by one metric; all three make the fingerprint.

    Records of other fingerprints may stand in the same file, and are left alone.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self._journal = Journal(path, _KIND, ["fingerprint", *_FIELDS])
        self._fingerprint = fingerprint
        ours = (record for record in self._journal.records if record["fingerprint"] == fingerprint)
        with reading_records(path, _KIND):
            results = [SubNetworkResult.from_dict(_without_fingerprint(record)) for record in ours]
            super().__init__({key_of(result.keep_layers): result for result in results})

    def add(self, results: Sequence[SubNetworkResult]) -> None:
        """Write down results; they are on the disk afterwards."""
        self._journal.add(*({"fingerprint": self._fingerprint, **result.to_dict()} for result in results))
        super().add(results)


def _without_fingerprint(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "fingerprint"}
