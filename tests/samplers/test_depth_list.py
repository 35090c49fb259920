"""A list of depths to train: which masks are drawn, how often, and what config, model and checkpoint make of it."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import DEPTH, assert_same_tensors, batch_for, build, output_of
from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    prune_layers,
    scale_rates,
    set_rates,
    set_step,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.samplers.depth_list import draws_of, rates_of
from hf_layerdrop.samplers.keep_layers import evenly_spread

BART = "BartForConditionalGeneration"


def masks(model, steps, stack="encoder"):
    drawn = []
    for step in range(steps):
        set_step(model, step)
        drawn.append(layerdrop_state(model).draws[stack].draw())
    return drawn


@given(depth=st.integers(1, 24), data=st.data())
def test_each_depth_keeps_its_evenly_spread_set_and_what_is_never_dropped(depth, data):
    sizes = data.draw(st.lists(st.integers(1, depth), min_size=1, max_size=4, unique=True))
    kept = data.draw(st.frozensets(st.integers(0, depth - 1), max_size=2))
    draws = draws_of(tuple(sizes), "layers", depth, kept)
    assert sum(share for _, share in draws) == pytest.approx(1)
    for size, (mask, _) in zip(sizes, draws, strict=True):
        assert {layer for layer, runs in enumerate(mask) if runs} == {*evenly_spread(size, depth), *kept}
    mean = sum(rates_of(draws)) / depth
    assert mean == pytest.approx(sum(mask.count(False) * share for mask, share in draws) / depth)


def test_depths_are_drawn_as_often_as_their_weights_say():
    model = build("BertModel")
    inject_layerdrop(model, LayerDropConfig.for_depths({4: 2, 2: 1, 1: 1}, seed=3))
    found = Counter(sum(mask) for mask in masks(model, 4000))
    assert {depth: count / 4000 for depth, count in found.items()} == pytest.approx(
        {4: 0.5, 2: 0.25, 1: 0.25}, abs=0.03
    )
    assert layerdrop_state(model).draws["encoder"].mean_rate == pytest.approx(0.25 * 0.5 + 0.25 * 0.75)


def test_no_other_depth_is_drawn_and_a_step_is_that_of_the_cut_model():
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, LayerDropConfig.for_depths([3, 2], seed=1))
    batch = batch_for("BertForSequenceClassification")
    kinds = set(masks(model, 40))
    assert kinds == {tuple(layer in evenly_spread(depth, DEPTH) for layer in range(DEPTH)) for depth in (3, 2)}
    for depth in (3, 2):
        step = next(step for step, mask in enumerate(masks(model, 40)) if sum(mask) == depth)
        cut = prune_layers(copy.deepcopy(model), depth)
        set_step(model, step)
        assert torch.equal(output_of(model.train(), batch), output_of(cut.train(), batch))


def test_the_stacks_of_an_encoder_decoder_go_to_one_place_of_their_lists_together():
    model = build(BART)
    inject_layerdrop(model, LayerDropConfig.for_depths({"encoder": [4, 2], "decoder": [3, 1]}))
    pairs = set(zip(map(sum, masks(model, 60)), map(sum, masks(model, 60, "decoder")), strict=True))
    assert pairs == {(4, 3), (2, 1)}
    inject_layerdrop(model, LayerDropConfig.for_depths([4, 2]))
    assert set(zip(masks(model, 60), masks(model, 60, "decoder"), strict=True)) == {
        ((True,) * 4,) * 2,
        ((True, False, False, True),) * 2,
    }
    inject_layerdrop(model, LayerDropConfig.for_depths({"decoder": [3, 1]}))
    assert set(masks(model, 20)) == {(True,) * 4}


def test_a_schedule_draws_the_list_less_often_and_the_whole_model_in_its_place():
    model = build("BertModel")
    inject_layerdrop(model, LayerDropConfig.for_depths([2], seed=2))
    assert set(map(sum, masks(model, 50))) == {2}
    scale_rates(model, 0.25)
    found = Counter(sum(mask) for mask in masks(model, 4000))
    assert found[2] / 4000 == pytest.approx(0.25, abs=0.03)
    assert found[2] + found[4] == 4000
    scale_rates(model, 0.0)
    assert layerdrop_state(model).rates == {"encoder": [0.0] * DEPTH}


def test_set_rates_switches_a_list_off_and_on_and_takes_nothing_else():
    model = build(BART)
    inject_layerdrop(model, LayerDropConfig.for_depths([4, 2], seed=2))
    before, rates = masks(model, 20), layerdrop_state(model).rates
    set_rates(model, 0.0)
    assert set(masks(model, 20)) == {(True,) * 4}
    set_rates(model, rates)
    assert masks(model, 20) == before
    for wrong in (0.3, {"encoder": 0.0}, {"encoder": 0.0, "decoder": rates["decoder"]}):
        with pytest.raises(LayerDropConfigError, match="trains the depths 4, 2, from which its rates follow"):
            set_rates(model, wrong)
    assert masks(model, 20) == before


def test_ranks_and_saved_states_tell_lists_of_the_same_rates_apart():
    one, other, alike = (build("BertModel") for _ in range(3))
    inject_layerdrop(one, LayerDropConfig.for_depths([4, 2]))
    inject_layerdrop(other, LayerDropConfig.for_depths([2, 4]))
    inject_layerdrop(alike, LayerDropConfig.for_depths([4, 2]))
    prints = [layerdrop_state(model).draws["encoder"].fingerprint for model in (one, other, alike)]
    assert prints[0] != prints[1]
    assert prints[0] == prints[2]
    state = layerdrop_state(one).state_dict()
    layerdrop_state(alike).load_state_dict(state)
    with pytest.raises(LayerDropStateError, match="depth of 4, 2, but this model by depth of 2, 4"):
        layerdrop_state(other).load_state_dict(state)
    inject_layerdrop(other, 0.3)
    with pytest.raises(LayerDropStateError, match="but this model by bernoulli"):
        layerdrop_state(other).load_state_dict(state)


def test_a_dict_with_depths_needs_no_rate():
    assert LayerDropConfig.of({"depths": [4, 2], "sampler": "depth"}) == LayerDropConfig.for_depths([4, 2])


@pytest.mark.parametrize("depths", [[4, 2], {4: 3, 1: 1}, {"encoder": [4, 2], "decoder": [2, 1]}])
def test_json_and_back(depths):
    config = LayerDropConfig.for_depths(depths, seed=1, never_drop=(-1,))
    again = LayerDropConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    stacks = {"encoder": 4, "decoder": 2} if "encoder" in depths else {"layers": 4}
    assert again.rates_for(stacks) == config.rates_for(stacks)


def test_a_saved_model_goes_on_with_its_list(tmp_path):
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, LayerDropConfig.for_depths({2: 3, 4: 1}, seed=7))
    model.save_pretrained(tmp_path)
    again = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path)
    assert masks(again, 40) == masks(model, 40)
    assert_same_tensors(model.state_dict(), again.state_dict())
    cut = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path, keep_layers=2)
    assert not layerdrop_state(cut).drops


def test_numpy_counts_are_depths():
    assert LayerDropConfig.for_depths(np.array([4, 2])) == LayerDropConfig.for_depths([4, 2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depths": [4, 2]}, "sampler='depth'"),
        ({"depths": [4, 2], "sampler": "depth", "rate": 0.2}, "the rate follows"),
        ({"depths": [], "sampler": "depth"}, "is empty"),
        ({"depths": {}, "sampler": "depth"}, "is empty"),
        ({"depths": "4,2", "sampler": "depth"}, "list some"),
        ({"depths": 4, "sampler": "depth"}, "list some"),
        ({"depths": [4, 0], "sampler": "depth"}, "holds 0"),
        ({"depths": [4, 2.5], "sampler": "depth"}, "holds 2.5"),
        ({"depths": [4, True], "sampler": "depth"}, "holds True"),
        ({"depths": [4, 2, 2], "sampler": "depth"}, "names 2 twice"),
        ({"depths": {4: 1, "4": 2}, "sampler": "depth"}, "names 4 twice"),
        ({"depths": {4: 0}, "sampler": "depth"}, "weight 0"),
        ({"depths": {4: "a"}, "sampler": "depth"}, "weight 'a'"),
        ({"depths": {"encoder": [4, 2], "decoder": [2]}, "sampler": "depth"}, "2 of the encoder and 1 of the decoder"),
    ],
)
def test_lists_that_are_none(arguments, said):
    with pytest.raises(LayerDropConfigError, match=said):
        LayerDropConfig(**arguments)


@pytest.mark.parametrize(
    ("depths", "said"),
    [([6, 2], "names 6, but the encoder has 4 layers"), ({"middle": [4]}, "the stack 'middle'; the model has encoder")],
)
def test_lists_that_do_not_fit_the_model_are_refused_before_anything_is_changed(depths, said):
    model = build("BertModel")
    with pytest.raises(LayerDropConfigError, match=said):
        inject_layerdrop(model, LayerDropConfig.for_depths(depths))
    with pytest.raises(Exception, match="not injected"):
        layerdrop_state(model)
