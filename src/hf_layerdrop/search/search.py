"""Choose the layers of a model: one function for every strategy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import distributed
from transformers import PreTrainedModel, Trainer

from hf_layerdrop.errors import LayerDropConfigError, UnsupportedModelError
from hf_layerdrop.evaluation.fingerprints import fingerprint
from hf_layerdrop.evaluation.model_or_trainer import AnyMetric, Collator, Data
from hf_layerdrop.evaluation.ranks import Ranks, ranks_of_launch
from hf_layerdrop.pruning.prune import Cutter
from hf_layerdrop.search.budgets import Budget, Costs, Target, targets_within
from hf_layerdrop.search.drafts.source import check_objective, draft_depths, score_drafts
from hf_layerdrop.search.drafts.speed import DraftObjective, with_draft
from hf_layerdrop.search.drafts.texts import check_model
from hf_layerdrop.search.journal import KnownScores, ScoreJournal
from hf_layerdrop.search.latency import LatencyMeter
from hf_layerdrop.search.objective import find_objective
from hf_layerdrop.search.score_source import ScoreSource, Setting, model_identity, score_by_data, score_by_function
from hf_layerdrop.search.scoring import Scorer
from hf_layerdrop.search.scoring_function import Evaluate
from hf_layerdrop.search.search_run import Search
from hf_layerdrop.search.selection import Selection
from hf_layerdrop.search.space import Depth, Space, no_set_of, parse_depth, whole
from hf_layerdrop.search.strategies import MAX_SETS, check_space, find_strategy, load_strategy, set_by_rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_layerdrop.search.strategies import StrategySettings


def search_layers(
    model: PreTrainedModel | Trainer,
    dataset: Data | None = None,
    *,
    metric: AnyMetric | None = None,
    strategy: str = "beam",
    depth: Depth | None = None,
    max_latency_ms: float | None = None,
    max_parameters: int | None = None,
    max_size_mb: float | None = None,
    evaluate: Evaluate | None = None,
    test_dataset: Data | None = None,
    greater_is_better: bool | None = None,
    objective: str | None = None,
    max_new_tokens: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    memory_limit_mb: float = 1024,
    share_samples: int = 8,
    latency_batch_size: int = 1,
    latency_length: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    collator: Collator | None = None,
    progress: bool = True,
    **settings: Unpack[StrategySettings],
) -> Selection:
    """Choose which layers to keep (paper, 3.2.2), by a rule, by a search on a validation set, or by importance.

    No weight is copied or changed. Where the score comes from one forward a batch, sub-networks with a common prefix of
    layers run it once, and scores are still, to the bit, those of each alone. With ``evaluate``, or a Trainer that
    generates, candidates run one by one, and only what an encoder gives is shared.

    In a launch of several processes (``accelerate launch``, torchrun), all of them call it; they divide the candidates,
    and each returns the record that one process gives. Rank 0 writes the journal.

    Args:
        model: A model, or a Trainer, whose own data loader, loss and ``compute_metrics`` are then used.
        dataset: The validation set: batches, or a data set of examples. None takes the Trainer's ``eval_dataset``.
        metric: What `evaluate_depths` takes, or the name of one of the numbers that the Trainer's ``compute_metrics``
            or ``evaluate`` gives, or ``perplexity``.
        strategy: One of `STRATEGIES`.
        depth: How many layers to keep: a number, or by stack, such as ``{"decoder": 3}``. Or else give budgets:
        max_latency_ms: Most milliseconds of a forward, measured on this machine.
        max_parameters: Most parameters.
        max_size_mb: Largest size of the weights, in 10^6 bytes, in the model's own precision.
        evaluate: A function of the model that gives a number, or a dict of numbers, in place of ``dataset``; it is
            called in eval mode and without gradients.
        test_dataset: Data to score the winner on. None holds half of ``dataset``, drawn with ``seed``, out of the
            search.
        greater_is_better: Whether a higher score is better. None decides by the name: not for a loss or an error.
        objective: ``accepted_tokens_per_second`` chooses a draft for greedy assisted generation: ``dataset`` holds
            prompts, and the score is the speed with that draft (of the whole model, without one). The rounds of
            generation are counted, exactly, from where the draft agrees with the whole model's own text; what a round
            and a drafted token take is measured once a depth, and is as noisy as the machine. Without depth or budget
            every depth is tried. `Selection.draft` says how many tokens to draft.
        max_new_tokens: With that objective: how many tokens to generate after each prompt; None for 64.
        journal: A file to write every result to, and to take known ones from: a search that was interrupted goes on
            where it was. It knows the model, the data and the metric (a function by its name and source alone).
        memory_limit_mb: Most memory for shared layer outputs and predictions; beyond it, outputs are computed again.
        share_samples: How many random sets to score beside the search, to estimate `Selection.share_as_good`.
        latency_batch_size: Rows of the input that latency is measured with.
        latency_length: Tokens of that input; None for as many as the first batch has.
        seed: Decides everything that is drawn.
        batch_size: Examples a batch, for a data set of examples.
        collator: Makes a batch of examples; needed where they differ in length.
        progress: Show a progress bar.
        **settings: Those of the strategy: ``width`` and ``swaps`` of beam, ``samples`` of random, ``max_sub_networks``
            of exhaustive.

    Raises:
        LayerDropConfigError: If the strategy, a setting or a budget is not possible; nothing was scored then.
        KeepLayersError: If the depth is not.
        UnsupportedModelError: If the model has no layers that can be dropped, or cannot be cut to any set that the
            strategy comes to. Nothing was scored where no set of the depth is possible, or not the one of a rule.
        TaskError: If the data is missing or smaller than a batch, or the evaluation does not give the metric.
        LayerDropStateError: If a rank of a launch has another model, data or settings, does not come, or fails.
    """
    others = {"metric": metric, "evaluate": evaluate, "greater_is_better": greater_is_better, "collator": collator}
    new_tokens = check_objective(objective, max_new_tokens, **others)
    name = find_strategy(strategy)
    propose = load_strategy(name, settings)
    budget = Budget(max_latency_ms, max_parameters, max_size_mb)
    _check_numbers(memory_limit_mb=memory_limit_mb, share_samples=share_samples, batch_size=batch_size)
    _check_numbers(
        latency_batch_size=latency_batch_size, latency_length=1 if latency_length is None else latency_length
    )
    plain = model.accelerator.unwrap_model(model.model) if isinstance(model, Trainer) else model
    cutter = Cutter(plain)
    if objective is not None and depth is None and not budget.asks:
        check_model(plain)
        targets = draft_depths(cutter.depths)
    else:
        targets = _targets(depth, budget, cutter)
    limit = settings.get("max_sub_networks", MAX_SETS)
    could_be = _possible_targets(name, plain, cutter, targets or [cutter.depths], limit)
    targets = targets and could_be

    with ranks_of_launch(model) as ranks:
        asked = [name, settings, depth, vars(budget), share_samples, seed, greater_is_better, journal is None]
        ranks.check_same(*asked, objective, new_tokens)
        setting = Setting(batch_size, collator, int(memory_limit_mb * 1e6), seed, ranks)
        drafts: DraftObjective | None = None
        if objective is not None:
            scores, drafts = score_drafts(plain, cutter, dataset, test_dataset, new_tokens, setting)
        elif evaluate is None:
            scores = score_by_data(model, dataset, test_dataset, metric, setting)
        elif metric is not None and not isinstance(metric, str):
            raise LayerDropConfigError(
                f"metric is {metric!r}, but evaluate gives the numbers: name one, or leave it out."
            )
        else:
            scores = score_by_function(plain, cutter, evaluate, dataset, metric, setting)
        meter = None
        if max_latency_ms is not None:
            meter = LatencyMeter(plain, cutter, scores.first_batch(plain), latency_batch_size, latency_length, ranks)
        costs = Costs(plain, cutter, meter)
        if not targets:
            targets = _possible_targets(name, plain, cutter, targets_within(budget, costs, cutter.depths), limit)

        known = _known_scores(journal, plain, scores, ranks)
        scorer = Scorer(scores.measure, known, progress=progress and ranks.is_first)
        reference = scorer.results([whole(cutter.depths)])[0]
        search = Search(
            name,
            propose,
            plain,
            cutter,
            scores,
            scorer,
            drafts or find_objective(scores.metric_name, reference.metrics, greater_is_better),
            costs,
            budget,
            share_samples,
            seed,
            reference,
            ranks,
        )
        selection = search.run(targets)
        return with_draft(selection, scorer, drafts) if drafts else selection


def _targets(depth: Depth | None, budget: Budget, cutter: Cutter) -> list[Target]:
    """Return the depth that was asked for; none if there is a budget to find it by."""
    if budget.asks == (depth is not None):
        raise LayerDropConfigError(
            "Give either depth, or a budget (max_latency_ms, max_parameters, max_size_mb)"
            + (", not both." if budget.asks else ", such as depth=6.")
        )
    return [] if depth is None else [parse_depth(depth, cutter.depths)]


def _possible_targets(
    name: str, model: PreTrainedModel, cutter: Cutter, targets: Sequence[Target], limit: int
) -> list[Target]:
    """Return the depths of which a strategy can have a set.

    Raises:
        UnsupportedModelError: If there is none; the message says why.
    """
    possible, reason = [], ""
    for target in targets:
        space = Space(cutter.depths, target, cutter.can_cut)
        check_space(name, space, limit)
        kept = set_by_rule(name, model, space)
        if space.some_set() is None:
            reason = no_set_of(model, cutter.last_refusal)
        elif kept is None or space.is_possible(kept):
            possible.append(target)
        else:
            reason = f"Strategy {name!r} has no other set: choose another strategy. {cutter.last_refusal}"
    if not possible:
        raise UnsupportedModelError(reason)
    return possible


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise LayerDropConfigError(f"{name} is {value!r}: give a number from 1.")


def _known_scores(
    path: str | os.PathLike[str] | None, model: PreTrainedModel, scores: ScoreSource, ranks: Ranks
) -> KnownScores | None:
    """Open the journal, which rank 0 writes; the others know what it holds."""
    if path is None:
        return None
    if ranks.size == 1 and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise LayerDropConfigError(
            "A journal is kept by one process, but there are several that do not search together: search in one."
        )
    journal = ScoreJournal(path, fingerprint(model_identity(model), scores.identity())) if ranks.is_first else None
    known = ranks.from_first(lambda: journal.known if journal else {})
    return journal or KnownScores(known)
