"""Budgets of parameters, bytes and time are met by the deepest sub-networks that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import DEPTH, build
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.pruning.prune import count_parameters, prune_layers
from hf_layerdrop.search.latency import measure_latency, sized
from hf_layerdrop.search.space import Space
from searching import BART, BERT, labelled, search


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
