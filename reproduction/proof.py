"""What the journal says of the studies of several depths: scores, costs and readings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from hf_layerdrop.samplers.keep_layers import parse_keep_layers
from reproduction.criteria import Comparison, Criteria
from reproduction.journal import Record, records_of
from reproduction.paired import Difference, Interval, Resampled, difference
from reproduction.row_scores import RowScores
from reproduction.study import DEEP, MINI, WHOLE, Study
from reproduction.variants import best_variant, tried_variants

LISTED = "depths"  # the arm of one training for a list of depths
OPEN = "open"  # not all runs are there that would say
_OWN = ("alone-{cut}", "scratch-{cut}")


@dataclass(frozen=True)
class Read:
    """The reading of a comparison at a cut."""

    comparison: Comparison
    cut: str
    sides: tuple[str, str]
    difference: Difference
    lacks: str = ""

    @property
    def verdict(self) -> str:
        """The reading, or which runs it waits for."""
        return f"{OPEN}, {self.lacks}" if self.lacks else self.difference.verdict


@dataclass
class Measured:
    """One study and what was measured of it; of arms with variants the best stands for all.

    Attributes:
        study: The study.
        records: The journal.
        criteria: What it is read by.
    """

    study: Study
    records: Sequence[Record]
    criteria: Criteria
    _known: dict[tuple[str, str], Resampled] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """The arms, without variants."""
        return [*(self.study.variants or self.study.arms)]

    @property
    def cuts(self) -> Mapping[str, object]:
        """The cuts, the whole first."""
        return self.study.sizes[MINI].cuts

    def best(self, arm: str) -> str | None:
        """Return the run that stands for an arm; ``layerdrop`` is that of all rates."""
        arms = self._rates() if arm == "layerdrop" else [arm]
        return best_variant(self.study, MINI, self.records, *arms) if arms and {*arms} <= {*self.arms} else None

    def _rates(self) -> list[str]:
        return [one for one in self.arms if one.startswith("layerdrop-")]

    def tried(self, arm: str) -> set[str]:
        """Return the settings that an arm was tried with, by the names of its variants."""
        return {one.removeprefix(f"{arm}-") for one in tried_variants(self.study, MINI, self.records, arm)}

    def behind(self, *arms: str) -> str:
        """Say how many settings arms were tried with, where others were tried with more; empty if they are level."""
        tried = [len(self.tried(one)) for arm in arms for one in self._single(arm)]
        most = max((len(self.tried(one)) for one in self.arms), default=0)
        least = min(tried, default=most)
        return f"{least} of {most} settings" if least < most else ""

    def lacks_seeds(self, arm: str) -> bool:
        """Tell whether an arm was measured with fewer seeds than it is to be."""
        return not {*self.criteria.seeds} <= {one["seed"] for one in self.of(arm)}

    def lacks(self, arms: Sequence[str], seeds: int) -> str:
        """Say which runs are missing before arms can be compared; empty if none is."""
        wanted = len(self.criteria.seeds)
        return self.behind(*arms) or (f"{seeds} of {wanted} seeds" if seeds < wanted else "")

    def _single(self, arm: str) -> list[str]:
        """Return an arm, or of LayerDrop every rate that was measured: one that was never run is not waited for."""
        return [one for one in (self._rates() if arm == "layerdrop" else [arm]) if self.of(one)]

    def of(self, arm: str) -> list[Record]:
        """Return the records of the run that stands for an arm, one a seed."""
        best = self.best(arm)
        return [] if best is None else records_of(self.records, self.study.name, best, MINI)

    def scores(self, arm: str, cut: str) -> Resampled:
        """Return the scores of an arm at a cut, without a seed where nothing was measured."""
        key = (arm, cut)
        if key not in self._known:
            packed = {one["seed"]: one["cuts"][cut]["row_scores"] for one in self.of(arm) if cut in one["cuts"]}
            rows = {seed: RowScores.unpack(one) for seed, one in packed.items()}
            self._known[key] = Resampled(rows, self.criteria.resamples)
        return self._known[key]

    def layers(self, cut: str) -> int:
        """Return how many layers a cut keeps, over all stacks."""
        return sum(map(len, parse_keep_layers(self.cuts[cut], self.study.sizes[MINI].layers).values()))  # type: ignore[arg-type]

    def own(self, cut: str, ending: str = "") -> str | None:
        """Return the arm that was trained for a depth alone."""
        if cut == WHOLE:
            return None if ending else DEEP
        names = [f"{name.format(cut=cut)}{ending}" for name in _OWN]
        return next((name for name in names if name in self.arms), None)

    def readings(self, mark: str | None = None) -> Iterator[Read]:
        """Go through the comparisons of which this study has both sides, or those with a mark."""
        for comparison in self.criteria.comparisons:
            if mark is not None and comparison.mark != mark:
                continue
            for cut in self.cuts:
                other = self._other(comparison.than, cut)
                if not comparison.speaks_of(cut) or other is None or self.best(comparison.arm) is None:
                    continue
                at = comparison.at or cut
                if (comparison.arm, at) == (other, cut):
                    continue
                found = difference(
                    self.scores(comparison.arm, at),
                    self.scores(other, cut),
                    self.criteria,
                    kind=comparison.kind,
                    share=self.layers(cut) / self.layers(WHOLE),
                )
                lacks = self.lacks((comparison.arm, other), len(found.by_seed))
                yield Read(comparison, cut, (f"{comparison.arm}@{at}", f"{other}@{cut}"), found, lacks)

    def _other(self, than: str, cut: str) -> str | None:
        named = {
            "own": self.own(cut),
            "own-long": self.own(cut, "-long"),
            "distilled": f"distill-{cut}" if f"distill-{cut}" in self.arms else None,
        }
        other = named.get(than, than)
        return other if other is not None and self.best(other) is not None else None

    def cost(self, arm: str) -> float | None:
        """Return the layer forwards of an arm, its teacher's training included, in trainings of the whole model."""
        found, whole = self.of(arm), self.of(DEEP)
        if not found or not whole:
            return None
        teacher = fmean(one["layer_forwards"] for one in whole) if arm.startswith("distill-") else 0.0
        return (fmean(one["layer_forwards"] for one in found) + teacher) / fmean(one["layer_forwards"] for one in whole)

    def minutes(self, *arms: str) -> float:
        """Return the CPU minutes of training arms once each, teachers left out."""
        return sum(fmean(one["cpu_seconds"] for one in self.of(arm)) for arm in arms) / 60

    def costs_alone(self) -> list[tuple[str, float]]:
        """Return what training 1, 2, ... of the depths each alone costs, added up from the cheapest on."""
        own = {cut: self.own(cut) for cut in self.cuts}
        costs = {cut: self.cost(arm) for cut, arm in own.items() if arm is not None}
        total, sums = 0.0, []
        for cut, cost in sorted(((c, v) for c, v in costs.items() if v is not None), key=lambda pair: pair[1]):
            total += cost
            sums.append((cut, total))
        return sums


def mean_of(one: Measured, arm: str, cut: str) -> Interval | None:
    """Return the score of an arm at a cut with its interval; None where nothing was measured."""
    found = one.scores(arm, cut)
    return found.mean(one.criteria.confidence) if found.whole else None
