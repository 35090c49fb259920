"""What is injected shows in the representations of models and states, and a reload says that it goes on."""

import logging

import pytest
import torch

from conftest import build
from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    prune_layers,
    remove_layerdrop,
    set_step,
)
from hf_layerdrop.models import mixin

CLASSIFIER = "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (LayerDropConfig(0.2), ["layerdrop=(encoder: rate 0.2 of 4 layers)"]),
        (LayerDropConfig(0.2, execution="mask"), ["layerdrop=(encoder: rate 0.2 of 4 layers)"]),
        (LayerDropConfig(0.4, shape="linear"), ["layerdrop=(encoder: mean rate 0.2 of 4 layers)"]),
        (LayerDropConfig(0.25, sampler="depth"), ["(encoder: rate 0.25 of 4 layers, sampler depth)"]),
        (LayerDropConfig.for_depths([4, 2]), ["(encoder: mean rate 0.25 of 4 layers, sampler depth)"]),
        (
            LayerDropConfig(0.2, structure=("layer", "head")),
            ["(encoder: rate 0.2 of 4 layers)", "(encoder/head: rate 0.2 of 4 layers)"],
        ),
    ],
    ids=str,
)
def test_a_model_and_its_state_show_what_is_injected(config, shown):
    model = build("BertModel")
    before = repr(model)
    inject_layerdrop(model, config)
    assert all(text in repr(model) for text in shown)
    set_step(model, 7)
    state = repr(layerdrop_state(model))
    assert all(text.removeprefix("layerdrop=")[1:-1] in state for text in shown)
    assert state.endswith("step 7)")
    remove_layerdrop(model)
    assert repr(model) == before


@pytest.fixture
def untold():
    mixin._say_that_it_drops.cache_clear()
    yield
    mixin._say_that_it_drops.cache_clear()


def warnings_of(caplog, *arguments, **settings):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_layerdrop"):
        AutoLayerDropModelForSequenceClassification.from_pretrained(*arguments, **settings)
    return sum("drops layers again" in record.message for record in caplog.records)


def test_a_reload_says_once_that_training_drops_again(untold, tmp_path, caplog):
    torch.manual_seed(0)
    model = inject_layerdrop(build(CLASSIFIER), 0.2)
    model.save_pretrained(tmp_path / "trained")
    prune_layers(model, 2).save_pretrained(tmp_path / "cut")
    build(CLASSIFIER).save_pretrained(tmp_path / "plain")
    assert warnings_of(caplog, tmp_path / "cut") == warnings_of(caplog, tmp_path / "plain") == 0
    assert warnings_of(caplog, tmp_path / "trained", layerdrop=0) == 0
    assert warnings_of(caplog, tmp_path / "trained", keep_layers=2) == 0
    assert warnings_of(caplog, tmp_path / "trained") == 1
    assert warnings_of(caplog, tmp_path / "trained") == 0
