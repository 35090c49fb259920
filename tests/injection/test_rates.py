"""Rates may change while a model trains."""

import pytest
import torch

from conftest import (
    CUT,
    batch_for,
    build,
    drawn,
    gradients_of,
    injected,
    keep_all_stacks,
    layers_of,
    loss_of,
)
from hf_layerdrop import (
    LayerDropConfig,
    inject_layerdrop,
    layerdrop_state,
    set_rates,
    set_step,
)
from hf_layerdrop.errors import LayerDropConfigError
from hf_layerdrop.injection.rates import scale_rates


def test_set_rates_changes_the_next_forward_and_is_written_down(head):
    model, batch = injected(head), batch_for(head)
    set_rates(model, CUT)
    assert drawn(model, batch) == [keep_all_stacks(model, [0, 2])]
    assert model.config.hf_layerdrop["rates"] == {name: list(CUT) for name in layers_of(model)}
    assert model.config.hf_layerdrop["trained_with"]["rate"] == 0.5
    set_rates(model, 0)
    assert drawn(model, batch) == [keep_all_stacks(model, [0, 1, 2, 3])]
    before = layerdrop_state(model).state_dict()
    for bad in (1.5, (0.5, 0.5), {"middle": 0.1}, float("nan")):
        with pytest.raises(LayerDropConfigError):
            set_rates(model, bad)
    assert layerdrop_state(model).state_dict() == before


def test_rates_that_change_between_two_micro_steps_hold_from_the_second_one_on(head):
    model, batches = injected(head, 0.0), [batch_for(head, seed) for seed in range(2)]
    expected = []
    for rates, batch in zip((0.0, (0, 1, 0, 1)), batches, strict=True):
        set_rates(model, rates)
        expected.append(gradients_of(model.train(), loss_of(model, batch)))
    set_rates(model, 0.0)
    model.zero_grad(set_to_none=True)
    for micro_step, batch in enumerate(batches):
        set_step(model, 0, micro_step)
        loss_of(model, batch).backward()
        set_rates(model, (0, 1, 0, 1))
    for name, weight in model.named_parameters():
        parts = [gradients[name] for gradients in expected if gradients[name] is not None]
        assert (weight.grad is None) == (not parts)
        assert not parts or torch.allclose(weight.grad, sum(parts), atol=1e-5)


def test_set_rates_keeps_the_shape_the_protected_layers_and_the_stacks_it_does_not_name():
    model = build("BartModel")
    inject_layerdrop(model, LayerDropConfig(0.3, shape="linear", never_drop=(-1,)))
    set_rates(model, 0.6)
    assert layerdrop_state(model).rates["encoder"] == pytest.approx([0, 0.2, 0.4, 0])
    set_rates(model, {"encoder": (0.5, 0.5, 0.5, 0.5)})
    assert layerdrop_state(model).rates["encoder"] == [0.5, 0.5, 0.5, 0]
    assert layerdrop_state(model).rates["decoder"] == pytest.approx([0, 0.2, 0.4, 0])


def test_scale_rates_multiplies_the_configured_rates():
    model = injected("BartModel", {"encoder": 0.4, "decoder": (0, 0.2, 0.4, 1)})
    scale_rates(model, 0.5)
    assert layerdrop_state(model).rates == {"encoder": [0.2] * 4, "decoder": [0, 0.1, 0.2, 0.5]}
    scale_rates(model, 1)
    assert layerdrop_state(model).rates == {"encoder": [0.4] * 4, "decoder": [0, 0.2, 0.4, 1]}
    for factor in (1.5, -0.1, float("nan")):
        with pytest.raises(LayerDropConfigError, match="from 0 to 1"):
            scale_rates(model, factor)


def test_the_depth_sampler_runs_evenly_spread_sets_alone(head):
    masks = drawn(injected(head, 0.4, sampler="depth"), batch_for(head), 40)
    found = {tuple(runs) for mask in masks for runs in mask.values()}
    assert found == {(3,), (0, 3), (0, 1, 3), (0, 1, 2, 3)}


def test_protected_layers_always_run(head):
    masks = drawn(injected(head, 1.0, never_drop=(1,)), batch_for(head), 2)
    assert {tuple(runs) for mask in masks for runs in mask.values()} == {(1,)}
