"""The beam: as good as all sets where it is wide, cheaper where it is not; and its swaps at the end."""

from __future__ import annotations

import pytest
import torch

from conftest import build, recorded_runs
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.search.strategies import beam
from searching import BERT, labelled, search


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
    # The winner, five runner-ups and the whole model on the other data: they share their common prefixes.
    tested = len(runs["encoder"]) - found.layer_forwards - found.extra_layer_forwards
    assert layers <= tested <= layers + 6 * keep
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
