"""The draws: pure functions of their arguments, with the probabilities that they promise."""

import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.injection.state import LayerDropState
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.samplers.draws import (
    bernoulli,
    depth_weights,
    integers,
    most_dropped,
    one_of,
    shallowest_depth,
    thresholds,
    uniforms,
)
from hf_layerdrop.samplers.keep_layers import evenly_spread

COUNTERS = st.tuples(
    st.integers(-(2**63), 2**63 - 1), *[st.integers(0, 2**40)] * 3, st.sampled_from(["encoder", "decoder"])
)

# Layers that run at rate 0.5, seed 7, in two steps of two micro-steps of two forwards. A change of this list changes
# every training run of every user who resumes it: do not regenerate it without saying so in the changelog.
GOLDEN = {
    "encoder": ["00001101", "11001101", "00100111", "10100100", "00101011", "01100000", "00010111", "11001101"],
    "decoder": ["00101001", "00100011", "10000000", "10011101", "10110001", "01101111", "00000111", "00110011"],
}


def masks(config, *, depth=6, steps=1, stack="encoder", forwards=1):
    """Draw without a model, as an injected model would."""
    state = LayerDropState(config, {"encoder": depth, "decoder": depth})
    drawn = []
    for step in range(steps):
        state.begin_step(step)
        for forward in range(forwards):
            state.draws[stack].forward = forward
            drawn.append(state.draws[stack].draw())
    return drawn


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_draws_of_one_seed_are_written_down(stack):
    drawn = [
        "".join(str(int(kept)) for kept in bernoulli([0.5] * 8, uniforms(7, step, micro_step, forward, stack, 8)))
        for step, micro_step, forward in product(range(2), repeat=3)
    ]
    assert drawn == GOLDEN[stack]


@given(counter=COUNTERS, count=st.integers(0, 100))
def test_numbers_lie_in_the_unit_interval_and_depend_on_the_arguments_alone(counter, count):
    numbers = uniforms(*counter, count)
    assert len(numbers) == count
    assert all(0 <= number < 1 for number in numbers)
    assert numbers == uniforms(*counter, count)
    assert numbers == uniforms(*counter, count + 3)[:count]


@given(counter=COUNTERS, place=st.integers(0, 4))
def test_every_part_of_the_counter_counts(counter, place):
    other = list(counter)
    other[place] = {"encoder": "decoder", "decoder": "encoder"}[counter[4]] if place == 4 else counter[place] ^ 1
    assert uniforms(*counter, 4) != uniforms(*other, 4)


def test_no_global_generator_is_read_or_advanced():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = uniforms(0, 1, 2, 3, "encoder", 24)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    assert uniforms(0, 1, 2, 3, "encoder", 24) == first


@given(numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30))
def test_rate_0_keeps_all_and_rate_1_none(numbers):
    assert all(bernoulli([0.0] * len(numbers), numbers))
    assert not any(bernoulli([1.0] * len(numbers), numbers))


@given(
    rates=st.lists(st.floats(0, 1) | st.integers(0, 2**32).map(lambda n: n / 2**32), min_size=1),
    seed=st.integers(0, 99),
)
def test_thresholds_drop_what_the_rates_drop(rates, seed):
    counter = (seed, 0, 0, 0, "encoder", len(rates))
    assert bernoulli(thresholds(rates), integers(*counter)) == bernoulli(rates, uniforms(*counter))
    edges = [number / 2**32 for number in integers(*counter)]  # the smallest number that still keeps
    assert all(bernoulli(thresholds(edges), integers(*counter)))


def test_bernoulli_drops_each_layer_at_its_own_rate_and_on_its_own():
    rates = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)
    drawn = np.array(masks(LayerDropConfig(rates), steps=4000))
    np.testing.assert_allclose(1 - drawn.mean(0), rates, atol=0.03)
    assert set(map(tuple, np.array(masks(LayerDropConfig(0.5), depth=3, steps=400)))) == set(
        product([False, True], repeat=3)
    )
    assert abs(np.corrcoef(drawn[:, 2], drawn[:, 3])[0, 1]) < 0.06


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 0.4, 0.5])
def test_the_depth_sampler_draws_every_evenly_spread_set_from_its_minimum_and_no_other(rate):
    depth = 8
    drawn = masks(LayerDropConfig(rate, sampler="depth"), depth=depth, steps=4000)
    kept = [tuple(layer for layer, runs in enumerate(mask) if runs) for mask in drawn]
    shallowest = shallowest_depth(rate, depth)
    allowed = [evenly_spread(count, depth) for count in range(shallowest, depth + 1)]
    assert set(kept) == set(allowed)
    weights = depth_weights(range(depth), rate * depth)
    for layers in allowed:
        assert kept.count(layers) / len(kept) == pytest.approx(weights[depth - len(layers)], abs=0.04)
    assert 1 - np.mean(drawn) == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_the_first_version_of_the_depth_sampler_draws_as_it_did(rate):
    depth = 8
    state = LayerDropState(LayerDropConfig(rate, sampler="depth"), {"encoder": depth})
    state.use_sampler_version(1)
    shallowest = shallowest_depth(rate, depth, version=1)
    allowed = [evenly_spread(count, depth, alone=0) for count in range(shallowest, depth + 1)]
    for step in range(50):
        state.begin_step(step)
        number = uniforms(0, step, 0, 0, "encoder", 1)[0]
        expected = allowed[int(number * len(allowed))]
        assert state.draws["encoder"].draw() == tuple(layer in expected for layer in range(depth))


def test_where_both_versions_draw_depths_alike_they_draw_the_same():
    state = LayerDropState(LayerDropConfig(0.25, sampler="depth"), {"encoder": 8})
    drawn = []
    for version in (2, 1):
        state.use_sampler_version(version)
        drawn.append([])
        for step in range(200):
            state.begin_step(step)
            drawn[-1].append(state.draws["encoder"].draw())
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 5


@given(rate=st.floats(0, 0.5), depth=st.integers(1, 48))
def test_the_shallowest_depth_of_the_first_version_drops_the_rate_to_within_half_a_layer(rate, depth):
    shallowest = shallowest_depth(rate, depth, version=1)
    assert 1 <= shallowest <= depth
    mean_dropped = 1 - (shallowest + depth) / 2 / depth
    assert mean_dropped == pytest.approx(rate, abs=0.5 / depth + 1e-9)


@given(share=st.floats(0, 1), kept=st.integers(0, 3), depth=st.integers(1, 48))
def test_the_weights_of_depths_add_up_and_drop_what_was_asked_for(share, kept, depth):
    dropped = sorted(max(depth - max(count, kept), 0) for count in range(1, depth + 1))
    target = share * min(most_dropped(dropped), depth / 2)
    weights = depth_weights(dropped, target)
    assert all(weight >= 0 for weight in weights)
    assert sum(weights) == pytest.approx(1)
    assert sum(weight * count for weight, count in zip(weights, dropped, strict=True)) == pytest.approx(target)
    if target <= sum(dropped) / depth:  # as even as the target allows: the deeper the likelier, and all of them likely
        assert weights == sorted(weights, reverse=True)


@given(depth=st.integers(2, 48))
def test_a_rate_of_a_half_is_reached_with_every_depth(depth):
    assert most_dropped(range(depth)) >= depth / 2 - 1e-9


@given(number=st.floats(0, 1, exclude_max=True), count=st.integers(1, 24))
def test_one_of_chooses_one_of_the_masks(number, count):
    choices = [(True,) * (layer + 1) for layer in range(count)]
    assert one_of(choices, number) in choices
    assert {one_of(choices, place / count + 1e-6) for place in range(count)} == set(choices)


@pytest.mark.parametrize("sampler", ["bernoulli", "depth"])
def test_layers_that_are_never_dropped_are_never_dropped(sampler):
    drawn = masks(LayerDropConfig(0.5, sampler=sampler, never_drop=(1, -1)), steps=200)
    assert all(mask[1] and mask[5] for mask in drawn)
    assert not all(mask[2] for mask in drawn)


@pytest.mark.parametrize("sampler", ["bernoulli", "depth"])
def test_seeds_steps_forwards_and_stacks_draw_apart(sampler):
    def sequence(seed=0, stack="encoder", forwards=1):
        return masks(LayerDropConfig(0.5, sampler=sampler, seed=seed), steps=20, stack=stack, forwards=forwards)

    assert sequence() == sequence()
    assert sequence() != sequence(seed=1)
    assert sequence() != sequence(stack="decoder")
    assert len(set(sequence())) > 3
    both = sequence(forwards=2)
    assert both[::2] == sequence()
    assert both[1::2] != sequence()
