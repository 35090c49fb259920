"""What cannot be searched is refused in a sentence, before anything is scored."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import build
from hf_layerdrop.errors import (
    LayerDropConfigError,
    LayerDropError,
    TaskError,
)
from hf_layerdrop.search.search import search_layers
from searching import BERT, examples, labelled, search


def test_beside_evaluate_a_metric_is_a_name() -> None:
    with pytest.raises(LayerDropConfigError, match="but evaluate gives the numbers: name one"):
        search(build(BERT), evaluate=lambda model: 1.0, metric=lambda prediction: 1.0, depth=2, test_dataset=None)


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
