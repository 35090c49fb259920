"""Divide sub-networks among ranks: each measures a run of the walk in which they share most, and all get all records.

A rank that does not begin the walk runs the sub-network before its own first, so that each of its own shares what it
would share in one process; the records are then the same, but for times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from itertools import accumulate, pairwise, takewhile
from time import perf_counter
from typing import Protocol

from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.prefix_sharing import Kept, in_walking_order
from hf_layerdrop.evaluation.ranks import Ranks
from hf_layerdrop.results.record import SubNetworkResult

Layers = Mapping[str, tuple[int, ...]]
Done = Callable[[list[SubNetworkResult]], None]

# The records of the other ranks arrive about so often: at once would make all of them wait for the slowest each time.
SECONDS_BETWEEN_MEETINGS = 5.0
# What a sub-network costs beside its layers, in layers: embeddings, head and metric.
_BESIDE_LAYERS = 1


class Measure(Protocol):
    """What measures sub-networks, a few at a time, and hands over the records as they come."""

    def __call__(self, kept: Sequence[Layers], done: Done) -> None:
        """Measure the sub-networks and call ``done`` with the records of each few."""


def in_shares(measure: Measure, ranks: Ranks, *, shares_prefixes: bool) -> Measure:
    """Let each rank measure a share of the sub-networks that are asked for; all of them have to ask for the same.

    ``done`` is handed a rank's own records as they come, and those of the others every few seconds, and at the end.
    """
    if ranks.size == 1:
        return measure

    def measure_share(kept: Sequence[Layers], done: Done) -> None:
        walk = [kept[place] for place in in_walking_order(kept)]
        begin, end = shares_of(walk, ranks.size, shares_prefixes=shares_prefixes)[ranks.rank]
        own = {key_of(layers) for layers in walk[begin:end]}
        if shares_prefixes and 0 < begin < end and _common(walk[begin - 1], walk[begin]):
            begin -= 1
        exchange = _Exchange(ranks, fingerprint([key_of(layers) for layers in walk]), done)
        if begin < end:
            measure(walk[begin:end], lambda records: exchange.add(_only(own, records)))
        exchange.finish()

    return measure_share


class _Exchange:
    """Hand on the records of this rank at once, and those of the others when the ranks meet, which they agree on."""

    def __init__(self, ranks: Ranks, purpose: str, done: Done) -> None:
        self._ranks = ranks
        self._purpose = purpose
        self._done = done
        self._records: list[SubNetworkResult] = []  # since the last meeting
        self._until_meeting = 1
        self._since = perf_counter()

    def add(self, records: list[SubNetworkResult]) -> None:
        """Take records of this rank, and meet the others if it is time."""
        if records:
            self._done(records)
        self._records += records
        if len(self._records) >= self._until_meeting:
            self._meet(finished=False)

    def finish(self) -> None:
        """Meet the others until all have finished."""
        while not self._meet(finished=True):
            pass

    def _meet(self, *, finished: bool) -> bool:
        seconds = (perf_counter() - self._since) / max(1, len(self._records))
        said = self._ranks.gather((self._records, seconds, finished), self._purpose)
        theirs = [record for rank, (records, *_) in enumerate(said) if rank != self._ranks.rank for record in records]
        if theirs:
            self._done(theirs)
        slowest = max(seconds for _, seconds, _ in said)
        self._until_meeting = 1 + int(SECONDS_BETWEEN_MEETINGS / max(slowest, 1e-3))
        self._records, self._since = [], perf_counter()
        return all(finished for *_, finished in said)


def _only(own: Set[Hashable], records: Sequence[SubNetworkResult]) -> list[SubNetworkResult]:
    return [record for record in records if key_of(record.keep_layers) in own]


def shares_of(walk: Sequence[Layers], ranks: int, *, shares_prefixes: bool) -> list[tuple[int, int]]:
    """Divide a walk into runs, one a rank, of which the dearest is as cheap as can be; the last may be empty.

    Returns:
        Where each begins and ends.
    """
    alone = [_BESIDE_LAYERS + sum(map(len, kept.values())) for kept in walk]
    common = [_common(*pair) if shares_prefixes else 0 for pair in pairwise(walk)]
    costs = [cost - shared for cost, shared in zip(alone, [0, *common], strict=False)]
    # A share that begins in the middle runs the sub-network before it as well, if the two have layers in common.
    extra = [0, *(alone[place] if shared else 0 for place, shared in enumerate(common))]
    low, high = 0, sum(costs)
    while low < high:
        middle = (low + high) // 2
        fits = _runs_within(middle, costs, extra, ranks) is not None
        low, high = (low, middle) if fits else (middle + 1, high)
    runs = _runs_within(low, costs, extra, ranks) or []
    return [*runs, *[(len(walk), len(walk))] * (ranks - len(runs))]


def _runs_within(limit: int, costs: Sequence[int], extra: Sequence[int], ranks: int) -> list[tuple[int, int]] | None:
    """Fill one run after the other up to a limit; None where there are too few ranks for that."""
    runs: list[tuple[int, int]] = []
    begin = 0
    while begin < len(costs):
        sums = accumulate(costs[begin:], initial=extra[begin])
        length = sum(total <= limit for total in sums) - 1
        if length < 1 or len(runs) == ranks:
            return None
        runs.append((begin, begin + length))
        begin += length
    return runs


def _common(one: Layers, other: Layers) -> int:
    """Count the layers, over all stacks, with which both begin."""
    first, second = ([(stack, layer) for stack in kept for layer in kept[stack]] for kept in (one, other))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def key_of(kept: Kept) -> Hashable:
    """Return what tells sub-networks of one model apart."""
    return tuple(sorted((stack, tuple(layers)) for stack, layers in kept.items()))
