"""The depth sampler: shares that are exact in the mean over its distribution, its sets, and draws written down."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import batch_for, build, output_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, prune_layers, set_step
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from hf_layerdrop.injection.state import LayerDropState
from hf_layerdrop.models.auto import AutoLayerDropModelForSequenceClassification
from hf_layerdrop.samplers.keep_layers import evenly_spread
from hf_layerdrop.samplers.nested import nested_set

CONFIGS = {
    "rate": LayerDropConfig(0.5, sampler="depth", seed=7),
    "nested": LayerDropConfig(0.5, sampler="depth", nested=True, seed=7),
    "list": LayerDropConfig.for_depths([6, 3, 1], seed=7),
    "nested list": LayerDropConfig.for_depths({6: 2, 4: 1, 2: 1}, nested=True, seed=7),
}
# Layers of 6 that run in the first eight steps, by version of the samplers. A change of the present version's changes
# every run of every user who resumes it: give it a new number, and keep the old list here.
GOLDEN = {
    ("rate", 3): "100001 000001 110101 000001 110101 111111 111101 110101",
    ("rate", 2): "100001 100000 110101 100000 110101 111111 111101 110101",
    ("nested", 3): "100001 000001 101101 000001 101101 111111 111101 101101",
    ("list", 3): "101001 111111 101001 000001 101001 111111 111111 101001",
    ("list", 2): "101001 111111 101001 100000 101001 111111 111111 101001",
    ("nested list", 3): "101101 111111 101101 101101 111111 111111 111111 101101",
}


def draw_of(config, depth=6, version=None):
    state = LayerDropState(config, {"encoder": depth})
    if version is not None:
        state.use_sampler_version(version)
    return state, state.draws["encoder"]


def drawn(state, draw, steps):
    masks = []
    for step in range(steps):
        state.begin_step(step)
        masks.append("".join(str(int(runs)) for runs in draw.draw()))
    return masks


@pytest.mark.parametrize(("name", "version"), GOLDEN)
def test_the_draws_of_each_version_are_written_down(name, version):
    assert " ".join(drawn(*draw_of(CONFIGS[name], version=version), 8)) == GOLDEN[name, version]


@given(depth=st.integers(2, 64), rate=st.floats(0, 0.5), nested=st.booleans(), factor=st.floats(0, 1))
def test_the_share_that_is_asked_for_is_dropped_in_the_mean_over_the_distribution(depth, rate, nested, factor):
    state, draw = draw_of(LayerDropConfig(rate, sampler="depth", nested=nested), depth)
    assert draw.mean_rate == pytest.approx(rate, abs=1e-12)
    state.scale_rates(factor)  # as a schedule does
    assert draw.mean_rate == pytest.approx(rate * factor, abs=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 1 / 3, 0.5])
def test_what_is_dropped_in_fact_is_that_share(rate):
    masks = drawn(*draw_of(LayerDropConfig(rate, sampler="depth", seed=1)), 6000)
    assert "".join(masks).count("0") / 6 / 6000 == pytest.approx(rate, abs=0.01)


@given(depth=st.integers(3, 40), data=st.data())
def test_of_what_may_be_dropped_the_share_is_exact_too(depth, data):
    kept = data.draw(st.sets(st.integers(0, depth - 1), max_size=2))
    rate = data.draw(st.floats(0, 0.3))
    try:
        _, draw = draw_of(LayerDropConfig(rate, sampler="depth", never_drop=tuple(kept)), depth)
    except LayerDropConfigError:  # more than any of its depths drops
        return
    assert draw.mean_rate * depth == pytest.approx(rate * (depth - len(kept)), abs=1e-12)


@given(depth=st.integers(1, 24), nested=st.booleans(), data=st.data())
def test_a_list_drops_what_its_weights_say_and_each_layer_as_often_as_its_rate(depth, nested, data):
    sizes = data.draw(st.lists(st.integers(1, depth), min_size=1, max_size=5, unique=True))
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(sizes), max_size=len(sizes)))
    config = LayerDropConfig.for_depths(dict(zip(sizes, weights, strict=True)), nested=nested)
    _, draw = draw_of(config, depth)
    mean = sum(size * weight for size, weight in zip(sizes, weights, strict=True)) / sum(weights)
    assert draw.mean_kept == pytest.approx(mean, abs=1e-9)
    assert depth - sum(config.rates_for({"encoder": depth})["encoder"]) == pytest.approx(mean, abs=1e-9)


def test_a_depth_of_one_is_the_last_layer_and_was_the_first():
    config = LayerDropConfig.for_depths([1])
    assert set(drawn(*draw_of(config), 3)) == {"000001"}
    assert set(drawn(*draw_of(config, version=2), 3)) == {"100000"}
    assert evenly_spread(1, 6) == (5,)


@pytest.mark.parametrize("spec", ["evenly spread", "nested"])
def test_what_is_trained_is_what_is_cut(spec):
    nested = spec == "nested"
    model, batch = (
        build("BertForSequenceClassification", num_hidden_layers=8),
        batch_for("BertForSequenceClassification"),
    )
    inject_layerdrop(model, LayerDropConfig.for_depths([8, 6, 1], nested=nested, seed=1))
    seen = set()
    for step in range(12):
        set_step(model, step)
        depth = sum(layerdrop_state(model).draws["encoder"].draw())
        cut = prune_layers(copy.deepcopy(model), f"nested:{depth}" if nested else depth)
        other = prune_layers(copy.deepcopy(model), f"first:{depth}")
        found = output_of(model.train(), batch)
        assert torch.equal(found, output_of(cut.train(), batch))
        assert depth == 8 or not torch.equal(found, output_of(other.train(), batch))
        seen.add(depth)
    assert seen == {8, 6, 1}
    assert nested_set(6, 8) != evenly_spread(6, 8)


def test_a_saved_state_goes_on_with_the_draws_of_its_version(tmp_path):
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, LayerDropConfig.for_depths([4, 1], seed=3))
    state = layerdrop_state(model)
    state.use_sampler_version(2)
    old = drawn(state, state.draws["encoder"], 20)
    saved = state.state_dict()
    again = copy.deepcopy(model)
    inject_layerdrop(again, LayerDropConfig.for_depths([4, 1], seed=3))
    state = layerdrop_state(again)
    assert drawn(state, state.draws["encoder"], 20) != old
    state.load_state_dict(saved)
    assert drawn(state, state.draws["encoder"], 20) == old
    model.config.hf_layerdrop |= {"sampler_version": 2}
    model.save_pretrained(tmp_path)
    state = layerdrop_state(AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path))
    assert state.sampler_version == 2
    assert drawn(state, state.draws["encoder"], 20) == old


def test_nested_sets_are_saved_shown_and_told_apart(tmp_path):
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, LayerDropConfig.for_depths([4, 3, 2], nested=True, seed=3))
    model.save_pretrained(tmp_path)
    again = AutoLayerDropModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.hf_layerdrop["trained_with"]["nested"] is True
    states = [layerdrop_state(one) for one in (model, again)]
    assert len({tuple(drawn(state, state.draws["encoder"], 20)) for state in states}) == 1
    inject_layerdrop(again, LayerDropConfig.for_depths([4, 3, 2], seed=3))
    with pytest.raises(LayerDropStateError, match="depth of 4, 3, 2, nested"):
        layerdrop_state(again).load_state_dict(states[0].state_dict())


def test_the_first_layer_of_t5_keeps_its_position_bias_where_the_last_alone_is_trained_and_cut():
    import transformers

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 40}
    torch.manual_seed(0)
    model = transformers.T5Model(transformers.T5Config(num_layers=4, num_decoder_layers=4, dropout_rate=0.0, **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    ids = torch.arange(2, 12)[None]
    batch = {"input_ids": ids, "decoder_input_ids": ids}
    cut = prune_layers(copy.deepcopy(model), 1)
    inject_layerdrop(model, LayerDropConfig.for_depths([1]))
    output = model.train()(**batch).last_hidden_state
    assert torch.equal(output, cut.train()(**batch).last_hidden_state)
    output.sum().backward()
    for stack in (model.encoder, model.decoder):
        first, *middle, last = stack.block
        assert first.layer[0].SelfAttention.relative_attention_bias.weight.grad.abs().sum() > 0
        assert first.layer[0].SelfAttention.q.weight.grad is None
        assert all(weight.grad is None for block in middle for weight in block.parameters())
        assert last.layer[0].SelfAttention.q.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("depths", [[4, 1], {4: 1, 3: 2}])
def test_a_depth_that_never_drop_makes_another_is_refused(depths):
    model = build("BertModel")
    with pytest.raises(LayerDropConfigError, match=r"with \[1, 2\] in never_drop it would run"):
        inject_layerdrop(model, LayerDropConfig.for_depths(depths, never_drop=(1, 2)))
    fits = LayerDropConfig.for_depths([4, 2], never_drop=(0, -1))
    assert set(drawn(*draw_of(fits, 4), 9)) == {"1111", "1001"}


@pytest.mark.parametrize(
    ("settings", "said"), [({"nested": True}, "sampler='depth'"), ({"nested": 1}, "True or False")]
)
def test_nested_without_the_depth_sampler_is_refused(settings, said):
    with pytest.raises(LayerDropConfigError, match=said):
        LayerDropConfig(0.2, **settings)


def test_all_depths_of_small_models_are_covered():
    for depth, rate in itertools.product((2, 3, 6, 12), (0.05, 0.1, 0.5)):
        assert draw_of(LayerDropConfig(rate, sampler="depth"), depth)[1].mean_rate == pytest.approx(rate, abs=1e-12)
