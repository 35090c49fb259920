"""Mixed precision, dtypes, and device maps: a dropped layer does nothing there either."""

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from accelerate.hooks import AlignDevicesHook
from accelerate.state import AcceleratorState
from transformers import AutoModelForSequenceClassification, Trainer

from conftest import (
    assert_same_tensors,
    batch_for,
    build,
    gradients_of,
    keep_all_stacks,
    layers_of,
    loss_of,
    recorded_runs,
)
from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    LayerDropConfig,
    inject_layerdrop,
    prune_layers,
    remove_layerdrop,
    set_step,
)
from integrations import ROWS, training_arguments
from structure_models import inputs, new

HEAD = "BertForSequenceClassification"
KEPT = [0, 2]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


MODELS = pytest.mark.parametrize("name", [HEAD, "BartForConditionalGeneration", "LlamaModel"])


def autocast_step(model, name, dtype, seed=0):
    """Return the loss and the gradients of a training step under autocast."""
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(model.train(), inputs(name, seed))
    return loss.detach(), gradients_of(model, loss)


def weights_of_layers(model, layers):
    """Return the names of the weights in these layers of each stack."""
    chosen = {
        id(weight) for stack in layers_of(model).values() for layer in layers for weight in stack[layer].parameters()
    }
    return {name for name, weight in model.named_parameters() if id(weight) in chosen}


@DTYPES
@MODELS
@pytest.mark.parametrize("execution", ["skip", "mask"])
def test_autocast_at_rate_0_is_bit_equal_to_the_untouched_model(name, dtype, execution):
    expected, gradients = autocast_step(new(name), name, dtype)
    model = new(name)
    inject_layerdrop(model, LayerDropConfig(0.0, execution=execution))
    loss, found = autocast_step(model, name, dtype)
    assert torch.equal(loss, expected)
    assert_same_tensors(found, gradients)


@DTYPES
@MODELS
def test_a_layer_dropped_under_autocast_gets_no_gradient_and_the_rest_what_the_cut_model_gets(name, dtype):
    model, cut = new(name), new(name)
    inject_layerdrop(model, LayerDropConfig((0, 1, 0, 1)))
    prune_layers(cut, keep_all_stacks(cut, KEPT))
    loss, found = autocast_step(model, name, dtype)
    of_cut, gradients = autocast_step(cut, name, dtype)
    assert torch.equal(loss, of_cut)
    kept = [gradient for name, gradient in found.items() if name not in weights_of_layers(model, (1, 3))]
    assert_same_tensors(dict(enumerate(kept)), dict(enumerate(gradients.values())))
    assert all(found[name] is None for name in weights_of_layers(model, (1, 3)))
    assert all(found[name] is not None for name in weights_of_layers(model, KEPT))


@DTYPES
@MODELS
def test_masking_under_autocast_computes_what_skipping_does(name, dtype):
    model, expected = new(name), new(name)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1, execution="mask"))
    inject_layerdrop(expected, LayerDropConfig(0.5, seed=1))
    patterns = set()
    for step in range(6):
        (loss, found), (other, gradients) = (autocast_step(each, name, dtype, step) for each in (model, expected))
        assert torch.equal(loss, other)
        dropped = frozenset(name for name, gradient in gradients.items() if gradient is None)
        patterns.add(dropped)
        kept = [{key: each[key] for key in gradients if key not in dropped} for each in (found, gradients)]
        assert_same_tensors(*kept)
        assert not any(found[key].any() for key in dropped if found[key] is not None)
    assert len(patterns) > 2


def test_trainer_in_bf16_trains_what_was_not_dropped(tmp_path):
    model = build(HEAD)
    inject_layerdrop(model, LayerDropConfig((0, 1, 0.5, 0)))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(model, training_arguments(tmp_path, bf16=True, weight_decay=0.1), train_dataset=ROWS)
    seen = []
    model.bert.encoder.layer[0].attention.self.query.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with recorded_runs(model) as runs:
        trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert [runs["encoder"].count(layer) for layer in (0, 1, 3)] == [6, 0, 6]
    assert 0 < runs["encoder"].count(2) < 6
    for name, weight in model.state_dict().items():
        if ".layer." in name and "key.bias" not in name:  # softmax gives a key's bias no gradient
            assert torch.equal(weight, before[name]) == (".layer.1." in name), name


def test_accelerate_in_bf16_trains_what_was_not_dropped():
    model = build(HEAD).train()
    inject_layerdrop(model, LayerDropConfig((0, 1, 0, 0)))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier Trainer in this process
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    seen = []
    model.bert.encoder.layer[0].attention.self.query.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    for step in range(2):
        set_step(prepared, step)
        accelerator.backward(prepared(**batch_for(HEAD), labels=torch.tensor([0, 1, 0])).loss)
        optimizer.step()
        optimizer.zero_grad()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == [torch.bfloat16] * 2
    after = accelerator.unwrap_model(prepared).state_dict()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert {layer for layer in range(4) for name in moved if f".layer.{layer}." in name} == {0, 2, 3}


@DTYPES
def test_a_model_loaded_in_half_precision_is_cut_and_trained_in_it(dtype, tmp_path):
    build(HEAD).save_pretrained(tmp_path)
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=dtype, keep_layers=KEPT, layerdrop=(0, 1)
    ).train()
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype).train()
    prune_layers(whole, KEPT)
    assert_same_tensors(model.state_dict(), whole.state_dict())
    gradients = gradients_of(model, loss_of(model, batch_for(HEAD)))
    assert {gradient.dtype for gradient in gradients.values() if gradient is not None} == {dtype}
    assert {name for name, gradient in gradients.items() if gradient is None} == {
        n for n in gradients if ".layer.1." in n
    }


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_keep_layers_with_a_device_map(device_map, tmp_path):
    build(HEAD).save_pretrained(tmp_path)
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(
        tmp_path, keep_layers=KEPT, layerdrop=0.5, device_map=device_map
    ).eval()
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    prune_layers(whole, KEPT)
    with torch.no_grad():
        assert torch.equal(model(**batch_for(HEAD)).logits, whole(**batch_for(HEAD)).logits)


PLACES = {
    "bert.embeddings": "cpu",
    "bert.encoder.layer.0": "cpu",
    "bert.encoder.layer.1": "cpu",
    "bert.encoder.layer.2": "disk",
    "bert.encoder.layer.3": "disk",
    "bert.pooler": "cpu",
    "classifier": "cpu",
}


def fetched(model, monkeypatch):
    """Run a training forward and return the layers whose weights were brought in from the disk, with its output."""
    numbers = {id(part): index for index, layer in enumerate(model.bert.encoder.layer) for part in layer.modules()}
    seen = set()
    bring = AlignDevicesHook.pre_forward

    def noted(hook, module, *args, **kwargs):
        if hook.offload and id(module) in numbers:
            seen.add(numbers[id(module)])
        return bring(hook, module, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(AlignDevicesHook, "pre_forward", noted)
        return seen, model.train()(**batch_for(HEAD)).logits


@pytest.mark.parametrize("first", ["inject", "dispatch"])
def test_dropped_layers_are_not_brought_in_from_the_disk(first, tmp_path, monkeypatch):
    model, cut = build(HEAD), build(HEAD)
    if first == "inject":
        inject_layerdrop(model, LayerDropConfig((0, 1, 1, 0)))
    dispatch_model(model, PLACES, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    if first == "dispatch":
        inject_layerdrop(model, LayerDropConfig((0, 1, 1, 0)))
    seen, found = fetched(model, monkeypatch)
    assert seen == {3}
    prune_layers(cut, [0, 3])
    with torch.no_grad():
        assert torch.equal(found, cut(**batch_for(HEAD)).logits)
    remove_layerdrop(model)
    assert fetched(model, monkeypatch)[0] == {2, 3}


@pytest.mark.parametrize("kept", [[0, 3], [1, 2]], ids=str)
def test_keep_layers_with_layers_on_the_disk(kept, tmp_path):
    build(HEAD).save_pretrained(tmp_path / "whole")
    places = {name: place for name, place in PLACES.items() if "layer.2" not in name and "layer.3" not in name}
    model = AutoLayerDropModelForSequenceClassification.from_pretrained(
        tmp_path / "whole",
        keep_layers=kept,
        device_map={**places, "bert.encoder.layer.1": "disk"},
        offload_folder=str(tmp_path / "offload"),
    ).eval()
    assert {weight.device.type for weight in model.bert.encoder.layer[1].parameters()} == {"meta"}
    cut = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    prune_layers(cut, kept)
    with torch.no_grad():
        assert torch.equal(model(**batch_for(HEAD)).logits, cut(**batch_for(HEAD)).logits)
