"""The steps that all strategies have in common: propose, score, choose, compare, and write the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

from transformers import PreTrainedModel

from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.evaluation.ranks import ALONE, Ranks
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.search.budgets import Budget, Costs, Target, next_deeper
from hf_layerdrop.search.objective import Objective
from hf_layerdrop.search.overfitting import overfitting_warning, share_between
from hf_layerdrop.search.score_source import ScoreSource
from hf_layerdrop.search.scoring import Problem, Scorer
from hf_layerdrop.search.selection import Neighbour, Scored, Selection
from hf_layerdrop.search.space import Layers, Space, key_of, whole
from hf_layerdrop.search.strategies import Proposal

RUNNER_UPS = 5


@dataclass(frozen=True)
class _Good:
    """The share of so many sets that score at least as well as one, and how many were scored to tell."""

    share: float
    between: tuple[float, float]  # where it is with 95 % confidence
    of: int
    samples: int
    is_exact: bool


@dataclass(frozen=True)
class Search:
    """All that a search is made of, checked."""

    strategy: str
    propose: Callable[[Problem], Proposal]
    model: PreTrainedModel
    cutter: Cutter
    scores: ScoreSource
    scorer: Scorer
    objective: Objective
    costs: Costs
    budget: Budget
    share_samples: int
    seed: int
    reference: SubNetworkResult  # the whole model's
    ranks: Ranks = ALONE

    def run(self, targets: Sequence[Target]) -> Selection:
        """Choose among the sub-networks of one depth, or of each deepest one within a budget."""
        whole_score = self.objective.score(self.reference)  # before anything else is scored: it may not be a number
        began = self.scorer.cost
        # Of a choice by importance, whose numbers may differ in the last digit between devices, that of rank 0 counts.
        proposals = [self.ranks.gather(self.propose(self._problem(target)))[0] for target in targets]
        sets = list(chain.from_iterable(proposal.sub_networks for proposal in proposals))
        if not sets:
            raise UnsupportedModelError(
                f"A {type(self.model).__name__} cannot be cut to any set of this depth that strategy {self.strategy!r} "
                f"came to: choose another depth or strategy. {self.cutter.last_refusal}"
            )
        ranked = sorted(self.scorer.results(sets), key=self.objective.order)
        spent = self.scorer.cost - began
        winner = ranked[0]
        kept = _layers(winner)
        space = Space(self.cutter.depths, {stack: len(layers) for stack, layers in kept.items()}, self.cutter.can_cut)
        runner_ups = sorted(self.scorer.known(space), key=self.objective.order)
        outside = tuple(self._outside(space.target)) if self.budget.asks else ()
        good = self._good(space, winner)
        others = [result for result in runner_ups if result is not winner][:RUNNER_UPS]
        shown = [kept, whole(self.cutter.depths), *map(_layers, others)]
        test_score, whole_test_score, *test_scores = self._test_scores(shown)
        score = self.objective.score(winner)
        latency = self.costs.measured_ms(kept)
        return Selection(
            keep_layers=kept,
            depths=dict(self.cutter.depths),
            strategy=self.strategy,
            metric=self.objective.name,
            greater_is_better=self.objective.greater_is_better,
            score=score,
            test_score=test_score,
            whole_score=whole_score,
            whole_test_score=whole_test_score,
            split=self.scores.split,
            parameters=winner.parameters,
            size_mb=self.costs.size_mb(kept),
            latency_ms=latency,
            evaluations=spent.evaluations,
            from_journal=spent.from_journal,
            layer_forwards=spent.layer_forwards,
            layer_forwards_alone=spent.layer_forwards_alone,
            extra_layer_forwards=(self.scorer.cost - spent).layer_forwards,
            shared=self.scores.shared,
            sub_networks=good.of,
            share_as_good=good.share,
            share_is_exact=good.is_exact,
            share_samples=good.samples,
            share_between=good.between,
            runner_ups=tuple(map(self._scored, others, test_scores)),
            outside=outside,
            importances=next((proposal.importances for proposal in proposals if sets and proposal.importances), None),
            warnings=tuple(self._warnings((score, test_score), (whole_score, whole_test_score), latency)),
        )

    def _problem(self, target: Target) -> Problem:
        return Problem(
            Space(self.cutter.depths, target, self.cutter.can_cut),
            self.scorer,
            self.objective,
            Random(self.seed),
            self.model,
            self.cutter,
            self.scores.batches,
        )

    def _outside(self, target: Target) -> Iterator[Neighbour]:
        """Yield what one more layer would give: the best set of that depth that was scored, else a spread one."""
        for deeper in next_deeper(target, self.cutter.depths):
            space = Space(self.cutter.depths, deeper, self.cutter.can_cut)
            results = self.scorer.known(space)
            if not results and (kept := space.some_set()):
                results = self.scorer.results([kept])
            if not results:  # it cannot be cut to that depth
                continue
            best = min(results, key=self.objective.order)
            kept = _layers(best)
            yield Neighbour(
                kept,
                self.objective.score(best),
                best.parameters,
                self.costs.size_mb(kept),
                self.costs.latency_ms(kept),
            )

    def _good(self, space: Space, winner: SubNetworkResult) -> _Good:
        """Find the share of the possible sets that score at least as well as the winner.

        The sets that a search looked at are better than most, so what they say is only counted for themselves; the
        others are judged by random ones of them. Where there are too many sets to try the cut of each, these draws say
        as well how many are possible.
        """
        known = self.scorer.known(space)
        good, counted = self._count_good(known, winner), self.scorer.count(space)
        if counted == len(known):
            return _Good(good / counted, (good / counted, good / counted), counted, counted, is_exact=True)
        seen = {key_of(result.keep_layers) for result in known}
        drawn, share_possible = space.draw(self.share_samples, Random(f"share {self.seed}"), without=seen)
        samples = len(known) + len(drawn)
        count = counted or max(samples, round(space.count() * share_possible))
        good_drawn = self._count_good(self.scorer.results(drawn), winner)
        others = count - len(known)
        shares = [good_drawn / max(1, len(drawn)), *share_between(good_drawn, len(drawn))]
        is_exact = samples == counted
        share, low, high = ((good + others * (shares[0] if is_exact else part)) / count for part in shares)
        return _Good(share, (low, high), count, samples, is_exact)

    def _count_good(self, results: Sequence[SubNetworkResult], winner: SubNetworkResult) -> int:
        score = self.objective.score(winner)
        return sum(self.objective.gain(self.objective.score(result), score) >= 0 for result in results)

    def _test_scores(self, sets: Sequence[Layers]) -> list[float] | list[None]:
        """Score sub-networks on the separate data."""
        if self.scores.test is None:
            return [None] * len(sets)
        return [self.objective.score(result) for result in Scorer(self.scores.test, progress=False).results(sets)]

    def _warnings(
        self, scores: tuple[float, float | None], whole_scores: tuple[float, float | None], latency: float | None
    ) -> Iterator[str]:
        if scores[1] is not None and whole_scores[1] is not None:
            both, whole_both = (scores[0], scores[1]), (whole_scores[0], whole_scores[1])
            overfitted = overfitting_warning(self.objective, both, whole_both, self.scores.examples)
            if overfitted:
                yield overfitted
        limit = self.budget.max_latency_ms
        if limit is not None and latency is not None and latency > limit:
            yield (
                f"The choice took {latency:.3g} ms when it was measured again, more than the {limit:g} of "
                "max_latency_ms: this machine is not quiet, or its layers differ; leave some room."
            )

    def _scored(self, result: SubNetworkResult, test_score: float | None) -> Scored:
        return Scored(_layers(result), self.objective.score(result), result.parameters, test_score)


def _layers(result: SubNetworkResult) -> Layers:
    return {stack: tuple(kept) for stack, kept in result.keep_layers.items()}
