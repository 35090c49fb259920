"""Mean and spread over seeds, and what they say of each claim; pure numbers, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from reproduction.experiment import METRIC, Claim, Experiment, Side
from reproduction.journal import Record, records_of
from reproduction.study import DEEP, SHALLOWER, WHOLE, Study

HOLDS, FAILS, UNRESOLVED, MISSING = "holds", "does not hold", "not resolved at this size", "not measured yet"
_SHOWN = {FAILS: "not so", UNRESOLVED: "not resolved", MISSING: "not measured yet"}
SPREADS = 3  # a gap counts from so many times the spread over seeds


@dataclass(frozen=True)
class Quantity:
    """A number by seed.

    Attributes:
        by_seed: The values by seed.
    """

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None where there is one."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def only(self, seeds: Iterable[int]) -> Quantity:
        """Return the same of some seeds."""
        return Quantity({seed: self.by_seed[seed] for seed in seeds})


@dataclass(frozen=True)
class Reading:
    """What the numbers say of a claim.

    Attributes:
        says: The claim.
        study: Where it was tested.
        verdict: One of the four above.
        because: The measurement that shows why.
    """

    says: str
    study: str
    verdict: str
    because: str


def quantity_of(records: Sequence[Record], study: Study, size: str, side: Side, quantity: str = METRIC) -> Quantity:
    """Return what was measured of an arm at a cut; without a seed where nothing was."""
    found = records_of(records, study.name, side.arm, size)
    if quantity != METRIC:
        return Quantity({record["seed"]: record[quantity] for record in found})
    measured = [record for record in found if side.cut in record["cuts"]]
    return Quantity({record["seed"]: record["cuts"][side.cut]["metrics"][study.metric] for record in measured})


def read_experiment_claims(
    experiment: Experiment, studies: Mapping[str, Study], size: str, records: Sequence[Record]
) -> list[Reading]:
    """Return the reading of each claim of an experiment, in each study that it speaks of."""
    return [
        read_claim(claim, studies[name], size, records)
        for name in experiment.studies_at(size)
        if size in studies[name].sizes
        for claim in experiment.claims_of(name)
    ]


def read_claim(claim: Claim, study: Study, size: str, records: Sequence[Record]) -> Reading:
    """Compare the two sides of a claim on the seeds that both have.

    It holds where the gap is over three times the spread over seeds, the larger one of both sides; where it is that
    much the other way, it does not. A claim about depth is only read where depth pays.
    """
    better, than = (quantity_of(records, study, size, side, claim.quantity) for side in (claim.better, claim.than))
    lower = study.lower_is_better and claim.quantity == METRIC
    verdict, because = compare(better, than, lower_is_better=lower)
    because = f"{claim.better} against {claim.than}: {because}"
    if verdict in (HOLDS, FAILS) and claim.about_depth:
        unpaid = [reading for reading in precondition(study, size, records) if reading.verdict != HOLDS]
        if unpaid:
            because = f"{because}; but that depth pays here is {_SHOWN[unpaid[0].verdict]}: {unpaid[0].because}"
            return Reading(claim.says, study.name, UNRESOLVED, because)
    return Reading(claim.says, study.name, verdict, because)


def precondition(study: Study, size: str, records: Sequence[Record]) -> list[Reading]:
    """Tell whether depth pays: the standard model is better whole than half and a quarter of it from scratch."""
    readings = []
    for arm in SHALLOWER:
        if arm not in study.arms:
            continue
        deep, shallow = Side(DEEP, WHOLE), Side(arm, study.arms[arm].cut)
        sides = [quantity_of(records, study, size, side) for side in (deep, shallow)]
        verdict, because = compare(*sides, lower_is_better=study.lower_is_better)
        says = f"Depth pays: the whole model is better than {shallow.cut} of its layers from scratch"
        readings.append(Reading(says, study.name, verdict, f"{deep} against {shallow}: {because}"))
    return readings


def compare(better: Quantity, than: Quantity, *, lower_is_better: bool) -> tuple[str, str]:
    """Return the verdict on "the first is better", and the numbers behind it."""
    seeds = sorted(set(better.by_seed) & set(than.by_seed))
    if not seeds:
        return MISSING, "there is no seed with both"
    better, than = better.only(seeds), than.only(seeds)
    gap = than.mean - better.mean if lower_is_better else better.mean - than.mean
    numbers = f"{better.mean:.4g} and {than.mean:.4g}, better by {gap:.3g}"
    if len(seeds) == 1:
        return UNRESOLVED, f"{numbers}, of one seed, which has no spread"
    spread = max(better.spread or 0.0, than.spread or 0.0)
    numbers = f"{numbers}, spread {spread:.2g} over {len(seeds)} seeds"
    if abs(gap) <= SPREADS * spread:
        return UNRESOLVED, f"{numbers}: no more than {SPREADS} spreads"
    return (HOLDS if gap > 0 else FAILS), numbers
