"""LayerDropConfig: what it accepts, what it refuses and how it says so, and JSON in and out."""

import copy
import dataclasses
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop import LayerDropConfig
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.schedules import SHAPES

RATES = st.floats(0, 1)
INDICES = st.lists(st.integers(-3, 3), max_size=3)
CONFIGS = st.one_of(
    st.builds(
        LayerDropConfig,
        st.one_of(
            RATES,
            st.lists(RATES, min_size=1, max_size=6),
            st.dictionaries(st.sampled_from(["encoder", "decoder"]), RATES),
        ),
        seed=st.one_of(st.none(), st.integers(0, 2**63 - 1)),
        never_drop=st.one_of(INDICES, st.dictionaries(st.sampled_from(["encoder", "decoder"]), INDICES)),
    ),
    st.builds(LayerDropConfig, RATES, shape=st.sampled_from(sorted(SHAPES))),
    st.builds(LayerDropConfig, st.floats(0, 0.5), sampler=st.just("depth")),
)


@given(config=CONFIGS)
def test_json_and_back_gives_an_equal_config(config):
    again = LayerDropConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()


def test_a_config_is_frozen_and_all_settings_count():
    config = LayerDropConfig(0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rate = 0.3
    others = [
        LayerDropConfig(0.3),
        LayerDropConfig(0.2, shape="linear"),
        LayerDropConfig(0.2, seed=1),
        LayerDropConfig(0.2, never_drop=(0,)),
        LayerDropConfig(0.2, sampler="depth"),
    ]
    assert all(config != other and config.to_dict() != other.to_dict() for other in others)
    assert config == LayerDropConfig(rate=0.2)


def test_rates_by_stack_are_frozen_too_and_a_config_has_a_hash():
    config = LayerDropConfig({"encoder": 0.1}, never_drop={"encoder": [0]})
    changes = (lambda d: d.update(encoder=1), lambda d: d.__setitem__("encoder", 1), lambda d: d.pop("encoder"))
    for change, entries in itertools.product(changes, (config.rate, config.never_drop)):
        with pytest.raises(TypeError, match="frozen record"):
            change(entries)
    read = LayerDropConfig.from_dict(config.to_dict())
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), read):
        assert again == config
        assert hash(again) == hash(config)
    assert type(config.to_dict()["rate"]) is dict
    assert config.rate == {"encoder": 0.1}


@pytest.mark.parametrize("values", [None, 0.2, [("rate", 0.2)], "rate"])
def test_what_is_no_dict_of_settings_is_refused(values):
    with pytest.raises(LayerDropConfigError, match="give one, such as"):
        LayerDropConfig.from_dict(values)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": -0.1}, ["-0.1", "from 0"]),
        ({"rate": 1.01}, ["1.01", "from 0"]),
        ({"rate": 10**400}, ["1000", "from 0"]),
        ({"rate": math.nan}, ["nan"]),
        ({"rate": math.inf}, ["inf"]),
        ({"rate": "0.2"}, ["'0.2'", "number"]),
        ({"rate": "lots"}, ["'lots'", "number"]),
        ({"rate": True}, ["True", "number"]),
        ({"rate": None}, ["None", "number"]),
        ({"rate": []}, ["rate is empty"]),
        ({"rate": [0.1, 2]}, ["rate is 2"]),
        ({"rate": [0.1, math.nan]}, ["nan"]),
        ({"rate": {"encoder": 1.5}}, ["rate of the encoder", "1.5"]),
        ({"rate": {0: 0.5}}, ["stack names", "0"]),
        ({"rate": 0.2, "shape": "lineer"}, ["'lineer'", "'uniform'", "'linear'", "'exponential'"]),
        ({"rate": [0.1, 0.2], "shape": "linear"}, ["linear", "single number"]),
        ({"rate": {"encoder": [0.1, 0.2]}, "shape": "linear"}, ["linear", "single number"]),
        ({"rate": 0.2, "sampler": "coin"}, ["'coin'", "'bernoulli'", "'depth'"]),
        ({"rate": 0.6, "sampler": "depth"}, ["0.6", "0 to 0.5"]),
        ({"rate": [0.2, 0.2], "sampler": "depth"}, ["depth", "single number"]),
        ({"rate": 0.2, "sampler": "depth", "shape": "linear"}, ["linear", "depth"]),
        ({"rate": 0.2, "structure": "heads"}, ["'heads'", "'layer'", "did you mean 'head'?"]),
        ({"rate": 0.2, "structure": ("layer", "mlp")}, ["'mlp'", "'attention'", "did you mean 'ffn'?"]),
        ({"rate": 0.2, "structure": ("layer", "embedding")}, ["'embedding'", "several of them."]),
        ({"rate": 0.2, "structure": ()}, ["()", "('head', 'layer')"]),
        ({"rate": 0.2, "structure": ("head", "head")}, ["each once"]),
        ({"rate": 0.2, "structure": None}, ["None", "layer, attention, ffn, head"]),
        ({"rate": 0.2, "structure": ["head", "layer"], "sampler": "depth"}, ["sampler='depth'", "'bernoulli'"]),
        ({"rate": 0.2, "structure": "ffn", "sampler": "learned"}, ["'ffn'", "sampler='learned'", "structure='layer'"]),
        ({"rate": 0.2, "execution": "maybe"}, ["'maybe'", "'skip'"]),
        ({"rate": 0.2, "seed": 1.5}, ["1.5", "whole number"]),
        ({"rate": 0.2, "seed": True}, ["True", "whole number"]),
        ({"rate": 0.2, "seed": 2**63}, ["from 0 to 2**63 - 1"]),
        ({"rate": 0.2, "seed": -1}, ["-1", "from 0 to 2**63 - 1"]),
        ({"rate": 0.2, "seed": -(2**63)}, ["from 0"]),
        ({"rate": 0.2, "never_drop": "first"}, ["'first'", "indices"]),
        ({"rate": 0.2, "never_drop": [0.5]}, ["0.5", "whole numbers"]),
        ({"rate": 0.2, "never_drop": [True]}, ["True", "whole numbers"]),
        ({"rate": 0.2, "never_drop": {0: [1]}}, ["stack names"]),
        ({"rates": 0.2}, ["'rates'", "rate"]),
    ],
)
def test_bad_settings_are_refused_in_one_sentence_from_python_and_from_json(settings, said):
    with pytest.raises(LayerDropConfigError) as error:
        LayerDropConfig.from_dict(settings)
    message = str(error.value)
    assert all(part in message for part in said), message
    assert "\n" not in message
    assert isinstance(error.value, ValueError)
    if "rates" not in settings:
        with pytest.raises(LayerDropConfigError) as from_python:
            LayerDropConfig(**settings)
        assert str(from_python.value) == message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": [0.1, 0.2, 0.3]}, ["3 values", "4 layers"]),
        ({"rate": {"encoder": [0.1] * 5}}, ["5 values", "4 layers", "encoder"]),
        ({"rate": {"middle": 0.1}}, ["'middle'", "encoder", "decoder"]),
        ({"rate": 0.1, "never_drop": {"middle": [0]}}, ["'middle'", "encoder", "decoder"]),
        ({"rate": 0.1, "never_drop": [4]}, ["layer 4", "4 layers", "0 to 3"]),
        ({"rate": 0.1, "never_drop": [-5]}, ["layer -5", "4 layers"]),
    ],
)
def test_settings_that_do_not_fit_a_model_are_refused_when_they_meet_it(settings, said):
    with pytest.raises(LayerDropConfigError) as error:
        LayerDropConfig(**settings).rates_for({"encoder": 4, "decoder": 4})
    assert all(part in str(error.value) for part in said), str(error.value)


def test_rates_are_spread_over_stacks_and_protected_layers_get_0():
    depths = {"encoder": 3, "decoder": 5}
    assert LayerDropConfig(0.2).rates_for(depths) == {"encoder": (0.2,) * 3, "decoder": (0.2,) * 5}
    by_stack = LayerDropConfig({"decoder": 0.4}, shape="linear", never_drop={"decoder": (-1,)}).rates_for(depths)
    assert by_stack["encoder"] == (0, 0, 0)
    assert by_stack["decoder"] == pytest.approx((0, 0.1, 0.2, 0.3, 0))
    mixed = LayerDropConfig({"encoder": (0, 1, 0), "decoder": 0.5}, never_drop=1).rates_for(depths)
    assert mixed == {"encoder": (0, 0, 0), "decoder": (0.5, 0, 0.5, 0.5, 0.5)}


def test_numbers_of_other_libraries_are_numbers():
    assert LayerDropConfig(np.float32(0.5)) == LayerDropConfig(0.5)
    assert LayerDropConfig([1, 0]).rate == (1.0, 0.0)
    json.dumps(LayerDropConfig(np.float64(0.5)).to_dict())


@given(of=st.integers(1, 48), data=st.data())
def test_for_depth_solves_for_the_papers_rate(of, data):
    depth = data.draw(st.integers(1, of))
    config = LayerDropConfig.for_depth(depth, of=of)
    assert config.rate == pytest.approx(1 - depth / of)
    assert config.mean_rate == pytest.approx(1 - depth / of)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize(("depth", "of"), [(12, 12), (9, 12), (11, 16), (3, 4)])
def test_for_depth_uses_that_depth_on_average_with_every_shape(shape, depth, of):
    config = LayerDropConfig.for_depth(depth, of=of, shape=shape, seed=5)
    rates = config.rates_for({"encoder": of})["encoder"]
    assert of - sum(rates) == pytest.approx(depth)
    assert config.seed == 5
    assert config.mean_rate == pytest.approx(1 - depth / of)
    assert shape == "alternating" or list(rates) == sorted(rates)
    assert (rates[0] == 0) == (shape != "uniform" or depth == of)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 0, "of": 12}, ["depth is 0", "from 1 to"]),
        ({"depth": 13, "of": 12}, ["depth is 13", "from 1 to"]),
        ({"depth": 3, "of": 12, "shape": "linear"}, ["linear", "0.75", "uniform"]),
        ({"depth": 5, "of": 12, "shape": "exponential"}, ["exponential", "uniform"]),
        ({"depth": 6, "of": 12, "shape": "round"}, ["'round'", "'uniform'"]),
    ],
)
def test_for_depth_refuses_what_no_rate_can_give(arguments, said):
    with pytest.raises(LayerDropConfigError) as error:
        LayerDropConfig.for_depth(**arguments)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_mean_rate_is_the_mean_over_layers_and_stacks():
    assert LayerDropConfig(0.2).mean_rate == 0.2
    assert LayerDropConfig(0.2, shape="linear").mean_rate == pytest.approx(0.1)
    assert LayerDropConfig((0, 0.5)).mean_rate == 0.25
    assert LayerDropConfig({"encoder": 0.2, "decoder": (0, 0.2)}).mean_rate == pytest.approx(0.15)
    assert LayerDropConfig({}).mean_rate == 0
    many = LayerDropConfig(1.0, shape="exponential")
    rates = many.rates_for({"encoder": 5000})["encoder"]
    assert many.mean_rate == pytest.approx(sum(rates) / len(rates), abs=1e-3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.3, LayerDropConfig(0.3)),
        ([0.3, 0.2], LayerDropConfig((0.3, 0.2))),
        ({"encoder": 0.3}, LayerDropConfig({"encoder": 0.3})),
        ({"rate": 0.3, "seed": 4}, LayerDropConfig(0.3, seed=4)),
        (LayerDropConfig(0.3, seed=4), LayerDropConfig(0.3, seed=4)),
    ],
)
def test_a_rate_a_dict_and_a_config_are_all_read(value, expected):
    assert LayerDropConfig.of(value) == expected


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_numbers_and_arrays_of_numpy_and_torch_are_taken_as_pythons_own(array):
    assert LayerDropConfig(array(0.5), seed=array(3), never_drop=array([0, -1])) == LayerDropConfig(
        0.5, seed=3, never_drop=(0, -1)
    )
    assert LayerDropConfig(array([0.25, 0.5])) == LayerDropConfig([0.25, 0.5])
    assert LayerDropConfig({"encoder": array([0.25, 0.5]), "decoder": array(0.5)}) == LayerDropConfig(
        {"encoder": [0.25, 0.5], "decoder": 0.5}
    )
    assert LayerDropConfig(array(0.5), shape="linear").rates_for({"layers": 3}) == {"layers": (0.0, 0.25, 0.5)}
    assert LayerDropConfig.for_depth(array(3), of=array(4)) == LayerDropConfig.for_depth(3, of=4)
    json.dumps(LayerDropConfig(array(0.5), never_drop=array([0])).to_dict())


def test_layers_that_are_never_dropped_may_be_a_set():
    assert LayerDropConfig(0.5, never_drop={2, 0, -1}) == LayerDropConfig(0.5, never_drop=(-1, 0, 2))
    with pytest.raises(LayerDropConfigError, match=r"rate is \{0.5\}"):
        LayerDropConfig({0.5})  # type: ignore[arg-type]  # a set has no order


@pytest.mark.parametrize("wrong", [np.array([[0.5]]), np.array(["a"]), np.array([]), np.array(True), np.array(1 + 2j)])
def test_arrays_that_are_no_rates(wrong):
    with pytest.raises(LayerDropConfigError, match=r"rate is|give one number"):
        LayerDropConfig(wrong)
