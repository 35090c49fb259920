"""Quality against depth: measure sub-networks in place, without copying or finetuning a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import EvalLoopContainer, nested_detach

from hf_layerdrop.architectures.wrappers import check_module
from hf_layerdrop.errors import TaskError
from hf_layerdrop.evaluation.encoder_sharing import EncoderMemory, encoder_memory, shared_encoder
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.model_or_trainer import (
    AnyMetric,
    Batches,
    Collator,
    Data,
    ModelSource,
    Source,
    TrainerSource,
    as_batches,
    quiet_eval,
    trainer_loaders,
)
from hf_layerdrop.evaluation.prefix_sharing import (
    Kept,
    PrefixRunner,
    Run,
    in_walking_order,
    shared_prefixes,
    size_in_bytes,
)
from hf_layerdrop.evaluation.results import SubNetworkResult
from hf_layerdrop.pruning.prune import Cutter, count_parameters
from hf_layerdrop.samplers.keep_layers import KeepLayers, evenly_spread, parse_keep_layers

Layers = Mapping[str, tuple[int, ...]]

# A search keeps the records of each pass, so an interrupt costs at most so many; few, and the batches are read often.
SUB_NETWORKS_A_PASS = 16


def evaluate_depths(
    model_or_trainer: PreTrainedModel | Trainer,
    dataset: Data | Mapping[str, Data] | None = None,
    *,
    depths: Iterable[KeepLayers],
    metric: AnyMetric | None = None,
    batch_size: int = 32,
    collator: Collator | None = None,
    progress: bool = True,
) -> list[SubNetworkResult]:
    """Measure sub-networks of a model in place, and return one record each, in the order of ``depths``.

    Sub-networks that begin with the same layers run them once a batch; what is scored is still, to the bit, what each
    would give alone. No weight is copied or changed, and the model is as before afterwards.

    Args:
        model_or_trainer: A model, or a Trainer, whose own data loader, loss and ``compute_metrics`` are then used.
        dataset: With a model: batches (a DataLoader or any iterable of dicts of tensors) or a dataset of examples.
            With a Trainer: a dataset in place of its ``eval_dataset``.
        depths: The sub-networks, each in any form of ``keep_layers``: a depth, indices, a dict by stack, ...
        metric: A name (``accuracy``, ``f1``, ``matthews_correlation``, ``pearson``, ``spearmanr``, ``loss``), an
            `evaluate` metric, or a function from `EvalPrediction` to a number or a dict of numbers. None takes the
            Trainer's; without a Trainer, accuracy for a classification, else the loss alone.
        batch_size: Examples a batch, for a dataset of examples.
        collator: Makes a batch of examples; needed where they differ in length.
        progress: Show a progress bar.

    Raises:
        KeepLayersError: If one of ``depths`` cannot be read or does not fit the model; nothing was run then.
        TaskError: If there is no data to evaluate on, or the metric is unknown.
    """
    specs = listed_depths(depths)
    evaluator = Evaluator(model_or_trainer, dataset, metric=metric, batch_size=batch_size, collator=collator)
    kept = [parse_keep_layers(spec, evaluator.cutter.depths) for spec in specs]
    return evaluator.measure(kept, progress=progress)


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

    Attributes:
        source: What predicts and scores.
        cutter: What cuts the model.
        loaders: The batches of each evaluation set by name; an only one has none.
        peak: The most bytes of layer outputs that were held at once.
    """

    def __init__(
        self,
        model_or_trainer: PreTrainedModel | Trainer,
        dataset: Data | Mapping[str, Data] | None = None,
        *,
        metric: AnyMetric | None = None,
        batch_size: int = 32,
        collator: Collator | None = None,
        memory_limit: int | None = None,
    ) -> None:
        if isinstance(model_or_trainer, Trainer):
            self.source: Source = TrainerSource(model_or_trainer, metric)
            self.loaders: Mapping[str, Batches] = trainer_loaders(model_or_trainer, dataset)
        else:
            check_module(model_or_trainer)
            self.source = ModelSource(model_or_trainer, metric)
            self.loaders = {"": as_batches(dataset, batch_size, collator)}
        self.cutter = Cutter(self.source.model)
        self.peak = 0
        self._memory_limit = memory_limit

    def measure(self, kept: Sequence[Layers], *, progress: bool = True) -> list[SubNetworkResult]:
        """Measure sub-networks in one pass over the data; return one record each, in the given order."""
        order = in_walking_order(kept)
        with self._runner() as (runner, encoder):
            results = self._pass(runner, encoder, [kept[place] for place in order], None, progress)
        by_place = dict(zip(order, results, strict=True))
        return [by_place[place] for place in range(len(kept))]

    def measure_in_turn(self, kept: Sequence[Layers], done: Callable[[list[SubNetworkResult]], None]) -> None:
        """Measure sub-networks a few at a time, in walking order, and hand the records of each pass to ``done``.

        The prefix that one pass shares with the next is held over, batch by batch, as far as the memory limit allows,
        so passes cost no extra layer forwards. Predictions count against the limit as well: they decide how many
        sub-networks go into a pass.
        """
        walk = [kept[place] for place in in_walking_order(kept)]
        with self._runner() as (runner, encoder):
            begin, count = 0, 1  # one, to see how large its predictions are
            while begin < len(walk):
                end = begin + count
                following = walk[end] if end < len(walk) else None
                done(self._pass(runner, encoder, walk[begin:end], following, progress=False))
                begin, count = end, self._next_count(runner)

    @contextmanager
    def _runner(self) -> Iterator[tuple[PrefixRunner, EncoderMemory | None]]:
        shares = self.source.shares_prefixes
        with ExitStack() as undo:
            undo.enter_context(quiet_eval(self.source.model))
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
        tallies = {name: [_Tally() for _ in walk] for name in self.loaders}
        for name, loader in self.loaders.items():
            for number, batch in enumerate(_shown(loader, len(walk), progress)):
                # Held outputs are those of an earlier pass, and a loader may give other inputs than it gave then.
                content = fingerprint(batch) if following or runner.holds_over else None
                runner.turn_to((name, number), content)
                if encoder:
                    encoder.forget()
                self._run_batch(runner, walk, batch, tallies[name])
                if following and self.source.shares_prefixes:
                    runner.hold_over((name, number), content, following)
        self._prediction_size = max((tally.size for tally in next(iter(tallies.values()), [])), default=0)
        return [
            self._result(layers, {name: tally[place] for name, tally in tallies.items()})
            for place, layers in enumerate(walk)
        ]

    def _run_batch(
        self, runner: PrefixRunner, walk: Sequence[Layers], batch: Mapping[str, Any], tallies: Sequence[_Tally]
    ) -> None:
        inputs = self.source.prepare(batch)
        for layers, tally in zip(walk, tallies, strict=True):
            outputs, run = runner.run(layers, lambda: self.source.predict(inputs))
            tally.add(self.source, outputs, run, _examples(batch))

    def _next_count(self, runner: PrefixRunner) -> int:
        """Return how many sub-networks go into the next pass: few enough that their predictions fit."""
        if self._memory_limit is None or not self._prediction_size:
            return SUB_NETWORKS_A_PASS
        count = max(1, min(SUB_NETWORKS_A_PASS, self._memory_limit // 2 // self._prediction_size))
        if runner.memory_limit:
            runner.memory_limit = max(0, self._memory_limit - count * self._prediction_size)
        return count

    def _result(self, kept: Layers, tallies: Mapping[str, _Tally]) -> SubNetworkResult:
        runs = [run for tally in tallies.values() for run in tally.runs]
        if not runs:
            raise TaskError("The evaluation data has no batches; give a data set that is not empty.")
        metrics = {
            f"{name}_{metric}" if name else metric: value
            for name, tally in tallies.items()
            for metric, value in tally.metrics(self.source).items()
        }
        return SubNetworkResult(
            keep_layers=dict(kept),
            parameters=parameters_of(self.cutter, self.source.model, kept),
            metrics=metrics,
            seconds_per_batch=median(run.seconds_alone for run in runs),
            layer_forwards=-(-sum(run.layer_forwards for run in runs) // len(runs)),
        )


@dataclass
class _Tally:
    """What one sub-network has shown so far on one data set."""

    losses: list[torch.Tensor] = field(default_factory=list)  # one value an example
    predictions: EvalLoopContainer = field(default_factory=EvalLoopContainer)
    labels: EvalLoopContainer = field(default_factory=EvalLoopContainer)
    runs: list[Run] = field(default_factory=list)
    size: int = 0  # of predictions and labels, in bytes

    def add(self, source: Source, outputs: tuple[Any, Any, Any], run: Run, examples: int) -> None:
        loss, predictions, labels = outputs
        self.runs.append(run)
        if loss is not None:
            self.losses.append(source.gather(loss.detach().mean().repeat(examples)))
        if predictions is not None and labels is not None:
            for container, value in ((self.predictions, nested_detach(predictions)), (self.labels, labels)):
                gathered = source.gather(value)
                container.add(gathered)
                self.size += size_in_bytes(gathered)

    def metrics(self, source: Source) -> dict[str, float]:
        labels = self.labels.get_arrays()
        if source.keeps_predictions and labels is None:
            raise TaskError(
                "The metric compares predictions with labels, but the data has no 'labels' or the model no logits; "
                "give data with labels, or metric='loss'."
            )
        values = source.score(self.predictions.get_arrays(), labels)
        if self.losses:
            values["loss"] = float(torch.cat(self.losses).double().mean())
        return values


def parameters_of(cutter: Cutter, model: PreTrainedModel, kept: Kept) -> int:
    """Count the parameters of a sub-network, tied weights once."""
    with cutter.sub_network(kept):
        return count_parameters(model)


def _examples(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if torch.is_tensor(value)), 1)


def _shown(loader: Iterable[Any], sub_networks: int, progress: bool) -> Iterable[Any]:
    what = "1 sub-network" if sub_networks == 1 else f"{sub_networks} sub-networks"
    return tqdm(loader, desc=f"Evaluating {what}", unit="batch", disable=not progress, leave=False)
