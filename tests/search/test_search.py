"""Choosing layers: each strategy gives the set it is named for, searches find what is there, nothing scored is lost."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import math
import os
import re
import signal
import time
from itertools import combinations
from math import comb
from pathlib import Path
from random import Random

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Gemma3nTextConfig,
    Qwen3MoeConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import warm
from architectures.tiny import build_tiny
from conftest import DEPTH, batch_for, build, recorded_runs
from hf_layerdrop.architectures import expressible as rebuilding
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import (
    LayerDropConfigError,
    LayerDropError,
    OutputExistsError,
    TaskError,
    UnsupportedModelError,
)
from hf_layerdrop.evaluation.evaluate import Evaluator, evaluate_depths, every_sub_network
from hf_layerdrop.pruning import prune as pruning
from hf_layerdrop.pruning.prune import Cutter, count_parameters, prune_layers
from hf_layerdrop.search import scoring
from hf_layerdrop.search.average_without_layer import average_without_layer
from hf_layerdrop.search.latency import measure_latency, sized
from hf_layerdrop.search.objective import Objective
from hf_layerdrop.search.overfitting import overfitting_warning
from hf_layerdrop.search.scoring import Scorer
from hf_layerdrop.search.search import search_layers
from hf_layerdrop.search.selection import Selection
from hf_layerdrop.search.space import Space, parse_depth
from hf_layerdrop.search.strategies import SETTINGS, STRATEGIES, beam, load_strategy

BERT = "BertForSequenceClassification"
BART = "BartForConditionalGeneration"


def labelled(head: str = BERT, batches: int = 2, first: int = 0) -> list[dict[str, torch.Tensor]]:
    data = []
    for seed in range(first, first + batches):
        batch = batch_for(head, seed)
        labels = torch.tensor([0, 1, 1]) if "Sequence" in head else batch["input_ids"]
        data.append({**batch, "labels": labels})
    return data


def examples(count: int, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(5, 60, (8,), generator=generator), "labels": torch.tensor(row % 2)}
        for row in range(count)
    ]


def search(model, data=None, **settings):
    """Search on all of the data: what takes part in the choice is then known."""
    settings = {"depth": 2, "metric": "loss", "test_dataset": labelled(), "progress": False, **settings}
    return search_layers(model, labelled() if data is None else data, **settings)


def half(head: str) -> dict[str, int] | int:
    return {"encoder": 2, "decoder": 3} if head == BART else 2


def learned_build(head: str, shares: tuple[float, ...] = (0.1, 0.4, 0.3, 0.2)) -> torch.nn.Module:
    """Build a model whose drop rates were learned, as a loaded checkpoint says it."""
    model = build(head)
    learned = {stack: list(shares) for stack in depths_of(model)}
    model.config.hf_layerdrop = {"rates": learned, "learned_rates": learned, "learned_shares": learned}
    return model


def with_useless_layer(layer: int) -> torch.nn.Module:
    """Build a BERT in which one layer returns its input: it adds nothing, and normalising twice changes nothing."""
    model = build(BERT)
    for name, weight in model.named_parameters():
        if "LayerNorm" in name:
            torch.nn.init.constant_(weight, float(name.endswith("weight")))
    for part in (model.bert.encoder.layer[layer].attention.output.dense, model.bert.encoder.layer[layer].output.dense):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    return model


@pytest.mark.parametrize("head", [BERT, "RobertaForCausalLM", BART])
def test_an_exhaustive_search_finds_the_best_of_all_sets_and_scores_are_those_of_each_alone(head: str) -> None:
    model, data = build(head), labelled(head)
    depths = depths_of(model)
    found = search(model, data, strategy="exhaustive", depth=half(head), test_dataset=labelled(head, 1, first=7))
    alone = {}
    for kept in Space(depths, parse_depth(half(head), depths)).every_set():
        result = evaluate_depths(model, data, depths=[kept], progress=False)[0]
        alone[tuple(kept.values())] = result.metrics["loss"]
    ranked = sorted(alone, key=alone.get)
    assert len(set(alone.values())) == len(alone) == found.sub_networks == found.evaluations
    assert tuple(found.keep_layers.values()) == ranked[0]
    assert found.score == alone[ranked[0]]
    assert [tuple(other.keep_layers.values()) for other in found.runner_ups] == ranked[1 : 1 + len(found.runner_ups)]
    assert [other.score for other in found.runner_ups] == [alone[key] for key in ranked[1 : 1 + len(found.runner_ups)]]
    assert found.share_as_good == 1 / len(alone)
    assert found.share_is_exact
    assert found.shared


def test_all_924_sets_of_6_out_of_12_layers_take_1715_layer_forwards_a_batch() -> None:
    model = build(BERT, num_hidden_layers=12)
    data = labelled(batches=2)
    sets = list(Space({"encoder": 12}, {"encoder": 6}).every_set())
    results = []
    with recorded_runs(model) as runs:
        evaluator = Evaluator(model, data, metric="loss", memory_limit=10**7)
        evaluator.measure_in_turn(sets, results.extend)
    assert len(results) == 924
    assert len(runs["encoder"]) == 2 * 1715  # though they are run, and written down, a few at a time
    assert sum(result.layer_forwards for result in results) == 1715
    assert 0 < evaluator.peak <= 10**7


@pytest.mark.parametrize("held", [0, 2, 3, 100])  # what a layer was given is held beside what it gave
def test_a_memory_limit_is_respected_by_computing_again_and_changes_no_score(held: int) -> None:
    model, data = build(BERT), labelled()
    state = 3 * 9 * 16 * 4  # one hidden state: rows, tokens, width, bytes
    sets = every_sub_network({"encoder": DEPTH})
    free = {
        tuple(r.keep_layers["encoder"]): r for r in Evaluator(model, data, metric="loss").measure(sets, progress=False)
    }
    limited = []
    evaluator = Evaluator(model, data, metric="loss", memory_limit=held * state)
    with recorded_runs(model) as runs:
        evaluator.measure_in_turn(sets, limited.extend)
    assert evaluator.peak <= held * state
    assert {tuple(r.keep_layers["encoder"]): r.metrics for r in limited} == {key: r.metrics for key, r in free.items()}
    least, most = 2**DEPTH - 1, DEPTH * 2 ** (DEPTH - 1)
    a_batch = len(runs["encoder"]) / len(data)
    assert {0: a_batch == most, 100: a_batch == least}.get(held, least < a_batch < most)


def test_predictions_count_against_the_memory_limit_and_decide_how_many_sets_run_in_a_pass() -> None:
    sets = every_sub_network({"encoder": DEPTH})

    def passes(limit: int) -> list[int]:
        counts = []
        evaluator = Evaluator(build(BERT), labelled(), metric="accuracy", memory_limit=limit)
        evaluator.measure_in_turn(sets, lambda results: counts.append(len(results)))
        return counts

    a_set = 2 * 3 * (2 * 4 + 8)  # batches, rows, two logits and a label
    assert passes(10**7) == [1, 14]
    assert passes(2 * 4 * a_set) == [1, 4, 4, 4, 2]


def test_held_outputs_are_not_used_for_other_inputs() -> None:
    class Changing(list):
        """Batches that are others each time they are read, whatever the random streams say."""

        reads = 0

        def __iter__(self):
            self.reads += 1
            yield from labelled(batches=2, first=10 * self.reads)

    model, results = build(BERT), []
    data = Changing(labelled())
    evaluator = Evaluator(model, data, metric="loss", memory_limit=10**7)
    evaluator.measure_in_turn([{"encoder": (0,)}, {"encoder": (0, 1)}], results.extend)
    for read, result in enumerate(results, 1):
        alone = evaluate_depths(
            model, labelled(batches=2, first=10 * read), depths=[result.keep_layers], progress=False
        )
        assert result.metrics["loss"] == alone[0].metrics["loss"]


def test_a_beam_as_wide_as_the_space_is_exhaustive_and_a_narrow_one_is_cheaper() -> None:
    model = build(BERT, num_hidden_layers=6)
    everything = search(model, strategy="exhaustive", depth=3)
    wide = search(model, strategy="beam", depth=3, width=100)
    narrow = search(model, strategy="beam", depth=3, width=1)
    assert (wide.keep_layers, wide.score) == (everything.keep_layers, everything.score)
    assert narrow.layer_forwards < wide.layer_forwards
    assert narrow.score >= everything.score
    assert not narrow.share_is_exact
    greedy = search(model, strategy="greedy_removal", depth=3)
    assert (greedy.keep_layers, greedy.layer_forwards) == (narrow.keep_layers, narrow.layer_forwards)


@pytest.mark.parametrize(("layers", "keep", "exhaustive", "share"), [(12, 6, 1715, 1 / 3), (16, 8, 24309, 1 / 10)])
def test_a_beam_takes_a_small_part_of_the_layer_forwards_of_all_sets(
    layers: int, keep: int, exhaustive: int, share: float
) -> None:
    model = build(BERT, num_hidden_layers=layers)
    with recorded_runs(model) as runs:
        found = search(model, labelled(batches=1), depth=keep, test_dataset=labelled(batches=1, first=3))
    assert found.layer_forwards + found.extra_layer_forwards <= share * exhaustive
    # The winner and the whole model on the other data: they share their common prefix.
    tested = len(runs["encoder"]) - found.layer_forwards - found.extra_layer_forwards
    assert layers <= tested <= layers + keep
    assert 1 / found.sub_networks <= found.share_as_good < 1


def marked(layers: int) -> torch.nn.Module:
    """Build a model whose layers can be told apart from within an evaluation; see `marks_of`."""
    model = build(BERT, num_hidden_layers=layers)
    with torch.no_grad():
        for number, layer in enumerate(model.bert.encoder.layer):
            layer.output.dense.bias[0] = number
    return model


def marks_of(model: torch.nn.Module) -> frozenset[int]:
    return frozenset(int(layer.output.dense.bias[0]) for layer in model.bert.encoder.layer)


@pytest.mark.parametrize(("swaps", "score"), [(None, 0), (0, 0), (1, 5), (2, 10), (9, 10)])
def test_each_round_of_swaps_brings_the_best_single_layer_back(swaps: int | None, score: float) -> None:
    def evaluate(model: torch.nn.Module) -> float:
        kept = marks_of(model)
        if len(kept) > 2:  # on the way, the layers of the best set seem to be the ones to remove
            return -len(kept & {0, 1})
        return 10.0 if kept == {0, 1} else 5.0 if 1 in kept else 0.0

    settings = {} if swaps is None else {"swaps": swaps}
    found = search(marked(6), strategy="beam", evaluate=evaluate, metric="points", test_dataset=None, **settings)
    assert found.score == score


def test_a_round_that_finds_nothing_better_is_the_last_one() -> None:
    model = build(BERT, num_hidden_layers=6)
    few, many = (search(model, strategy="beam", depth=3, swaps=swaps) for swaps in (20, 40))
    assert (many.keep_layers, many.evaluations) == (few.keep_layers, few.evaluations)
    best = few.keep_layers["encoder"]
    near = [sorted({*best, other} - {layer}) for layer in best for other in range(6) if other not in best]
    swapped = evaluate_depths(model, labelled(), depths=near, metric="loss", progress=False)
    assert few.score <= min(result.metrics["loss"] for result in swapped)


def test_greedy_removal_never_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(BERT, num_hidden_layers=6)
    plain = search(model, strategy="greedy_removal", depth=3)
    monkeypatch.setattr(beam, "MANY_SETS", 1)
    assert search(model, strategy="greedy_removal", depth=3).evaluations == plain.evaluations
    assert search(model, strategy="beam", width=1, depth=3).evaluations > plain.evaluations


def test_by_itself_a_beam_swaps_where_there_are_many_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(BERT, num_hidden_layers=6)
    plain = search(model, strategy="beam", depth=3)
    monkeypatch.setattr(beam, "MANY_SETS", 19)
    assert search(model, strategy="beam", depth=3).evaluations > plain.evaluations
    monkeypatch.setattr(beam, "MANY_SETS", 20)
    assert search(model, strategy="beam", depth=3).evaluations == plain.evaluations


def modern_bert() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """Build a model that cannot be cut without its layer 0, and a batch for it."""
    model = AutoModelForMaskedLM.from_config(build_tiny("modernbert").model.config).eval()
    tokens = torch.randint(5, 20, (3, 6))
    return model, [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}]


@pytest.mark.parametrize(
    "strategy",
    [
        "beam",
        "greedy_removal",
        "greedy_addition",
        "exhaustive",
        "random",
        "block_influence",
        "leave_one_out",
        "angular_distance",
        "weight_norm",
        "spread",
        "first",
    ],
)
@pytest.mark.parametrize("depth", [1, 3])
def test_only_sets_that_plain_transformers_can_rebuild_are_tried(strategy: str, depth: int) -> None:
    """ModernBERT's first layer lacks a norm, and no field of the config can say so of another one."""
    model, data = modern_bert()
    ((stack, layers),) = depths_of(model).items()
    found = search(model, data, strategy=strategy, depth=depth, test_dataset=data)
    assert len(found.keep_layers[stack]) == depth < layers
    assert found.keep_layers[stack][0] == 0
    assert all(other.keep_layers[stack][0] == 0 for other in found.runner_ups)
    if strategy == "exhaustive":
        assert found.evaluations == comb(layers - 1, depth - 1)
        assert found.share_as_good >= 1 / found.evaluations
    prune_layers(model, found.keep_layers)


def tokens() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def gemma_3n(layers: int = 6) -> torch.nn.Module:
    """Build a model of which no layer can be cut: its embeddings are as wide as it has layers."""
    config = Gemma3nTextConfig(
        vocab_size=20,
        vocab_size_per_layer_input=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        layer_types=["full_attention"] * layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_size_per_layer_input=4,
        laurel_rank=4,
        num_kv_shared_layers=0,
        altup_num_inputs=2,
        activation_sparsity_pattern=None,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def qwen_moe(layers: int = 6) -> torch.nn.Module:
    """Build a model whose every second layer, counted by its place, is one of experts: few sets of them can be cut."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        decoder_sparse_step=2,
        mlp_only_layers=[],
    )
    return AutoModelForCausalLM.from_config(config).eval()


def alternating(layers: int, depth: int) -> list[tuple[int, ...]]:
    """List the sets of layers of such a model that have a plain layer at every even place, one of experts at others."""
    return [
        kept
        for kept in combinations(range(layers), depth)
        if all(place % 2 == layer % 2 for place, layer in enumerate(kept))
    ]


def test_a_config_is_built_once_however_many_cuts_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built, build_model = [], rebuilding.built_on_meta
    for module in (pruning, rebuilding):
        monkeypatch.setattr(module, "built_on_meta", lambda *args: built.append(args) or build_model(*args))
    cutter = Cutter(qwen_moe(8))
    for depth in (3, 4):
        possible = [kept for kept in combinations(range(8), depth) if cutter.can_cut({"layers": kept})]
        assert possible == alternating(8, depth)
    assert len(built) == 3  # the whole model, and one of each depth
    with pytest.raises(UnsupportedModelError, match=r"layers \[1, 2, 3, 5\]: .* layer 1 otherwise at place 0"):
        cutter.check({"layers": (1, 2, 3, 5)})


def test_the_whole_model_stands_for_no_cut_of_it() -> None:
    cutter = Cutter(gemma_3n())
    assert cutter.can_cut({"layers": range(6)})
    assert not cutter.can_cut({"layers": (0, 1)})
    assert "embed_tokens_per_layer" in cutter.last_refusal


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("learned", "exhaustive")])
def test_it_is_so_where_there_are_too_many_sets_to_try_them_all(strategy: str) -> None:
    model = gemma_3n(24)
    model.forward = None
    with pytest.raises(UnsupportedModelError, match="embed_tokens_per_layer"):
        search(model, tokens(), strategy=strategy, depth=12, test_dataset=tokens())


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "learned"])
def test_a_depth_of_which_nothing_can_be_cut_is_refused_with_the_reason_before_anything_is_scored(
    strategy: str,
) -> None:
    model = gemma_3n()
    model.forward = None  # nothing may run
    with pytest.raises(UnsupportedModelError, match=r"number of layers \(model\.embed_tokens_per_layer"):
        search(model, tokens(), strategy=strategy, depth=3, test_dataset=tokens())


def test_figure_5_of_a_model_of_which_nothing_can_be_cut_is_refused_with_the_reason() -> None:
    model = gemma_3n()
    model.forward = None
    with pytest.raises(UnsupportedModelError, match=r"number of layers \(model\.embed_tokens_per_layer"):
        average_without_layer(model, tokens(), depth=2, metric="loss", progress=False)


def test_a_rule_whose_set_cannot_be_cut_is_refused_with_the_reason_before_anything_is_scored() -> None:
    model, data = modern_bert()
    model.forward = None
    for settings in ({"depth": 3}, {"depth": None, "max_parameters": count_parameters(model) - 1}):
        with pytest.raises(UnsupportedModelError, match=r"'last' has no other set.* would build layer 1 otherwise"):
            search(model, data, strategy="last", test_dataset=data, **settings)


@pytest.mark.parametrize(
    "strategy",
    ["beam", "greedy_removal", "exhaustive", "random", "leave_one_out", "angular_distance", "weight_norm", "first"],
)
@pytest.mark.parametrize("depth", [1, 3, 4, 5])
def test_layers_whose_kind_goes_by_their_place_are_chosen_of_what_can_be_cut(strategy: str, depth: int) -> None:
    """No layer but the last can be removed alone, though others can be in twos."""
    found = search(qwen_moe(), tokens(), strategy=strategy, depth=depth, test_dataset=tokens())
    assert found.keep_layers["layers"] in alternating(6, depth)
    assert found.sub_networks == len(alternating(6, depth))


def test_a_strategy_that_comes_to_no_set_says_why() -> None:
    model = qwen_moe()
    last_of_its_kind = model.model.layers[4]

    def evaluate(cut: torch.nn.Module) -> float:
        return float(last_of_its_kind is cut.model.layers[0])

    with pytest.raises(UnsupportedModelError, match=r"choose another depth or strategy\. .* otherwise at place"):
        search(model, evaluate=evaluate, metric="accuracy", strategy="greedy_addition", depth=3, test_dataset=None)


def test_beside_evaluate_a_metric_is_a_name() -> None:
    with pytest.raises(LayerDropConfigError, match="but evaluate gives the numbers: name one"):
        search(build(BERT), evaluate=lambda model: 1.0, metric=lambda prediction: 1.0, depth=2, test_dataset=None)


def test_budgets_are_met_by_what_can_be_cut_where_no_layer_can_go_alone() -> None:
    model = qwen_moe()
    for depth in range(1, 7):
        sizes = []
        for kept in alternating(6, depth):
            prune_layers(cut := qwen_moe(), kept)
            sizes.append(count_parameters(cut))
        found = search(model, tokens(), depth=None, max_parameters=max(sizes), strategy="random", test_dataset=tokens())
        assert len(found.keep_layers["layers"]) == depth
        assert found.parameters <= max(sizes)
        assert [neighbour.keep_layers["layers"] in alternating(6, depth + 1) for neighbour in found.outside] == [
            True
        ] * (depth < 6)
    just_less = search(model, tokens(), depth=None, max_parameters=count_parameters(model) - 1, test_dataset=tokens())
    assert just_less.keep_layers == {"layers": (0, 1, 2, 3, 4)}


@pytest.mark.parametrize("strategy", ["weight_norm", "first"])
def test_what_is_just_outside_of_a_budget_can_be_cut(strategy: str) -> None:
    prune_layers(cut := qwen_moe(), [0, 1, 2, 3])
    found = search(
        qwen_moe(),
        tokens(),
        depth=None,
        max_parameters=count_parameters(cut),
        strategy=strategy,
        test_dataset=tokens(),
    )
    assert [neighbour.keep_layers for neighbour in found.outside] == [{"layers": (0, 1, 2, 3, 4)}]


def test_a_budget_below_all_that_can_be_cut_names_that_and_says_why() -> None:
    model = gemma_3n()
    budget = {"depth": None, "test_dataset": tokens(), "max_parameters": count_parameters(model)}
    assert search(model, tokens(), **budget).keep_layers == {"layers": tuple(range(6))}
    budget["max_parameters"] -= 1
    with pytest.raises(
        LayerDropConfigError, match=r"\(6 of the 6 .* raise the budget.* Fewer .*embed_tokens_per_layer"
    ):
        search(model, tokens(), **budget)


def test_the_share_of_sets_as_good_counts_only_what_can_be_cut() -> None:
    everything = search(qwen_moe(), tokens(), strategy="exhaustive", depth=3, test_dataset=tokens())
    assert (everything.sub_networks, everything.share_samples) == (4, 4)
    assert everything.share_is_exact
    assert everything.share_as_good == 1 / 4
    first = search(qwen_moe(), tokens(), strategy="first", depth=3, test_dataset=tokens(), share_samples=9)
    assert (first.sub_networks, first.share_samples) == (4, 4)
    assert first.share_is_exact
    better = [other for other in everything.runner_ups if other.score < first.score]
    assert first.share_as_good == (1 + len(better) + (everything.score < first.score)) / 4


def test_where_sets_are_too_many_to_try_the_draws_say_how_many_can_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_SETS", 5)
    model, data = modern_bert()  # of its 6 sets of 2 of 4 layers, 3 hold the first one
    found = search(model, data, strategy="first", depth=2, test_dataset=data, share_samples=2, seed=1)
    assert 3 <= found.sub_networks < 6
    assert found.share_samples == 3
    assert not found.share_is_exact
    exhaustive = search(model, data, strategy="exhaustive", depth=2, test_dataset=data)
    assert (exhaustive.sub_networks, exhaustive.share_is_exact) == (3, True)  # they were all tried
    half = Space({"layers": 24}, {"layers": 12}, lambda kept: 0 in kept["layers"])
    drawn = half.draw(200, Random(0))
    assert drawn.share_possible == pytest.approx(1 / 2, abs=0.1)
    assert all(0 in kept["layers"] for kept in drawn.sets)


def test_a_bar_shows_how_far_the_trying_of_cuts_is(capsys: pytest.CaptureFixture[str]) -> None:
    slow = Space({"layers": 9}, {"layers": 4}, lambda _: time.sleep(0.01) is None)
    assert len(Scorer(None).possible_sets(slow)) == slow.count() == 126
    assert re.search(r"Trying cuts: +\d+%", capsys.readouterr().err)
    assert len(Scorer(None, progress=False).possible_sets(slow)) == 126
    assert not capsys.readouterr().err


def test_greedy_addition_takes_the_whole_model_where_that_is_asked_for() -> None:
    found = search(gemma_3n(), tokens(), strategy="greedy_addition", depth=6, test_dataset=tokens())
    assert found.keep_layers == {"layers": tuple(range(6))}


def test_averages_without_a_layer_leave_out_what_cannot_be_cut() -> None:
    model, data = modern_bert()
    ((stack, layers),) = depths_of(model).items()
    found = average_without_layer(model, data, depth=2, metric="loss", samples=99, progress=False)
    assert found.sets[stack] == (0, *[layers - 2] * (layers - 1))
    assert found.scores[stack][0] is None


def test_budgets_count_only_what_can_be_cut() -> None:
    """ModernBERT's first layer is the smallest one, and the one that has to stay."""
    model, data = modern_bert()
    ((stack, _),) = depths_of(model).items()
    cut = copy.deepcopy(model)
    prune_layers(cut, {stack: [0, 2]})
    for budget in ({"max_parameters": count_parameters(cut)}, {"max_latency_ms": 10_000}):
        found = search(model, data, depth=None, test_dataset=data, **budget)
        assert found.keep_layers[stack][0] == 0
        assert len(found.keep_layers[stack]) == (2 if "max_parameters" in budget else len(model.model.layers))


def test_greedy_searches_take_the_best_single_step_each_time() -> None:
    model, data = build(BERT), labelled()

    def loss(layers: tuple[int, ...]) -> float:
        return evaluate_depths(model, data, depths=[list(layers)], metric="loss", progress=False)[0].metrics["loss"]

    first = min(((layer,) for layer in range(DEPTH)), key=loss)
    second = min((tuple(sorted((*first, layer))) for layer in range(DEPTH) if layer not in first), key=loss)
    assert search(model, data, strategy="greedy_addition").keep_layers["encoder"] == second
    three = min(combinations(range(DEPTH), 3), key=loss)
    two = min(combinations(three, 2), key=loss)
    assert search(model, data, strategy="greedy-removal").keep_layers["encoder"] == two


@pytest.mark.parametrize(
    ("strategy", "depth", "kept"),
    [
        ("every_other", 6, (0, 2, 4, 6, 8, 10)),
        ("every_other", 9, (0, 1, 2, 4, 5, 6, 8, 9, 10)),
        ("spread", 6, (0, 2, 4, 6, 8, 11)),
        ("spread", 1, (11,)),
        ("first", 4, (0, 1, 2, 3)),
        ("last", 4, (8, 9, 10, 11)),
    ],
)
def test_rules(strategy: str, depth: int, kept: tuple[int, ...]) -> None:
    found = search(build(BERT, num_hidden_layers=12), strategy=strategy, depth=depth)
    assert found.keep_layers == {"encoder": kept}
    assert found.evaluations == 1
    assert found.layer_forwards == found.layer_forwards_alone == depth


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("head", [BERT, "RobertaForCausalLM", BART])
def test_every_strategy_returns_a_set_of_the_depth_with_its_own_score_and_leaves_the_model_alone(
    head: str, strategy: str
) -> None:
    model, data = learned_build(head).train(), labelled(head)
    evaluate_depths(model, data, depths=[None], progress=False)  # BERT notes the kind of problem
    before, classes = model.config.to_dict(), [type(module) for module in model.modules()]
    depth = {"encoder": 2, "decoder": 2} if head == BART else 2
    found = search(model, data, strategy=strategy, depth=depth, test_dataset=labelled(head, 1, first=9))
    assert {stack: len(kept) for stack, kept in found.keep_layers.items()} == parse_depth(depth, depths_of(model))
    kept = [found.keep_layers, None]
    alone, everything = evaluate_depths(model, data, depths=kept, metric="loss", progress=False)
    assert (found.score, found.whole_score) == (alone.metrics["loss"], everything.metrics["loss"])
    tested = evaluate_depths(model, labelled(head, 1, first=9), depths=kept, metric="loss", progress=False)
    assert (found.test_score, found.whole_test_score) == tuple(result.metrics["loss"] for result in tested)
    assert Selection.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert model.training
    assert model.config.to_dict() == before
    assert [type(module) for module in model.modules()] == classes
    assert not any(module._forward_hooks for module in model.modules())


def test_learned_keeps_the_smallest_shares_whatever_they_score() -> None:
    found = search(learned_build(BERT, (0.4, 0.1, 0.2, 0.3)), strategy="learned")
    assert found.keep_layers == {"encoder": (1, 2)}
    assert found.importances == {"encoder": pytest.approx((0.6, 0.9, 0.8, 0.7))}
    assert found.evaluations == 1


def test_settings_are_the_keywords_of_the_strategies() -> None:
    for name in STRATEGIES:
        parameters = inspect.signature(load_strategy(name, {}).func).parameters.values()
        assert tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) == tuple(SETTINGS.get(name, ()))


@pytest.mark.parametrize("strategy", ["block_influence", "leave_one_out", "activation_norm", "weight_norm"])
@pytest.mark.parametrize("useless", [1, 2])
def test_a_layer_that_does_nothing_is_the_least_important_also_without_labels(strategy: str, useless: int) -> None:
    unlabelled = [batch_for(BERT, seed) for seed in range(2)]
    found = search(
        with_useless_layer(useless),
        unlabelled,
        strategy=strategy,
        depth=DEPTH - 1,
        evaluate=lambda model: 1.0,
        metric=None,
        test_dataset=None,
    )
    importances = found.importances["encoder"]
    assert importances.index(min(importances)) == useless
    assert found.keep_layers["encoder"] == tuple(layer for layer in range(DEPTH) if layer != useless)
    if strategy != "weight_norm":
        assert min(importances) == pytest.approx(0, abs=1e-5)
        assert sorted(importances)[1] > 1e-3


def test_the_run_of_layers_that_turns_least_is_dropped() -> None:
    model = with_useless_layer(1)
    alike = search(model, strategy="angular_distance", depth=DEPTH - 1)
    assert alike.keep_layers["encoder"] == (0, 2, 3)
    assert alike.importances["encoder"][1] == pytest.approx(0, abs=1e-3)
    states = []
    with torch.no_grad():
        for batch in labelled():
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            hidden = model(**inputs, output_hidden_states=True).hidden_states
            states.append([state[batch["attention_mask"].bool()].double() for state in hidden])
    layers = [torch.cat(parts) for parts in zip(*states, strict=True)]
    expected = [
        float((torch.cosine_similarity(layers[begin], layers[begin + 2], dim=-1).arccos() / math.pi).mean())
        for begin in range(3)
    ]
    two = search(model, strategy="angular_distance", depth=2)
    assert two.importances["encoder"][:3] == pytest.approx(expected, abs=1e-5)
    begin = expected.index(min(expected))
    assert two.keep_layers["encoder"] == tuple(layer for layer in range(DEPTH) if not begin <= layer < begin + 2)


def test_figure_5_averages_the_sets_that_lack_a_layer() -> None:
    model, data = build(BERT), labelled()
    found = average_without_layer(model, data, depth=2, metric="loss", samples=100, progress=False)  # 6 are all
    for layer in range(DEPTH):
        lacking = [kept for kept in combinations(range(DEPTH), 2) if layer not in kept]
        scores = [result.metrics["loss"] for result in evaluate_depths(model, data, depths=lacking, progress=False)]
        assert found.scores["encoder"][layer] == pytest.approx(sum(scores) / 3)
        assert found.sets["encoder"][layer] == 3
    assert not found.greater_is_better
    some = average_without_layer(model, data, depth=3, metric="loss", samples=2, progress=False)
    assert sum(some.sets["encoder"]) == 2
    assert some.scores["encoder"].count(None) == 2


def test_without_a_test_set_a_random_half_is_held_out() -> None:
    model, data = build(BERT), labelled(batches=4)
    found = search(model, data, test_dataset=None, strategy="spread")
    losses = [
        evaluate_depths(model, [batch], depths=[2], metric="loss", progress=False)[0].metrics["loss"] for batch in data
    ]
    halves = {
        tuple(sum(losses[row] for row in rows) / 2 for rows in (first, set(range(4)) - set(first)))
        for first in combinations(range(4), 2)
    }
    assert any(found.score == pytest.approx(a) and found.test_score == pytest.approx(b) for a, b in halves)
    assert "held out" in found.split
    assert search(model, data, test_dataset=None, strategy="spread") == found
    single = search(model, data[:1], test_dataset=None)
    assert single.test_score is None
    assert "single batch" in single.split


def test_a_winner_that_was_lucky_is_warned_of() -> None:
    """The labels of the search are what one sub-network says; those of the separate data are the opposite."""
    model = build(BERT, num_hidden_layers=6)
    prune_layers(oracle := build(BERT, num_hidden_layers=6), [0, 3, 4])

    def data(first: int, flipped: bool) -> list[dict[str, torch.Tensor]]:
        batches = [batch_for(BERT, seed) for seed in range(first, first + 20)]
        with torch.no_grad():
            return [{**batch, "labels": oracle(**batch).logits.argmax(-1) ^ flipped} for batch in batches]

    settings = {"metric": "accuracy", "depth": 3, "strategy": "exhaustive"}
    lucky = search(model, data(0, False), test_dataset=data(50, True), **settings)
    assert (lucky.score, lucky.test_score) == (1.0, 0.0)
    good = search(model, data(0, False), test_dataset=data(50, False), **settings)
    assert (good.score, good.test_score) == (1.0, 1.0)
    assert not good.warnings
    objective = Objective("accuracy", True)
    assert overfitting_warning(objective, (0.9, 0.7), (0.85, 0.85), (1000, 1000))
    assert not overfitting_warning(objective, (0.9, 0.7), (0.9, 0.7), (1000, 1000))  # the separate data is harder
    assert not overfitting_warning(objective, (0.9, 0.7), (0.85, 0.85), (6, 6))  # chance explains it
    assert overfitting_warning(Objective("loss", False), (0.5, 0.9), (0.6, 0.6), (1000, 1000))
    assert not overfitting_warning(Objective("loss", False), (0.9, 0.5), (0.6, 0.6), (1000, 1000))


def test_directions_are_known_by_name_and_can_be_said() -> None:
    model, data = build(BERT), labelled(batches=4)
    losses = {kept: search(model, data, strategy=kept).score for kept in ("first", "last", "spread")}
    best = search(model, data, strategy="exhaustive")
    assert not best.greater_is_better
    assert best.score <= min(losses.values())
    worst = search(model, data, strategy="exhaustive", greater_is_better=True)
    assert worst.score >= max(losses.values())
    perplexity = search(model, data, strategy="exhaustive", metric="perplexity")
    assert perplexity.keep_layers == best.keep_layers
    assert perplexity.score == pytest.approx(math.exp(best.score))
    assert search(model, data, metric="accuracy").greater_is_better
    assert search(model, data, metric=None).metric == "accuracy"


def test_ties_of_a_coarse_metric_are_broken_by_the_loss() -> None:
    model, data = build(BERT), labelled(batches=1)
    found = search(model, data, strategy="exhaustive", metric="accuracy")
    results = evaluate_depths(model, data, depths=list(combinations(range(DEPTH), 2)), progress=False)
    best = max(result.metrics["accuracy"] for result in results)
    tied = [result for result in results if result.metrics["accuracy"] == best]
    assert len(tied) > 1
    assert found.keep_layers == min(tied, key=lambda result: result.metrics["loss"]).keep_layers
    assert found.share_as_good == len(tied) / len(results)


def test_the_selection_file_is_a_keep_layers_of_its_own(tmp_path: Path) -> None:
    model = build(BERT)
    found = search(model, strategy="last")
    file = found.write(tmp_path / "new" / "selection.json")
    prune_layers(model, file)
    assert depths_of(model) == {"encoder": 2}
    assert model.config.hf_layerdrop["keep_layers"] == {"encoder": [2, 3]}
    assert [model.config.hf_layerdrop[name] for name in ("strategy", "metric", "score")] == [
        "last",
        "loss",
        found.score,
    ]
    assert Selection.from_dict(json.loads(file.read_text())) == found
    again = build(BERT)
    prune_layers(again, found)
    assert again.config.hf_layerdrop == model.config.hf_layerdrop
    prune_layers(again, [0])
    assert not {"strategy", "metric", "score"} & set(again.config.hf_layerdrop)
    with pytest.raises(OutputExistsError, match="exists"):
        found.write(file)
    found.write(file, overwrite=True)
    assert [path.name for path in file.parent.iterdir()] == ["selection.json"]


# Budgets


def test_parameters_and_size_are_those_of_the_pruned_checkpoint_and_the_deepest_that_fits_is_searched(
    tmp_path: Path,
) -> None:
    model = build(BERT)
    sizes = {}
    for depth in range(1, DEPTH + 1):
        prune_layers(cut := build(BERT), depth)
        sizes[depth] = count_parameters(cut)
    for depth in range(1, DEPTH):
        found = search(model, depth=None, max_parameters=sizes[depth + 1] - 1)
        assert len(found.keep_layers["encoder"]) == depth
        assert found.parameters == sizes[depth]
        (outside,) = found.outside
        assert outside.parameters == sizes[depth + 1]
        layers = outside.keep_layers["encoder"]
        assert len(layers) == depth + 1
        assert outside.score == evaluate_depths(model, labelled(), depths=[layers], progress=False)[0].metrics["loss"]
        assert len(search(model, depth=None, max_parameters=sizes[depth]).keep_layers["encoder"]) == depth
    by_size = search(model, depth=None, max_size_mb=found.size_mb)
    assert by_size.keep_layers == found.keep_layers
    prune_layers(model, by_size.keep_layers)
    model.save_pretrained(tmp_path)
    assert by_size.size_mb * 1e6 == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.15)
    assert by_size.size_mb == 4 * count_parameters(model) / 1e6  # the rest of the file is its header


def test_tied_weights_count_once() -> None:
    model = build("RobertaForMaskedLM")
    found = search(
        model, labelled("RobertaForMaskedLM"), test_dataset=labelled("RobertaForMaskedLM"), strategy="spread"
    )
    assert found.size_mb == 4 * found.parameters / 1e6


def test_both_stacks_are_cut_to_meet_a_budget() -> None:
    model, data = build(BART), labelled(BART)
    limit = count_parameters(model) - 4000
    found = search(model, data, depth=None, max_parameters=limit, strategy="spread", test_dataset=labelled(BART, 1))
    assert found.parameters <= limit
    everything = [
        result
        for depths in Space({"encoder": 4, "decoder": 4}, {"encoder": 1, "decoder": 1}).every_set()
        for result in evaluate_depths(
            model,
            data,
            depths=[{stack: layers[0] + 1 for stack, layers in depths.items()}],
            metric="loss",
            progress=False,
        )
    ]
    fitting = [result for result in everything if result.parameters <= limit]
    deepest = [
        one
        for one in fitting
        if not any(
            one is not other and all(len(other.keep_layers[s]) >= len(one.keep_layers[s]) for s in one.keep_layers)
            for other in fitting
        )
    ]
    assert len(deepest) > 1
    assert found.score == min(result.metrics["loss"] for result in deepest)
    assert all(outside.parameters > limit for outside in found.outside)


def test_latency_is_measured_on_the_input_asked_for() -> None:
    model = build(BERT, num_hidden_layers=12, hidden_size=64, intermediate_size=256)
    seen = []
    model.bert.encoder.layer[0].attention.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    batch = labelled()[0]
    measure_latency(model, batch, batch_size=5, length=30)
    assert set(seen) == {(5, 30, 64)}
    assert len(seen) >= 10  # a warm-up, and a median
    for _ in range(4):  # what is timed beside other tests is not always in order: once of four times will do
        whole = measure_latency(model, batch, batch_size=5, length=30)
        shallow = measure_latency(model, batch, keep_layers=[0, 11], batch_size=5, length=30)
        if not 0 < shallow < whole:
            continue
        found = search(
            model,
            depth=None,
            strategy="spread",
            max_latency_ms=(shallow + whole) / 2,
            latency_batch_size=5,
            latency_length=30,
        )
        assert 1 <= len(found.keep_layers["encoder"]) <= 12
        assert all(outside.latency_ms > 0 for outside in found.outside)
        if 0 < found.latency_ms < whole and len(found.keep_layers["encoder"]) < 12:
            break
    else:
        pytest.fail("Fewer layers never took less time.")
    assert found.outside


def test_inputs_are_repeated_and_cut() -> None:
    batch = {"input_ids": torch.arange(6).view(2, 3), "pixel_values": torch.rand(2, 3), "labels": torch.tensor([0, 1])}
    larger = sized(batch, 3, 5)
    assert larger["input_ids"].tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4], [0, 1, 2, 0, 1]]
    assert larger["pixel_values"].shape == (3, 3)  # not tokens
    assert larger["labels"].tolist() == [0, 1, 0]
    assert sized(batch, 1, 2)["input_ids"].tolist() == [[0, 1]]


# A user's own evaluation, and generation


def test_an_evaluate_function_sees_each_sub_network_in_eval_mode_one_by_one() -> None:
    model = build(BERT).train()
    seen = []

    def evaluate(cut):
        assert not cut.training
        assert not torch.is_grad_enabled()
        seen.append(cut.config.num_hidden_layers)
        return {"good": float(cut(**labelled()[0]).logits.sum()), "other": 0.0}

    found = search(model, strategy="exhaustive", evaluate=evaluate, metric="good", test_dataset=None)
    values = {}
    for kept in combinations(range(DEPTH), 2):
        prune_layers(cut := build(BERT), list(kept))
        with torch.no_grad():
            values[kept] = float(cut(**labelled()[0]).logits.sum())
    assert found.keep_layers["encoder"] == max(values, key=values.get)
    assert found.score == max(values.values())
    assert seen == [4, 2, 2, 2, 2, 2, 2]
    assert not found.shared
    assert found.layer_forwards == found.layer_forwards_alone == 12
    assert model.training


def test_encoder_outputs_are_shared_over_decoder_choices_with_an_evaluate_function() -> None:
    model = build(BART)

    def evaluate(cut):
        outputs = [cut(**batch) for batch in labelled(BART)]
        return float(sum(output.loss for output in outputs))

    with recorded_runs(model) as runs:
        found = search(
            model, strategy="exhaustive", depth={"decoder": 2}, evaluate=evaluate, metric="loss", test_dataset=None
        )
    assert len(runs["encoder"]) == 2 * DEPTH  # two inputs, each once for all seven sub-networks
    assert len(runs["decoder"]) == 2 * (DEPTH + 6 * 2)
    prune_layers(model, found.keep_layers)
    with torch.no_grad():
        assert found.score == evaluate(model)


def test_generation_runs_one_by_one_with_the_encoder_shared_and_scores_what_the_pruned_model_generates(
    tmp_path: Path,
) -> None:
    model = build(BART)
    rows = [{name: value[0] for name, value in batch_for(BART, seed).items()} for seed in range(4)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    settings = Seq2SeqTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_length=8,
        generation_num_beams=2,
        per_device_eval_batch_size=2,
    )

    def tokens(seen):
        return {"tokens": float(seen.predictions.clip(0).sum())}

    trainer = Seq2SeqTrainer(model, settings, eval_dataset=rows, compute_metrics=tokens)
    with recorded_runs(model) as runs:
        found = search_layers(
            trainer, test_dataset=rows[:2], depth={"decoder": 2}, strategy="exhaustive", progress=False
        )
    assert not found.shared
    assert found.metric == "tokens"
    # Three passes over two batches and two over one, each for generating and for the loss; unshared, twice as many.
    assert len(runs["encoder"]) <= 2 * (3 * 2 + 2 * 1) * DEPTH
    kept, score = found.keep_layers, found.score
    prune_layers(model, kept)
    assert trainer.evaluate()["eval_tokens"] == score


def test_a_trainer_searches_by_its_own_numbers(tmp_path: Path) -> None:
    def numbers(seen):
        return {"first": float(seen.predictions[:, 0].mean()), "second": float(-seen.predictions[:, 0].mean())}

    model = build(BERT)
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True),
        eval_dataset=examples(16),
        compute_metrics=numbers,
    )
    settings = {"depth": 2, "strategy": "exhaustive", "progress": False, "test_dataset": examples(8)}
    first = search_layers(trainer, metric="first", **settings)
    second = search_layers(trainer, metric="second", **settings)
    assert first.keep_layers != second.keep_layers
    with pytest.raises(TaskError, match="name the one"):
        search_layers(trainer, **settings)
    with pytest.raises(TaskError, match="gives first, second"):
        search_layers(trainer, metric="third", **settings)
    prune_layers(model, first.keep_layers)
    assert trainer.evaluate()["eval_first"] == first.score


def test_a_trainer_that_groups_by_length_reads_the_same_batches_each_time(tmp_path: Path) -> None:
    def rows(count: int) -> list[dict[str, torch.Tensor]]:
        found = examples(count)
        return [{**row, "input_ids": row["input_ids"][: 3 + place % 5]} for place, row in enumerate(found)]

    def padded(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in batch], batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.stack([r["labels"] for r in batch]),
        }

    model = build(BERT, num_hidden_layers=6)
    settings = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, train_sampling_strategy="group_by_length"
    )
    trainer = Trainer(model, settings, eval_dataset=rows(64), data_collator=padded)
    search = {
        "metric": "loss",
        "depth": 3,
        "strategy": "exhaustive",
        "progress": False,
        "journal": tmp_path / "journal",
    }
    found = search_layers(trainer, test_dataset=rows(16), **search)
    assert found.layer_forwards == 34  # 4 + 10 + 20 prefixes, though in passes of 16
    again = search_layers(trainer, test_dataset=rows(16), **search)
    assert again.from_journal == 20
    assert again.score == found.score


# The journal


def interrupting(after: int):
    """Return an evaluate function that is interrupted after so many calls, and how often it was called."""
    calls = []

    def evaluate(model) -> float:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return float(model(**labelled()[0]).logits.sum())

    return evaluate, calls


def test_an_interrupted_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    journal, model = tmp_path / "logs" / "search.journal", build(BERT)
    settings = {"strategy": "exhaustive", "metric": None, "test_dataset": None, "journal": journal}
    evaluate, calls = interrupting(after=4)
    with pytest.raises(KeyboardInterrupt):
        search(model, evaluate=evaluate, **settings)
    assert len(journal.read_text().splitlines()) == len(calls) == 4
    complete = search(model, evaluate=interrupting(99)[0], **{**settings, "journal": None})
    calls.clear()
    found = search(model, evaluate=evaluate, **settings)
    assert len(calls) == 1 + 6 - 4
    assert found.from_journal == 3  # and the whole model
    assert found.to_dict() == {**complete.to_dict(), "from_journal": 3}


def test_what_was_scored_before_an_interrupt_is_not_run_again_where_prefixes_are_shared(tmp_path: Path) -> None:
    model = build(BERT, num_hidden_layers=8)
    settings = {"strategy": "exhaustive", "depth": 4, "journal": tmp_path / "journal"}
    seen = []

    def stop(*_):
        seen.append(1)
        if len(seen) == 100:
            raise KeyboardInterrupt

    hook = model.classifier.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        search(model, **settings)
    hook.remove()
    lines = len((tmp_path / "journal").read_text().splitlines())
    assert 100 / 2 - 16 <= lines < 71
    runs = []
    model.classifier.register_forward_hook(lambda *_: runs.append(1))
    found = search(model, **settings)
    assert len(runs) == 2 * (71 - lines) + 2 * 2  # two batches; then the winner and the whole model on the other data
    assert found.from_journal == lines - 1
    assert {**found.to_dict(), "from_journal": 0, "layer_forwards": 0} == {
        **search(model, **{**settings, "journal": None}).to_dict(),
        "layer_forwards": 0,
    }


def search_and_stop(journal: Path, at: int, said: Path) -> None:
    """Search, and stand still when it comes to a sub-network by number: until it is killed, however long that takes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell started in the background ignores it
    count = itertools.count(1)

    def evaluate(model: torch.nn.Module) -> float:
        if next(count) == at:
            time.sleep(3600)
        return float(model(**labelled()[0]).logits.sum())

    model = build(BERT, num_hidden_layers=8)
    settings = {"strategy": "exhaustive", "depth": 4, "journal": journal}
    found = search(model, evaluate=evaluate, metric="sum", test_dataset=None, **settings)
    said.write_text(json.dumps([found.from_journal, found.evaluations]))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_loses_nothing_that_was_scored(tmp_path: Path, kind: signal.Signals) -> None:
    journal, said = tmp_path / "journal", tmp_path / "said"
    process = warm.start(search_and_stop, journal, 60, said)
    while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.02)
    os.kill(process.pid, kind)
    process.join()
    assert process.exitcode
    assert not said.exists()
    lines = journal.read_bytes().count(b"\n")
    assert 20 <= lines < 71
    with journal.open("ab") as file:
        file.write(b'{"fingerprint": "a line that was cut off')
    assert warm.end_together([warm.start(search_and_stop, journal, 0, said)]) == [0]
    assert json.loads(said.read_text()) == [lines - 1, 70]
    assert journal.read_bytes().count(b"\n") == 71
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_journal_tells_models_data_and_metrics_apart(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first = search(build(BERT), journal=journal, strategy="exhaustive")
    assert first.from_journal == 0
    assert search(build(BERT), journal=journal, strategy="exhaustive").from_journal == 6
    assert search(build(BERT), journal=journal, strategy="spread").from_journal == 1  # whatever the strategy
    assert search(build(BERT, seed=1), journal=journal, strategy="exhaustive").from_journal == 0
    assert search(build(BERT), labelled(first=5), journal=journal, strategy="exhaustive").from_journal == 0
    assert search(build(BERT), journal=journal, strategy="exhaustive", metric="accuracy").from_journal == 0


@pytest.mark.parametrize("content", ["a novel\n", '{"name": "a config"}\n', "unfinished", "[1]\n", "\x00\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "precious"
    file.write_text(content)
    with pytest.raises(LayerDropConfigError, match="not one of a search"):
        search(build(BERT), journal=file)
    assert file.read_text() == content


# Bad input


BAD = [
    ({"depth": 0}, "from 1 to 4"),
    ({"depth": 5}, "from 1 to 4"),
    ({"depth": "many"}, "from 1 to 4"),
    ({"depth": True}, "from 1 to 4"),
    ({"depth": 2.5}, "from 1 to 4"),
    ({"depth": {"decoder": 2}}, "'encoder'"),
    ({"depth": None}, "either depth, or a budget"),
    ({"max_parameters": 5000}, "not both"),
    ({"depth": None, "max_parameters": 1}, "cheapest possible .1 of the 4 encoder layers. has 4,194 parameters"),
    ({"depth": None, "max_size_mb": 0.001}, "cheapest possible .* has 0.01678 MB"),
    ({"depth": None, "max_latency_ms": 1e-9}, "cheapest possible .* ms on this machine"),
    ({"depth": None, "max_parameters": -1}, "above 0"),
    ({"depth": None, "max_latency_ms": float("nan")}, "above 0"),
    ({"strategy": "learned"}, "no learned drop rates; train it with"),
    ({"strategy": "beem"}, "did you mean 'beam'"),
    ({"width": 3, "strategy": "exhaustive"}, "no setting 'width': it has max_sub_networks"),
    ({"width": 0}, "whole number from 1"),
    ({"strategy": "exhaustive", "max_sub_networks": 5}, "has 6 sub-networks.*beam"),
    ({"metric": "acuracy"}, "did you mean 'accuracy'"),
    ({"memory_limit_mb": 0}, "memory_limit_mb is 0"),
    ({"batch_size": 0}, "batch_size is 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_scored(settings: dict[str, object], message: str) -> None:
    model = build(BERT)
    if "max_latency_ms" not in settings:
        model.forward = None  # nothing may run
    with pytest.raises(LayerDropError, match=message) as caught:
        search(model, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (examples(31), "31 examples, fewer than a batch of 32"),
        ([], "fewer than a batch"),
        ([(1, 2)] * 40, "holds a tuple"),
        (DataLoader(examples(7), batch_size=8), "7 examples, fewer than a batch of 8"),
        (DataLoader(examples(16), batch_size=8, shuffle=True), "shuffle=False"),
        ({"a": examples(40), "b": examples(40)}, "several sets"),
    ],
)
def test_data_that_does_not_do_is_refused(data: object, message: str) -> None:
    model = build(BERT)
    model.forward = None
    with pytest.raises(TaskError, match=message):
        search_layers(model, data, depth=2, progress=False)


@pytest.mark.parametrize("strategy", ["block_influence", "activation_norm", "angular_distance"])
def test_data_of_padding_alone_tells_nothing_of_a_layer(strategy: str) -> None:
    data = [{**batch, "attention_mask": torch.zeros_like(batch["input_ids"])} for batch in labelled()]
    with pytest.raises(TaskError, match="the encoder was given padding alone"):
        search(build(BERT), data, strategy=strategy)


def test_no_data_at_all() -> None:
    with pytest.raises(TaskError, match="no dataset"):
        search_layers(build(BERT), depth=2)
    with pytest.raises(TaskError, match="needs a dataset"):
        search_layers(build(BERT), depth=2, evaluate=lambda model: 1.0, strategy="block_influence", progress=False)


@pytest.mark.parametrize(
    ("value", "metric", "message"),
    [
        (float("nan"), None, "is nan, which cannot be compared"),
        ({"bleu": float("inf")}, "bleu", "is inf"),
        ({"bleu": 1.0}, "rouge", "gives no 'rouge': it gives bleu"),
        ({"bleu": 1.0, "rouge": 1.0}, None, "name the one"),
        ({}, "bleu", "it gives nothing"),
        ("good", None, "has to return a number"),
        (None, None, "has to return a number"),
    ],
)
def test_an_evaluate_function_that_gives_no_score_is_found_on_the_whole_model(
    value: object, metric: str | None, message: str
) -> None:
    calls = []

    def evaluate(_):
        calls.append(1)
        return value

    with pytest.raises(TaskError, match=message):
        search(build(BERT), evaluate=evaluate, metric=metric, test_dataset=None)
    assert len(calls) == 1


def test_exhaustive_searches_have_a_stated_limit() -> None:
    model = build(BERT, num_hidden_layers=20, hidden_size=4, intermediate_size=4)
    with pytest.raises(LayerDropConfigError, match=r"184,756 sub-networks, more than the 20,000.*beam"):
        search(model, depth=10, strategy="exhaustive")
