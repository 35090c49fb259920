"""What a selection says: scores on other data, the share of sets as good, directions, ties, Figure 5, and its file."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch

from conftest import DEPTH, batch_for, build
from hf_layerdrop.architectures.stacks import depths_of
from hf_layerdrop.errors import (
    OutputExistsError,
)
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.search.average_without_layer import average_without_layer
from hf_layerdrop.search.objective import Objective
from hf_layerdrop.search.overfitting import overfitting_warning
from hf_layerdrop.search.selection import Selection
from searching import BERT, labelled, search


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
