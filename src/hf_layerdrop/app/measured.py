"""What is known of a checkpoint's sub-networks: its recommended sets, or the records of a sweep beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_layerdrop.checkpoints.recommended import RecommendedSets
from hf_layerdrop.checkpoints.recommended_file import found_recommended
from hf_layerdrop.errors import LayerDropError
from hf_layerdrop.results.recommended import as_results
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.results.table import RESULTS_FILE, format_kept, format_score, read_results

Depths = Mapping[str, int]


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, best first of each depth; what cannot be used is said in ``note``.

    Attributes:
        results: A record a depth, the deepest first.
        metric: The metric that decides; None of a sweep's records, which do not say.
        note: Why there is no table, if something else than its absence is the reason.
    """

    results: Sequence[SubNetworkResult] = ()
    metric: str | None = None
    note: str = ""

    @property
    def choices(self) -> list[tuple[str, int]]:
        """The recommended sets for a list to choose from: what is shown, and the number of the record."""
        return [
            (f"{_depth(one)}: {format_kept(one.keep_layers)} ({self.metric} {format_score(one, self.metric)})", place)
            for place, one in enumerate(self.results)
            if self.metric
        ]

    def row_of(self, kept: Mapping[str, Sequence[int]]) -> int | None:
        """Return the number of the record of a sub-network, if it was measured."""
        wanted = {stack: tuple(layers) for stack, layers in kept.items()}
        return next((place for place, one in enumerate(self.results) if dict(one.keep_layers) == wanted), None)


def find_measured(model: str, revision: str | None, depths: Depths) -> Measured:
    """Look for what was measured of a checkpoint; a table that is broken or of another model is no reason to stop."""
    try:
        table = found_recommended(model, revision)
        if table is not None:
            table.check(depths)
            return Measured(_best_of_each_depth(table), table.metric)
        file = Path(model) / RESULTS_FILE
        results = read_results(file) if file.is_file() else []
    except LayerDropError as error:
        return Measured(note=str(error))
    return Measured([one for one in results if _is_of(one, depths)])


def _best_of_each_depth(table: RecommendedSets) -> list[SubNetworkResult]:
    scored = [one for one in table.sets if table.score(one) is not None]
    best = [table.best(dict(depths)) for depths in dict.fromkeys(tuple(one.depths.items()) for one in scored)]
    return as_results(table.model_copy(update={"sets": best}))


def _is_of(result: SubNetworkResult, depths: Depths) -> bool:
    kept = result.keep_layers
    return set(kept) == set(depths) and all(max(layers) < depths[stack] for stack, layers in kept.items())


def _depth(result: SubNetworkResult) -> str:
    count = " + ".join(str(len(kept)) for kept in result.keep_layers.values())
    return f"{count} {'layer' if count == '1' else 'layers'}"
