"""Per-layer outputs keep their length: promise 4 of the design."""

from itertools import pairwise

import pytest
import torch

from conftest import (
    CUT,
    DEPTH,
    batch_for,
    build,
    cut_by_hand,
    keep_all_stacks,
)
from hf_layerdrop import (
    LayerDropConfig,
    inject_layerdrop,
    set_step,
)


def per_layer_outputs(outputs):
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    hidden = {name: outputs[name] for name in names if name in outputs}
    names = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    return hidden, {name: outputs[name] for name in names if name in outputs and outputs[name] is not None}


def lengths(outputs):
    return {name: len(entries) for name, entries in outputs.items()}


@pytest.mark.parametrize("rates", [CUT, (1, 0, 1, 0), (1, 1, 1, 1)])
def test_hidden_states_repeat_the_input_of_a_dropped_layer_and_its_attentions_are_none(any_head, rates):
    model, batch = build(any_head).train(), batch_for(any_head)
    flags = {"output_hidden_states": True, "output_attentions": True, "return_dict": True}
    kept = [layer for layer in range(DEPTH) if not rates[layer]]
    full_hidden, full_attentions = per_layer_outputs(model(**batch, **flags))
    cut = cut_by_hand(model, keep_all_stacks(model, kept)) if kept else None
    cut_hidden, cut_attentions = per_layer_outputs(cut(**batch, **flags)) if cut else (None, None)
    inject_layerdrop(model, rates)
    hidden, attentions = per_layer_outputs(model(**batch, **flags))
    assert lengths(hidden) == lengths(full_hidden)
    assert lengths(attentions) == lengths(full_attentions)
    assert set(lengths(hidden).values()) == {DEPTH + 1}
    assert DEPTH in lengths(attentions).values()
    for name, states in hidden.items():
        repeats = [torch.equal(*pair) for pair in pairwise(states)]
        assert repeats == [rate == 1 for rate in rates], name
        if cut:
            distinct = [states[0], *(states[layer + 1] for layer in kept)]
            assert all(torch.equal(*pair) for pair in zip(distinct, cut_hidden[name], strict=True)), name
    for name, weights in attentions.items():
        if not weights:  # a decoder without encoder states has no cross attentions to record
            continue
        assert [weight is None for weight in weights] == [rate == 1 for rate in rates], name
        if cut:
            ran = [weight for weight in weights if weight is not None]
            assert all(torch.equal(*pair) for pair in zip(ran, cut_attentions[name], strict=True)), name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("structure", ["layer", "attention", "head"])
def test_as_many_attentions_are_returned_as_at_rate_0(any_head, implementation, structure):
    """Of the default attention, which returns no weights, transformers records none: then nor may a dropped layer."""
    model, batch = build(any_head).train(), batch_for(any_head)
    model.set_attn_implementation(implementation)
    flags = {"output_attentions": True, "return_dict": True}
    expected = lengths(per_layer_outputs(model(**batch, **flags))[1])
    assert any(expected.values()) == (implementation == "eager")
    inject_layerdrop(model, LayerDropConfig(0.5, structure=structure, seed=3))
    for step in range(3):
        set_step(model, step)
        assert lengths(per_layer_outputs(model(**batch, **flags))[1]) == expected
