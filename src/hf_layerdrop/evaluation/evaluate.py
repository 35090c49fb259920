"""Quality against depth: measure sub-networks in place, without copying or finetuning a weight."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import combinations
from statistics import median
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer

from hf_layerdrop.architectures.wrappers import check_module
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.batches import fresh
from hf_layerdrop.evaluation.confidence import NO_ROWS, Rows, interval_of
from hf_layerdrop.evaluation.divided import Done, Measure, in_shares, key_of
from hf_layerdrop.evaluation.encoder_sharing import EncoderMemory, encoder_memory, shared_encoder
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.model_or_trainer import (
    AnyMetric,
    Collator,
    Data,
    ModelSource,
    Reading,
    Source,
    Tally,
    as_batches,
    numbers_of,
)
from hf_layerdrop.evaluation.parameter_counts import parameters_of
from hf_layerdrop.evaluation.prefix_sharing import Kept, PrefixRunner, Run, in_walking_order, shared_prefixes
from hf_layerdrop.evaluation.random_streams import RandomStreams, seeded_streams
from hf_layerdrop.evaluation.ranks import ALONE, Ranks, ranks_of_launch
from hf_layerdrop.evaluation.stopwatch import Stopwatch
from hf_layerdrop.evaluation.trainer_source import Evaluation, TrainerSource
from hf_layerdrop.evaluation.unchanged import Comparison, Doubts, Held, tensors_of
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.results.collection import SubNetworkResults
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers, evenly_spread

Layers = Mapping[str, tuple[int, ...]]
Scores = tuple[Mapping[str, Any], Rows]

# A search keeps the records of each pass, so an interrupt costs at most so many; few, and the batches are read often.
SUB_NETWORKS_A_PASS = 16
# Where records are written as they come, those that share most of their layers come together.
SUB_NETWORKS_A_RECORD = 4


def evaluate_depths(
    model_or_trainer: PreTrainedModel | Trainer,
    dataset: Data | Mapping[str, Data] | Evaluation | None = None,
    *,
    depths: Iterable[KeepLayers],
    metric: AnyMetric | None = None,
    batch_size: int = 32,
    collator: Collator | None = None,
    progress: bool = True,
) -> SubNetworkResults:
    """Measure sub-networks of a model in place, and return one record each, in the order of ``depths``.

    Sub-networks that begin with the same layers run them once a batch; what is scored is still, to the bit, what each
    would give alone. With a Trainer that is what its ``evaluate`` would give of the model cut to these layers. No
    weight is copied or changed, no random stream is moved, and the model is as before afterwards; only an optimizer
    with averaged weights (schedule-free) is left with those, as ``Trainer.evaluate`` leaves it.

    In a launch of several processes, all of them call it; they divide the sub-networks, and each returns the records
    that one process gives.

    Args:
        model_or_trainer: A model, or a Trainer, whose own data loader, loss and ``compute_metrics`` are then used.
            Where its ``evaluate``, ``evaluation_loop`` or ``log`` is not that of transformers, or with
            ``batch_eval_metrics``, its ``evaluate`` is called for one sub-network after the other, and no layers are
            shared.
        dataset: With a model: batches (a DataLoader or any iterable of dicts of tensors) or a dataset of examples.
            With a Trainer: a dataset in place of its ``eval_dataset``.
        depths: The sub-networks, each in any form of ``keep_layers``: a depth, indices, a dict by stack, ...
        metric: A name (``accuracy``, ``f1``, ``matthews_correlation``, ``pearson``, ``spearmanr``, ``loss``,
            ``perplexity``: of tokens, whatever the lengths of the batches), an
            `evaluate` metric, or a function from `EvalPrediction` to a number or a dict of numbers. None takes the
            Trainer's; without a Trainer, accuracy for a classification, else the loss alone.
        batch_size: Examples a batch, for a dataset of examples.
        collator: Makes a batch of examples; needed where they differ in length.
        progress: Show a progress bar.

    Raises:
        KeepLayersError: If one of ``depths`` cannot be read or does not fit the model; nothing was run then.
        TaskError: If there is no data to evaluate on, or the metric is unknown.
        LayerDropStateError: If a rank of a launch has another model or data, does not come, or fails.
    """
    specs = listed_depths(depths)
    # Within an evaluation of Trainer, each rank has the batches that it was given.
    with nullcontext(ALONE) if isinstance(dataset, Evaluation) else ranks_of_launch(model_or_trainer) as ranks:
        evaluator = Evaluator(
            model_or_trainer, dataset, metric=metric, batch_size=batch_size, collator=collator, ranks=ranks
        )
        kept = [evaluator.cutter.parse(spec) for spec in specs]
        return SubNetworkResults(evaluator.measure(kept, progress=progress))


def listed_depths(depths: Iterable[KeepLayers]) -> list[KeepLayers]:
    """Return the specifications of sub-networks as a list; of one alone, such as ``"63"``, no list is made.

    Raises:
        TaskError: If it is a single one, or empty.
    """
    if isinstance(depths, str | Mapping) or not isinstance(depths, Iterable):
        raise TaskError(f"depths is {depths!r}; give a list of sub-networks, such as depths=[6, 3].")
    specs = list(depths)
    if not specs:
        raise TaskError("depths is empty; give at least one sub-network, such as depths=[6, 3].")
    return specs


def every_sub_network(depths: Mapping[str, int], stack: str | None = None) -> list[dict[str, tuple[int, ...]]]:
    """List all sub-networks that cut one stack alone, the only one if it is not named: 2^N - 1 for N layers."""
    stack = stack or next(iter(depths))
    others = {name: tuple(range(depth)) for name, depth in depths.items() if name != stack}
    sizes = range(1, depths[stack] + 1)
    return [{**others, stack: layers} for size in sizes for layers in combinations(range(depths[stack]), size)]


def depth_name(kept: Kept, depths: Mapping[str, int]) -> str:
    """Name a sub-network in a metric's key: ``depth_6``, ``depth_encoder6_decoder3``; by its layers if not spread."""
    names = []
    for stack, layers in kept.items():
        spread = tuple(layers) == evenly_spread(len(layers), depths[stack])
        names.append(("" if len(kept) == 1 else stack) + (str(len(layers)) if spread else "-".join(map(str, layers))))
    return "depth_" + "_".join(names)


class Evaluator:
    """Measure sub-networks of one model on one data set, as often as asked; see `evaluate_depths` for the arguments.

    Args:
        seed: What the order of the batches, and whatever else the data draws, begins with; None goes on from the
            present random streams, as ``Trainer.evaluate`` does. Either way, every reading is the same.
        ranks: Those among which sub-networks are divided; all of them have to do the same.

    Attributes:
        source: What predicts and scores.
        cutter: What cuts the model.
        peak: The most bytes of layer outputs that were held at once.
    """

    def __init__(
        self,
        model_or_trainer: PreTrainedModel | Trainer,
        dataset: Data | Mapping[str, Data] | Evaluation | None = None,
        *,
        metric: AnyMetric | None = None,
        batch_size: int = 32,
        collator: Collator | None = None,
        memory_limit: int | None = None,
        seed: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        start = ranks.from_first(RandomStreams) if seed is None else seeded_streams(seed)
        if isinstance(model_or_trainer, Trainer):
            self.source: Source = TrainerSource(model_or_trainer, dataset, metric, start)
        else:
            check_module(model_or_trainer)
            batches = as_batches(dataset, batch_size, collator)
            self.source = ModelSource(model_or_trainer, batches, metric, start)
        self.cutter = Cutter(self.source.model)
        self.peak = 0
        self._memory_limit = memory_limit
        self._ranks = ranks
        if ranks.size > 1:  # what is compared has to be measured on the same batches, as far as the first one shows it
            ranks.check_same(next(iter(self.source.batches), None))

    def measure(
        self,
        kept: Sequence[Layers],
        *,
        progress: bool = True,
        done: Done | None = None,
    ) -> list[SubNetworkResult]:
        """Measure sub-networks in one pass over the data; return one record each, in the given order.

        With ``done`` it takes several, as `measure_in_turn` does, and is handed all records so far after each of them.

        Raises:
            UnsupportedModelError: If the model cannot be cut to one of them; nothing was run then.
        """
        for layers in kept:
            self.cutter.check(layers)
        measured: dict[Hashable, SubNetworkResult] = {}
        keys = [key_of(layers) for layers in kept]

        def note(results: Sequence[SubNetworkResult]) -> None:
            measured.update({key_of(result.keep_layers): result for result in results})
            if done is not None:
                done([measured[key] for key in keys if key in measured])

        few = SUB_NETWORKS_A_RECORD if self.source.shares_prefixes else 1
        shown = progress and self._ranks.is_first
        measure: Measure = partial(self._measure_at_once, progress=shown)
        if done is not None:
            measure = partial(self._measure_in_turn, at_most=few, progress=shown)
        distinct = list(dict(zip(keys, kept, strict=True)).values())
        in_shares(measure, self._ranks, shares_prefixes=self.source.shares_prefixes)(distinct, note)
        return [measured[key] for key in keys]

    def measure_in_turn(self, kept: Sequence[Layers], done: Done, *, at_most: int = SUB_NETWORKS_A_PASS) -> None:
        """Measure sub-networks a few at a time, in walking order, and hand the records of each pass to ``done``.

        The prefix that one pass shares with the next is held over, batch by batch, as far as the memory limit allows,
        so passes cost no extra layer forwards. Predictions count against the limit as well: they decide how many
        sub-networks go into a pass, ``at_most`` so many.
        """
        measure = partial(self._measure_in_turn, at_most=at_most)
        in_shares(measure, self._ranks, shares_prefixes=self.source.shares_prefixes)(kept, done)

    def _measure_in_turn(self, kept: Sequence[Layers], done: Done, *, at_most: int, progress: bool = False) -> None:
        walk = [kept[place] for place in in_walking_order(kept)]
        with self._runner() as (runner, encoder):
            begin, count = 0, 1  # one, to see how large its predictions are
            while begin < len(walk):
                end = begin + count
                following = walk[end] if end < len(walk) else None
                done(self._pass(runner, encoder, walk[begin:end], following, progress))
                begin, count = end, min(at_most, self._next_count(runner))

    def _measure_at_once(self, kept: Sequence[Layers], done: Done, *, progress: bool) -> None:
        walk = [kept[place] for place in in_walking_order(kept)]
        with self._runner() as (runner, encoder):
            done(self._pass(runner, encoder, walk, None, progress))

    @contextmanager
    def _runner(self) -> Iterator[tuple[PrefixRunner, EncoderMemory | None]]:
        shares = self.source.shares_prefixes
        with ExitStack() as undo:
            undo.enter_context(self.source.ready())
            encoder = None if shares else encoder_memory(self.cutter, self._memory_limit)
            undo.enter_context(shared_encoder(self.cutter, self.source.model, encoder))
            runner = undo.enter_context(shared_prefixes(self.cutter, self.source.device, self._memory_limit))
            if not shares:
                runner.memory_limit = 0  # nothing would be found again
            yield runner, encoder
        self.peak = max(self.peak, runner.peak)

    def _pass(
        self,
        runner: PrefixRunner,
        encoder: EncoderMemory | None,
        walk: Sequence[Layers],
        following: Layers | None,
        progress: bool,
    ) -> list[SubNetworkResult]:
        if isinstance(self.source, TrainerSource) and self.source.in_turn:
            shown = _shown(walk, len(walk), progress, unit="sub-network")
            return [self._alone(self.source, runner, encoder, layers) for layers in shown]
        tallies: dict[str, list[Tally]] = {}
        runs: list[list[Run]] = [[] for _ in walk]

        def visit(reading: Reading) -> None:
            tallies[reading.name] = [reading.tally() for _ in walk]
            for number, batch in enumerate(_shown(reading.loader, len(walk), progress)):
                # Held outputs are those of an earlier pass, and a loader may give other inputs than it gave then.
                content = _content_of(batch) if following or runner.holds_over else None
                prepared = reading.prepare(batch)
                runner.turn_to((reading.name, number), content)
                if encoder:
                    encoder.forget()
                for place, (layers, tally) in enumerate(zip(walk, tallies[reading.name], strict=True)):
                    outputs, run = runner.run(layers, partial(reading.predict, fresh(prepared)))
                    tally.add(batch, outputs)
                    runs[place].append(run)
                if following and self.source.shares_prefixes:
                    runner.hold_over((reading.name, number), content, following)
                for run in (run for of_place in runs for run in of_place[-2:-1]):
                    run.settle()  # of the batch before, which a device has done by now

        self.source.read(visit)
        if runner.shared_wrongly():
            return self._pass(runner, encoder, walk, None, progress)
        self._prediction_size = max((tally.size for tally in next(iter(tallies.values()), [])), default=0)
        return [
            self._result(layers, runs[place], {name: partial(_scored, tally[place]) for name, tally in tallies.items()})
            for place, layers in enumerate(walk)
        ]

    def _alone(
        self, source: TrainerSource, runner: PrefixRunner, encoder: EncoderMemory | None, layers: Layers
    ) -> SubNetworkResult:
        watches: list[Stopwatch] = []
        if encoder and self._memory_limit is None:  # within a limit, what an encoder gave serves many decoders
            encoder.forget()
        metrics, run = runner.run(layers, lambda: source.evaluate_alone(watches.append))
        self._prediction_size = 0
        batches = max(1, len(watches))
        runs = [Run(watch, [], -(-run.layer_forwards // batches)) for watch in watches]
        return self._result(layers, runs or [run], {"": lambda: (metrics, NO_ROWS)})

    def _next_count(self, runner: PrefixRunner) -> int:
        """Return how many sub-networks go into the next pass: few enough that their predictions fit."""
        if self.source.in_turn:
            return 1
        if self._memory_limit is None or not self._prediction_size:
            return SUB_NETWORKS_A_PASS
        count = max(1, min(SUB_NETWORKS_A_PASS, self._memory_limit // 2 // self._prediction_size))
        if runner.memory_limit:
            runner.memory_limit = max(0, self._memory_limit - count * self._prediction_size)
        return count

    def _result(
        self, kept: Layers, runs: Sequence[Run], by_set: Mapping[str, Callable[[], Scores]]
    ) -> SubNetworkResult:
        if not runs:
            raise TaskError(
                "The evaluation data has no batches: it is empty, or has fewer rows than a batch and "
                "dataloader_drop_last=True leaves them out; give more data, or smaller batches."
            )
        metrics, counts, intervals = {}, {}, {}
        for set_name, scored in by_set.items():
            values, rows = scored()
            for metric, value in numbers_of(values).items():
                name = f"{set_name}_{metric}" if set_name else metric
                metrics[name] = value
                if rows.number:
                    counts[name] = rows.number
                if interval := interval_of(metric, value, rows):
                    intervals[name] = interval
        return SubNetworkResult(
            keep_layers=dict(kept),
            parameters=parameters_of(self.cutter, self.source.model, kept),
            metrics=metrics,
            seconds_per_batch=median(run.seconds_alone for run in runs),
            layer_forwards=-(-sum(run.layer_forwards for run in runs) // len(runs)),
            rows=counts,
            intervals=intervals,
        )


def _content_of(batch: Any) -> str | Held:
    on_a_device = any(tensor.device.type != "cpu" for tensor in tensors_of(batch))
    return Held(Comparison(Doubts()).snapshot(batch)) if on_a_device else fingerprint(batch)


def _scored(tally: Tally) -> Scores:
    return tally.metrics(), tally.rows


def _shown(parts: Iterable[Any], sub_networks: int, progress: bool, *, unit: str = "batch") -> Iterable[Any]:
    what = "1 sub-network" if sub_networks == 1 else f"{sub_networks} sub-networks"
    return tqdm(parts, desc=f"Evaluating {what}", unit=unit, disable=not progress, leave=False)
