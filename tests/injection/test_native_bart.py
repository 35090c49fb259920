"""BART's own LayerDrop is taken over: promise 5 of the design."""

import pytest
import torch

from conftest import (
    DEPTH,
    assert_same_tensors,
    batch_for,
    build,
    gradients_of,
    layers_of,
    output_of,
)
from hf_layerdrop import (
    inject_layerdrop,
    remove_layerdrop,
    set_rates,
)


@pytest.mark.parametrize(
    "bart", ["BartModel", "BartForConditionalGeneration", "BartForSequenceClassification", "BartForCausalLM"]
)
def test_native_layerdrop_is_never_applied_on_top_of_ours(bart):
    model, batch = build(bart, encoder_layerdrop=1.0, decoder_layerdrop=1.0), batch_for(bart)
    expected = output_of(model.eval(), batch)
    assert not torch.allclose(output_of(model.train(), batch), expected, atol=1e-3)
    inject_layerdrop(model, 0.0)
    assert torch.equal(output_of(model.train(), batch), expected)
    written = [getattr(model.config, f"{stack}_layerdrop") for stack in layers_of(model)]
    assert written == [0.0] * len(written)
    remove_layerdrop(model)
    assert (model.config.encoder_layerdrop, model.config.decoder_layerdrop) == (1.0, 1.0)
    assert not torch.allclose(output_of(model.train(), batch), expected, atol=1e-3)


def natively_drawn(seed, rates):
    """Draw as BART's loops do: one number a layer from torch's global generator, the encoder first."""
    torch.manual_seed(seed)
    return {name: [int(torch.rand([]) < rate) for _ in range(DEPTH)] for name, rate in rates.items()}


def test_at_equal_draws_our_training_loss_and_gradients_equal_barts_own():
    rates = {"encoder": 0.5, "decoder": 0.4}
    native = build("BartForConditionalGeneration", encoder_layerdrop=0.5, decoder_layerdrop=0.4).train()
    ours = build("BartForConditionalGeneration", encoder_layerdrop=0.5, decoder_layerdrop=0.4).train()
    inject_layerdrop(ours, rates)
    batch = batch_for("BartForConditionalGeneration")
    batch["labels"] = batch["input_ids"].flip(1)
    losses = set()
    for seed in range(6):
        masks = natively_drawn(seed, rates)
        assert {0, 1} <= {rate for mask in masks.values() for rate in mask}
        set_rates(ours, masks)
        torch.manual_seed(seed)
        loss = native(**batch).loss
        expected = gradients_of(native, loss)
        ours_loss = ours(**batch).loss
        assert torch.equal(ours_loss, loss)
        assert_same_tensors(gradients_of(ours, ours_loss), expected)
        losses.add(loss.item())
    assert len(losses) == 6
