"""Where weights land: kept layers straight on the device, device maps, 8 bits; cuts and evaluation there."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from conftest import assert_same_tensors, batch_for, build, cut_by_hand, output_of
from hf_layerdrop import (
    AutoLayerDropModelForCausalLM,
    AutoLayerDropModelForSequenceClassification,
    evaluate_depths,
    prune_layers,
    shared_sub_network,
)
from on_device import device, needs_device  # noqa: F401

pytestmark = needs_device
BERT = "BertForSequenceClassification"


@pytest.fixture
def folder(tmp_path):
    build(BERT).save_pretrained(tmp_path)
    return str(tmp_path)


def on(device, batch):
    return {name: value.to(device) for name, value in batch.items()}


@pytest.mark.parametrize("how", ["auto", "device", "by name"])
def test_kept_layers_are_loaded_straight_to_the_device(how, device, folder):
    places = {"auto": "auto", "device": device, "by name": {"": str(device)}}
    found = AutoLayerDropModelForSequenceClassification.from_pretrained(
        folder, keep_layers=[0, 3], device_map=places[how]
    )
    expected = cut_by_hand(build(BERT), {"encoder": [0, 3]})
    assert {weight.device.type for weight in found.parameters()} == {device.type}
    assert_same_tensors({n: w.cpu() for n, w in found.state_dict().items()}, expected.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kept_layers_have_the_dtype_that_was_asked_for(dtype, device, folder):
    found = AutoLayerDropModelForSequenceClassification.from_pretrained(
        folder, keep_layers=2, dtype=dtype, device_map=device
    )
    assert {weight.dtype for weight in found.parameters()} == {dtype}
    assert torch.isfinite(output_of(found, on(device, batch_for(BERT)))).all()


def test_a_cut_in_memory_stays_on_the_device(device):
    model = prune_layers(build(BERT).to(device), [1, 2])
    expected = cut_by_hand(build(BERT), {"encoder": [1, 2]}).to(device)
    batch = on(device, batch_for(BERT))
    assert torch.equal(output_of(model, batch), output_of(expected, batch))


def test_depths_are_evaluated_on_the_device(device):
    batch = {**on(device, batch_for(BERT)), "labels": torch.tensor([0, 1, 1], device=device)}
    found = evaluate_depths(build(BERT).to(device), [batch], depths=[4, 2, 1])
    batch = {name: value.cpu() for name, value in batch.items()}
    expected = evaluate_depths(build(BERT), [batch], depths=[4, 2, 1])
    for one, other in zip(found, expected, strict=True):
        assert one.keep_layers == other.keep_layers
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)


def test_eight_bits_are_cut_too(device, folder):
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("8 bits here need a CUDA device and bitsandbytes")
    settings = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": device}
    found = AutoLayerDropModelForSequenceClassification.from_pretrained(folder, keep_layers=[0, 3], **settings)
    cut_by_hand(build(BERT), {"encoder": [0, 3]}).save_pretrained(folder)
    expected = AutoModelForSequenceClassification.from_pretrained(folder, **settings)
    batch = on(device, batch_for(BERT))
    assert torch.allclose(output_of(found, batch), output_of(expected, batch), atol=1e-2)


def test_a_draft_changes_no_token(device, tmp_path):
    build("BartForCausalLM").save_pretrained(tmp_path)
    model = AutoLayerDropModelForCausalLM.from_pretrained(tmp_path, device_map=device).eval()
    tokens = torch.tensor([[5, 6, 7, 8]], device=device)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    plain = model.generate(tokens, **settings)
    drafted = model.generate(tokens, assistant_model=shared_sub_network(model, "first:2"), **settings)
    assert torch.equal(plain, drafted)
