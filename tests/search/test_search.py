"""Choosing layers: each strategy gives the set it is named for, and leaves the model alone."""

from __future__ import annotations

import inspect
import json
import math
from itertools import combinations

import pytest
import torch

from conftest import DEPTH, batch_for, build
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.search.selection import Selection
from hf_layerdrop.search.space import Space, parse_depth
from hf_layerdrop.search.strategies import SETTINGS, STRATEGIES, load_strategy
from searching import BART, BERT, half, labelled, search


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


@pytest.mark.cases(23)
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
