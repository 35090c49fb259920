"""Rates over depth and over training time: plain numbers, checked against the published formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.samplers.schedules import (
    SCHEDULES,
    SHAPES,
    alternating,
    exponential,
    linear,
    make_schedule,
    share_kept,
    uniform,
)

PROGRESS = st.floats(0, 1)


@given(rate=st.floats(0, 1), depth=st.integers(1, 60), shape=st.sampled_from(sorted({*SHAPES} - {"alternating"})))
def test_every_shape_gives_one_rate_a_layer_that_never_falls_and_ends_at_the_rate(rate, depth, shape):
    rates = SHAPES[shape](rate, depth)
    assert len(rates) == depth
    assert rates == sorted(rates)
    assert all(0 <= value <= rate * (1 + 1e-12) for value in rates)
    if depth > 1:
        assert rates[-1] == pytest.approx(rate)


def test_shapes_have_the_published_values():
    assert uniform(0.2, 4) == [0.2] * 4
    assert linear(0.6, 4) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert linear(0.6, 2) == exponential(0.6, 2) == [0, 0.6]
    assert exponential(1.0, 3) == pytest.approx([0, math.sqrt(2) - 1, 1])
    assert alternating(0.4, 5) == [0, 0.4, 0, 0.4, 0]
    assert alternating(0.4, 1) == [0]


FALLING = {"falling", "early"}


@given(name=st.sampled_from(sorted({*SCHEDULES} - FALLING)), progress=PROGRESS, later=PROGRESS)
def test_every_schedule_gives_a_factor_that_never_falls(name, progress, later):
    schedule = make_schedule(name)
    first, second = sorted((progress, later))
    assert 0 <= schedule(first) <= schedule(second) <= 1


@given(name=st.sampled_from(sorted(FALLING)), progress=PROGRESS, later=PROGRESS)
def test_schedules_that_fall_never_rise(name, progress, later):
    schedule = make_schedule(name)
    first, second = sorted((progress, later))
    assert 1 >= schedule(first) >= schedule(second) >= 0


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("falling", {}, [1, 0.5, 0]),
        ("early", {}, [1, 0, 0]),
        ("early", {"share": 0.75}, [1, 1, 0]),
        ("early", {"share": 0}, [0, 0, 0]),
        ("late", {}, [0, 1, 1]),
        ("late", {"share": 0.25}, [0, 0, 1]),
        ("late", {"share": 1}, [1, 1, 1]),
        ("constant", {}, [1, 1, 1]),
        ("linear", {}, [0, 0.5, 1]),
        ("linear", {"start": 0.25, "end": 0.75}, [0, 0.5, 1]),
        ("linear", {"start": 0.5}, [0, 0, 1]),
        ("cosine", {}, [0, 0.5, 1]),
        ("cosine", {"end": 0.75}, [0, 0.75, 1]),
        ("cosine", {"start": 0.5}, [0, 0, 1]),
        ("linear", {"start": 0, "end": 0.5}, [0, 1, 1]),
        ("step", {"at": 0}, [1, 1, 1]),
        ("step", {}, [0, 1, 1]),
        ("step", {"at": 0.9}, [0, 0, 1]),
        ("pld", {"theta": 0.5, "gamma": 10}, [0, 0.5 * (1 - math.exp(-5)), 0.5 * (1 - math.exp(-10))]),
    ],
)
def test_schedules_have_the_expected_values_at_the_start_the_middle_and_the_end(name, numbers, expected):
    schedule = make_schedule(name, **numbers)
    assert [schedule(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(expected)


def test_the_cosine_ramp_is_below_the_linear_one_first_and_above_it_later():
    linear_ramp, cosine_ramp = make_schedule("linear"), make_schedule("cosine")
    assert cosine_ramp(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert cosine_ramp(0.25) < linear_ramp(0.25)
    assert cosine_ramp(0.75) > linear_ramp(0.75)


@given(time=st.floats(0, 1e4), theta=PROGRESS, gamma=st.floats(0, 1))
def test_progressive_layer_drop_keeps_the_share_of_deepspeeds_formula(time, theta, gamma):
    assert share_kept(time, theta=theta, gamma=gamma) == pytest.approx((1 - theta) * math.exp(-gamma * time) + theta)


@pytest.mark.parametrize(
    ("name", "numbers", "said"),
    [
        ("lineer", {}, ["'lineer'", "linear", "cosine", "pld"]),
        ("constant", {"at": 0.5}, ["'at'", "no numbers"]),
        ("linear", {"at": 0.5}, ["'at'", "start", "end"]),
        ("linear", {"start": 0.8, "end": 0.2}, ["0.8", "0.2", "less"]),
        ("linear", {"start": 1.0}, ["1.0", "less"]),
        ("step", {"at": 1.5}, ["1.5", "from 0 to 1"]),
        ("step", {"at": math.nan}, ["nan"]),
        ("cosine", {"end": -0.5}, ["-0.5", "from 0 to 1"]),
        ("pld", {"theta": 2}, ["theta=2", "from 0 to 1"]),
        ("pld", {"gamma": -1}, ["gamma=-1", "0 or more"]),
        ("pld", {"gamma": math.inf}, ["gamma=inf"]),
        ("linear", {"end": "0.5"}, ["end='0.5'", "number from 0 to 1"]),
        ("step", {"at": True}, ["at=True"]),
        ("pld", {"gamma": None}, ["gamma=None", "number 0 or more"]),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_sentence(name, numbers, said):
    with pytest.raises(LayerDropConfigError) as error:
        make_schedule(name, **numbers)
    assert all(part in str(error.value) for part in said)
    assert "\n" not in str(error.value)
