"""What layers ask is answered once a forward: those that run ask nothing, and outside of a forward nothing is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import DEPTH, batch_for, build, layers_of, loss_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state
from hf_layerdrop.injection.stack_draw import StackDraw
from warm import run_python


@pytest.fixture
def asked(monkeypatch):
    """The layers that ask whether they run."""
    layers, runs = [], StackDraw.runs

    def noted(draw, layer, training=False):
        layers.append(layer)
        return runs(draw, layer, training)

    monkeypatch.setattr(StackDraw, "runs", noted)
    return layers


@pytest.mark.parametrize(("rate", "training"), [(1e-9, True), (0.0, True), (0.5, False)])
def test_layers_that_run_ask_nothing(head, rate, training, asked):
    model = inject_layerdrop(build(head), rate).train(training)
    loss_of(model, batch_for(head)).backward()
    assert asked == []


def test_only_dropped_layers_ask(asked):
    model = inject_layerdrop(build("BertForSequenceClassification"), LayerDropConfig((0, 1, 0, 1))).train()
    loss_of(model, batch_for("BertForSequenceClassification")).backward()
    assert asked == [1, 3]


def test_outside_of_a_forward_a_layer_asks(asked):
    model = inject_layerdrop(build("BertForSequenceClassification"), LayerDropConfig(1e-9)).train()
    model(**batch_for("BertForSequenceClassification"))
    draw = layerdrop_state(model).draws["encoder"]
    assert draw.known == (False,) * DEPTH
    layers_of(model)["encoder"][2](torch.randn(1, 3, 16))
    assert asked == [2]


def test_an_error_in_a_forward_leaves_nothing_known():
    model = inject_layerdrop(build("BertForSequenceClassification"), LayerDropConfig(1e-9)).train()
    hook = layers_of(model)["encoder"][1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch_for("BertForSequenceClassification"))
    hook.remove()
    assert layerdrop_state(model).draws["encoder"].known == (False,) * DEPTH


def test_learned_rates_see_each_layer(asked):
    model = inject_layerdrop(build("BertForSequenceClassification"), LayerDropConfig(0.1, sampler="learned")).train()
    loss_of(model, batch_for("BertForSequenceClassification")).backward()
    assert asked == list(range(DEPTH))


def test_a_layer_goes_through_one_forward_of_its_own():
    plain, injected = build("BertModel"), inject_layerdrop(build("BertModel"), 0.1)
    assert type(injected.encoder.layer[0]).forward is type(plain.encoder.layer[0]).forward


def test_the_benchmark_measures_what_is_added_beside_its_bound():
    done = run_python("-m", "benchmarks", "overhead", "--short", "1", "--json", cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers["added_us"].keys() == {"6", "12"}
    assert all(
        values.keys() == {"train", "dropping", "rate 0", "eval", "draw", "bound"}
        for values in numbers["added_us"].values()
    )
    assert numbers["added_us"]["12"]["bound"] == 43
    assert numbers["added_us"]["12"]["train"] > 0
