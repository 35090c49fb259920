"""Only what plain transformers can rebuild is tried, counted and kept; where that is nothing, it is said why."""

from __future__ import annotations

import copy
import re
import time
from itertools import combinations
from math import comb
from random import Random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Gemma3nTextConfig,
    Qwen3MoeConfig,
)

from architectures.tiny import build_tiny
from hf_layerdrop.architectures import expressible as rebuilding
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import (
    LayerDropConfigError,
    UnsupportedModelError,
)
from hf_layerdrop.pruning import prune as pruning
from hf_layerdrop.pruning.prune import Cutter, count_parameters, prune_layers
from hf_layerdrop.search import scoring
from hf_layerdrop.search.average_without_layer import average_without_layer
from hf_layerdrop.search.scoring import Scorer
from hf_layerdrop.search.space import Space
from hf_layerdrop.search.strategies import STRATEGIES
from searching import search, tokens


def modern_bert() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """Build a model that cannot be cut without its layer 0, and a batch for it."""
    model = AutoModelForMaskedLM.from_config(build_tiny("modernbert").model.config).eval()
    tokens = torch.randint(5, 20, (3, 6))
    return model, [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}]


@pytest.mark.cases(11)
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
    if (strategy, depth) == ("spread", 1):  # the last layer, and no other
        with pytest.raises(UnsupportedModelError, match="has no other set"):
            search(model, data, strategy=strategy, depth=depth, test_dataset=data)
        return
    found = search(model, data, strategy=strategy, depth=depth, test_dataset=data)
    assert len(found.keep_layers[stack]) == depth < layers
    assert found.keep_layers[stack][0] == 0
    assert all(other.keep_layers[stack][0] == 0 for other in found.runner_ups)
    if strategy == "exhaustive":
        assert found.evaluations == comb(layers - 1, depth - 1)
        assert found.share_as_good >= 1 / found.evaluations
    prune_layers(model, found.keep_layers)


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
    model = qwen_moe(8)
    cutter = Cutter(model)
    for depth in (3, 4):
        possible = [kept for kept in combinations(range(8), depth) if cutter.can_cut({"layers": kept})]
        assert possible == alternating(8, depth)
    assert len(built) == 3  # the whole model, and one of each depth
    with pytest.raises(UnsupportedModelError, match=r"layers \[1, 2, 3, 5\]: .* layer 1 otherwise at place 0"):
        cutter.check({"layers": (1, 2, 3, 5)})


def test_the_whole_model_stands_for_no_cut_of_it() -> None:
    model = gemma_3n()
    cutter = Cutter(model)
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


@pytest.mark.cases(16)
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
