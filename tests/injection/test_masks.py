"""The mask is a pure function of the counter: promise 6 of the design."""

import json
import random

import numpy as np
import pytest
import torch

from conftest import (
    DEPTH,
    batch_for,
    drawn,
    injected,
)
from hf_layerdrop import (
    layerdrop_state,
    set_rates,
    set_step,
)
from hf_layerdrop.errors import LayerDropConfigError
from warm import run_python


def test_equal_counters_draw_equal_masks_and_others_do_not(head):
    batch = batch_for(head)
    expected = drawn(injected(head, seed=1), batch, 8)
    assert drawn(injected(head, seed=1), batch, 8) == expected
    assert drawn(injected(head, seed=2), batch, 8) != expected
    assert len({json.dumps(mask) for mask in expected}) > 4  # forwards of one step differ, as R-Drop and SimCSE need
    model = injected(head, seed=1)
    set_step(model, 1)
    assert drawn(model, batch, 8) != expected
    set_step(model, 0, micro_step=1)
    assert drawn(model, batch, 8) != expected
    set_step(model, 0)
    assert drawn(model, batch, 8) == expected


def test_the_two_stacks_of_bart_draw_apart():
    masks = drawn(injected("BartModel"), batch_for("BartModel"), 8)
    assert [mask["encoder"] for mask in masks] != [mask["decoder"] for mask in masks]


def test_a_sequence_of_draws_has_the_rate_it_was_asked_for():
    model, batch = injected("BertModel", (0.1, 0.9, 0.5, 0.5), seed=4), batch_for("BertModel")
    runs = [layer for mask in drawn(model, batch, 300) for layer in mask["encoder"]]
    np.testing.assert_allclose([runs.count(layer) / 300 for layer in range(DEPTH)], (0.9, 0.1, 0.5, 0.5), atol=0.1)


def test_no_global_random_generator_is_read_or_advanced(head):
    model, batch = injected(head, seed=1), batch_for(head)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = drawn(model, batch, 4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state(), states[2], strict=True))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    set_step(model, 0)
    assert drawn(model, batch, 4) == expected


def test_forwards_without_gradient_and_evaluations_do_not_advance_the_count(head):
    batch = batch_for(head)
    expected = drawn(injected(head), batch, 4)
    model = injected(head)
    for mask in expected:
        with torch.no_grad():
            model.train()(**batch)
            model(**batch)
        model.eval()(**batch)
        assert drawn(model, batch) == [mask]


OTHER_RANK = """
import json
import numpy, random, torch
torch.manual_seed(1); random.seed(1); numpy.random.seed(1)
from conftest import batch_for, build, drawn
from hf_layerdrop import LayerDropConfig, inject_layerdrop
model = build("BartModel")
inject_layerdrop(model, LayerDropConfig(0.5, seed=11))
print(json.dumps(drawn(model, batch_for("BartModel", seed=1), 8)))
"""


def test_every_rank_draws_the_same():
    done = run_python("-c", OTHER_RANK, environments=[{"RANK": "1"}])  # and another seed of hashes
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == drawn(injected("BartModel", seed=11), batch_for("BartModel"), 8)


def test_a_saved_state_continues_the_draws_in_another_process_and_model(head):
    batch = batch_for(head)
    model = injected(head, seed=9)
    set_step(model, 5, micro_step=1)
    set_rates(model, 0.4)
    drawn(model, batch, 3)
    saved = json.loads(json.dumps(layerdrop_state(model).state_dict()))
    expected = drawn(model, batch, 6)
    resumed = injected(head, seed=1)
    assert drawn(resumed, batch, 6) != expected
    layerdrop_state(resumed).load_state_dict(saved)
    assert drawn(resumed, batch, 6) == expected
    assert layerdrop_state(resumed).state_dict() == layerdrop_state(model).state_dict()


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    saved = layerdrop_state(injected("BartModel")).state_dict()
    model = injected("BertModel", seed=3)
    before = layerdrop_state(model).state_dict()
    with pytest.raises(LayerDropConfigError, match="decoder"):
        layerdrop_state(model).load_state_dict(saved)
    assert layerdrop_state(model).state_dict() == before


@pytest.mark.parametrize("missing", ["seed", "rates", "counters"])
def test_a_state_that_lacks_an_entry_is_refused(missing):
    model = injected("BertModel", seed=3)
    before = layerdrop_state(model).state_dict()
    with pytest.raises(LayerDropConfigError, match=f"'{missing}'"):
        layerdrop_state(model).load_state_dict({name: value for name, value in before.items() if name != missing})
    assert layerdrop_state(model).state_dict() == before


@pytest.mark.parametrize(("step", "micro_step"), [(-1, 0), (1.5, 0), (True, 0), ("3", 0), (0, -1), (0, None)])
def test_a_step_that_is_no_step_is_refused(step, micro_step):
    with pytest.raises(LayerDropConfigError, match="whole number, 0 or more"):
        set_step(injected("BertModel"), step, micro_step)
