"""Score sub-networks for a strategy: each once, best first, written to a journal, with the cost counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from random import Random

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_layerdrop.errors import UnsupportedModelError
from hf_layerdrop.evaluation.divided import Measure
from hf_layerdrop.evaluation.model_or_trainer import Batches
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.search.journal import KnownScores
from hf_layerdrop.search.objective import Objective
from hf_layerdrop.search.space import MAX_SETS, Layers, Space, distinct, key_of


@dataclass(frozen=True)
class Cost:
    """What scoring took.

    Attributes:
        evaluations: How many sub-networks were asked for.
        from_journal: How many of them were in the journal.
        layer_forwards: Layer forwards a batch of all of them, those in the journal included.
        layer_forwards_alone: What they would have taken one by one.
    """

    evaluations: int = 0
    from_journal: int = 0
    layer_forwards: int = 0
    layer_forwards_alone: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(one - less for one, less in zip(astuple(self), astuple(other), strict=True)))


class Scorer:
    """Score sub-networks of one model, each once; ``cost`` is what that has taken so far."""

    def __init__(self, measure: Measure, journal: KnownScores | None = None, *, progress: bool = True) -> None:
        self.cost = Cost()
        self._measure = measure
        self._journal = journal
        self._progress = progress
        self._counts: dict[tuple[tuple[str, int], ...], int] = {}
        self._results: dict[tuple[tuple[int, ...], ...], SubNetworkResult] = {}

    def results(self, kept: Sequence[Layers]) -> list[SubNetworkResult]:
        """Return the results of sub-networks, in the given order; what is known is not measured again."""
        missing = distinct([layers for layers in kept if key_of(layers) not in self._results])
        written = [self._journal.find(layers) for layers in missing] if self._journal else []
        known = [result for result in written if result is not None]
        self._take(known)
        self.cost += Cost(from_journal=len(known))
        missing = [layers for layers in missing if key_of(layers) not in self._results]
        if missing:
            with self._bar(len(missing)) as bar:
                self._measure(missing, lambda results: self._note(results, bar))
        return [self._results[key_of(layers)] for layers in kept]

    def note_forwards(self, layer_forwards: int, alone: int | None = None) -> None:
        """Count layer forwards a batch that a strategy ran by itself."""
        self.cost += Cost(0, 0, layer_forwards, layer_forwards if alone is None else alone)

    def possible_sets(self, space: Space) -> list[Layers]:
        """List all sets of a space that can be cut; a bar shows how far this is where it takes longer than a second."""
        shown = tqdm(
            space.conceivable_sets(),
            total=space.count(),
            desc="Trying cuts",
            unit="sub-network",
            delay=1,
            disable=not self._progress,
            leave=False,
        )
        possible = [kept for kept in shown if space.is_possible(kept)]
        self._counts[tuple(space.target.items())] = len(possible)
        return possible

    def count(self, space: Space) -> int | None:
        """Count the sets of a space that can be cut; None where it would take too long to try them all."""
        key = tuple(space.target.items())
        if key not in self._counts and space.count() <= MAX_SETS:
            self.possible_sets(space)
        return self._counts.get(key)

    def known(self, space: Space) -> list[SubNetworkResult]:
        """Return all results so far that are of the depth of a space."""
        return [
            result
            for result in self._results.values()
            if all(len(kept) == space.target[stack] for stack, kept in result.keep_layers.items())
        ]

    def _note(self, results: list[SubNetworkResult], bar: tqdm) -> None:
        if self._journal:
            self._journal.add(results)
        self._take(results)
        bar.update(len(results))

    def _take(self, results: Sequence[SubNetworkResult]) -> None:
        self._results.update({key_of(result.keep_layers): result for result in results})
        forwards = sum(result.layer_forwards for result in results)
        self.cost += Cost(len(results), 0, forwards, sum(result.depth for result in results))

    @contextmanager
    def _bar(self, count: int) -> Iterator[tqdm]:
        with tqdm(total=count, desc="Scoring", unit="sub-network", disable=not self._progress, leave=False) as bar:
            yield bar


@dataclass(frozen=True)
class Problem:
    """What a strategy is given.

    Attributes:
        space: The sub-networks to choose from.
        scorer: Scores them.
        objective: Says which score is better.
        random: The only source of chance.
        model: The whole model.
        cutter: What cuts it.
        batches: Its inputs; empty where a user's own evaluation has them.
    """

    space: Space
    scorer: Scorer
    objective: Objective
    random: Random
    model: PreTrainedModel
    cutter: Cutter
    batches: Batches

    def best(self, kept: Sequence[Layers], count: int) -> list[Layers]:
        """Score sub-networks and return the best few, best first.

        Raises:
            UnsupportedModelError: If there is none: the model cannot be cut to one layer less, or more.
        """
        if not kept:
            raise UnsupportedModelError(
                "This strategy goes by one layer at a time, and the next one cannot be cut out of a "
                f"{type(self.model).__name__} alone: use strategy='exhaustive' or 'random'. {self.cutter.last_refusal}"
            )
        ranked = sorted(self.scorer.results(kept), key=self.objective.order)
        return [{stack: tuple(layers) for stack, layers in result.keep_layers.items()} for result in ranked[:count]]
