"""What sub-networks are scored on: a data set that is divided, or a user's own function of the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import getsource
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer

from hf_layerdrop import compat
from hf_layerdrop.evaluation.divided import Measure, in_shares
from hf_layerdrop.evaluation.evaluate import Evaluator
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.model_or_trainer import LOSS_ALONE, Batches, Collator, as_batches
from hf_layerdrop.evaluation.ranks import ALONE, Ranks
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.search.held_out import (
    FROM_TEST_DATASET,
    HELD_OUT_HALF,
    NO_SPLIT,
    check_size,
    data_of,
    halves,
)
from hf_layerdrop.search.scoring_function import Evaluate, FunctionMeasure

# How scores are made, for journals: those of another way are not mixed with these.
_SCORED = "losses as Trainer's, perplexity of tokens"


@dataclass(frozen=True)
class ScoreSource:
    """What sub-networks are scored on.

    Attributes:
        measure: Measures on the data of the search.
        batches: The inputs of that data; empty if only the user's function knows them.
        shared: Whether common prefixes of layers run once.
        metric_name: The name of the score, if it was given.
        test: Measures on the separate data; None if there is none.
        split: Where that comes from, in words.
        examples: How many examples the data of the search has, and the separate data.
        identity: What tells this data and metric from others.
    """

    measure: Measure
    batches: Batches
    shared: bool
    metric_name: str | None
    test: Measure | None
    split: str
    examples: tuple[int, int]
    identity: Callable[[], str]

    def first_batch(self, model: PreTrainedModel) -> Mapping[str, Any]:
        """Return an input of the model: of the data, or what transformers has for trying a model out."""
        return next(iter(self.batches), model.dummy_inputs)


@dataclass(frozen=True)
class Setting:
    """How examples become batches, how much of what they give may be held, and among whom sub-networks are divided."""

    batch_size: int
    collator: Collator | None
    memory_limit: int
    seed: int
    ranks: Ranks = ALONE


def score_by_data(
    model: PreTrainedModel | Trainer,
    dataset: Any,
    test_dataset: Any,
    metric: Any,
    setting: Setting,
    *,
    hold_out: bool = True,
) -> ScoreSource:
    """Score by the metric of a data set; without separate data, half of it is held out.

    Raises:
        TaskError: If the data is missing, shuffled or smaller than a batch, or the metric is unknown.
    """
    is_trainer = isinstance(model, Trainer)
    batch_size = model.args.eval_batch_size if is_trainer else setting.batch_size
    data = data_of(model, dataset)
    check_size(data, batch_size, "validation", holds_examples=is_trainer)
    if test_dataset is not None:
        test_dataset = data_of(model, test_dataset)
        check_size(test_dataset, 1, "test", holds_examples=is_trainer)
        split = FROM_TEST_DATASET
    else:
        parts = halves(data, setting.seed) if hold_out else None
        data, test_dataset = parts or (data, None)
        split = HELD_OUT_HALF if parts else NO_SPLIT

    number, name = _number_and_name(model, metric)
    evaluator_of = partial(
        Evaluator,
        model,
        metric=number,
        batch_size=setting.batch_size,
        collator=setting.collator,
        memory_limit=setting.memory_limit,
        seed=setting.seed,
        ranks=setting.ranks,
    )
    evaluator = evaluator_of(data)
    batches = evaluator.source.batches
    return ScoreSource(
        measure=evaluator.measure_in_turn,
        batches=batches,
        shared=evaluator.source.shares_prefixes,
        metric_name=name,
        test=None if test_dataset is None else evaluator_of(test_dataset).measure_in_turn,
        split=split,
        examples=(_examples(data), 0 if test_dataset is None else _examples(test_dataset)),
        identity=lambda: fingerprint([fingerprint(batch) for batch in batches], _identity(metric), name, _SCORED),
    )


def score_by_function(
    model: PreTrainedModel, cutter: Cutter, evaluate: Evaluate, dataset: Any, metric: str | None, setting: Setting
) -> ScoreSource:
    """Score by a function of the model; data is used only by strategies that look at the model at work."""
    batches = [] if dataset is None else as_batches(dataset, setting.batch_size, setting.collator)
    measure = FunctionMeasure(model, cutter, evaluate, metric or "score", setting.memory_limit)
    return ScoreSource(
        measure=in_shares(measure, setting.ranks, shares_prefixes=False),
        batches=batches,
        shared=False,
        metric_name=metric,
        test=None,
        split=NO_SPLIT,
        examples=(0, 0),
        identity=lambda: fingerprint(_identity(evaluate), metric),
    )


def model_identity(model: PreTrainedModel) -> str:
    """Return what tells a model from others: its class, its config and every weight."""
    passing = (compat.NAME_OR_PATH.name, "transformers_version", "hf_layerdrop", "use_cache", "problem_type")
    config = {name: value for name, value in model.config.to_dict().items() if name not in passing}
    return fingerprint(type(model).__name__, config, model.state_dict())


def _number_and_name(model: Any, metric: Any) -> tuple[Any, str | None]:
    """Return the metric for the evaluation, and which of its numbers is the score; None if there may be only one."""
    if isinstance(metric, str) and metric in LOSS_ALONE:
        return metric, metric
    if getattr(model, "compute_metrics", None) is None:
        return metric, metric if isinstance(metric, str) else None
    if metric is None:
        best = model.args.metric_for_best_model
        return None, best and re.sub(r"^(eval_)?(depth_\w*?\d_)?", "", best)  # the same of a depth, if it names one
    # A Trainer's own numbers by name: its predictions may be preprocessed in a way that only they know.
    return (None, metric) if isinstance(metric, str) else (metric, None)


def _identity(function: Any) -> str:
    """Name a function by its source as well, so that a changed one is another; what it closes over is not seen."""
    if function is None or isinstance(function, str):
        return repr(function)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        return f"{name} {getsource(function)}"
    except (OSError, TypeError):
        return name


def _examples(data: Any) -> int:
    if isinstance(data, DataLoader):
        data = data.dataset
        return len(data)
    first: Iterable[Any] | Sequence[Any] = data[0].values() if isinstance(data[0], Mapping) else ()
    size = next((len(value) for value in first if torch.is_tensor(value) and value.dim() > 1), 1)
    return len(data) * size
