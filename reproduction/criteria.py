"""By what the studies of several depths are read: margins, rules and comparisons, fixed before their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from reproduction.reading import load_yaml
from reproduction.study import WHOLE

CRITERIA = Path(__file__).with_name("criteria.yaml")
AS_GOOD, BETTER = "as_good", "better"


@dataclass(frozen=True)
class Comparison:
    """Two arms at the same cut, or the first at one cut of its own.

    Attributes:
        says: What is claimed.
        arm: The arm that it is claimed of.
        than: The other one: an arm, ``own``, ``own-long``, ``distilled`` or ``layerdrop``.
        kind: ``as_good``, by the margin of the metric, or ``better``.
        at: The cut of the first arm; None for the same as the other's.
        of: Which cuts: ``full``, ``cuts`` or ``all``.
        mark: By what the summary of the page finds it.
    """

    says: str
    arm: str
    than: str
    kind: str
    at: str | None = None
    of: str = "all"
    mark: str = ""

    def speaks_of(self, cut: str) -> bool:
        """Tell whether it is about a cut."""
        return self.of == "all" or (self.of == "full") == (cut == WHOLE)


@dataclass(frozen=True)
class Criteria:
    """What is in the file; see there."""

    seeds: tuple[int, ...]
    confidence: float
    resamples: int
    margins: Mapping[str, Mapping[str, float]]
    rules: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def margin(self, metric: str, share: float) -> float:
        """Return how far below "as good" may lie at a share of the layers: in points, percent or BLEU."""
        return self.margins[metric]["half_and_above" if share >= 0.5 else "below"]


@cache
def criteria() -> Criteria:
    """Read the file of the package."""
    values: dict[str, Any] = load_yaml(CRITERIA)
    values["comparisons"] = tuple(Comparison(**one) for one in values["comparisons"])
    return Criteria(**{**values, "seeds": tuple(values["seeds"]), "rules": tuple(values["rules"])})
