"""Training on a device: draws, gradients, precision, checkpointing, wrappers, resume."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, Trainer, TrainingArguments

from conftest import assert_same_tensors, batch_for, build, cut_by_hand, gradients_of, layers_of, loss_of
from hf_layerdrop import LayerDropConfig, inject_layerdrop, layerdrop_state, set_rates, set_step
from on_device import deterministic, device, needs_device, one_process  # noqa: F401

pytestmark = needs_device
HEADS = ["BertForSequenceClassification", "BartForConditionalGeneration"]
BERT = HEADS[0]


def on(device: torch.device, head: str, **settings: object) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Build a model with LayerDrop and a batch on the device."""
    model = build(head).to(device)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1, **settings))
    return model.train(), {name: value.to(device) for name, value in batch_for(head).items()}


@pytest.mark.parametrize("head", HEADS)
def test_a_step_equals_that_of_the_cut_model_bit_for_bit(head, device, deterministic):
    model, batch = on(device, head)
    set_rates(model, {name: [0.0, 1.0, 0.0, 1.0] for name in layers_of(model)})
    cut = cut_by_hand(build(head), {name: [0, 2] for name in layers_of(model)}).to(device).train()
    loss, expected = loss_of(model, batch), loss_of(cut, batch)
    assert torch.equal(loss, expected)
    gradients = gradients_of(model, loss)
    dropped = [name for name, gradient in gradients.items() if ".1." in name and "layer" in name and gradient is None]
    assert dropped
    assert len([g for g in gradients.values() if g is not None]) == len(gradients_of(cut, expected))


@pytest.mark.parametrize("head", HEADS)
def test_draws_are_those_of_the_cpu(head, device):
    model, _ = on(device, head)
    other, _ = on(torch.device("cpu"), head)
    for step in range(20):
        found = []
        for one in (model, other):
            set_step(one, step)
            found.append([draw.draw() for draw in layerdrop_state(one).draws.values()])
        assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(dtype, device):
    model, batch = on(device, BERT)
    labels = torch.tensor([0, 1, 0], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    before = model.eval()(**batch, labels=labels).loss.item()
    model.train()
    for step in range(40):
        set_step(model, step)
        with torch.autocast(device.type, dtype):
            loss = model(**batch, labels=labels).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert model.eval()(**batch, labels=labels).loss.item() < 0.5 * before


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant, device, deterministic):
    model, batch = on(device, BERT)
    plain = gradients_of(model, loss_of(model, batch))
    set_step(model, 0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients_of(model, loss_of(model, batch))
    assert any(gradient is None for gradient in plain.values())
    assert_same_tensors(found, plain, atol=1e-6)


def test_no_step_waits_for_the_device(device):
    model, batch = on(device, BERT)
    loss_of(model, batch).backward()  # what is set up once may wait
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            set_step(model, step)
            model(**batch).logits.sum().backward()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def trained(model: nn.Module, batch: dict[str, torch.Tensor], plain: PreTrainedModel) -> None:
    """Take four steps of AdamW with momentum and decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(4):
        set_step(plain, step)
        model(**batch).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_ddp_ends_equal(device, one_process):
    model, batch = on(device, BERT)
    alone = deepcopy(model)
    trained(alone, batch, alone)
    trained(DistributedDataParallel(model), batch, model)
    assert_same_tensors(dict(model.named_parameters()), dict(alone.named_parameters()), atol=1e-5)


def test_fsdp2_ends_equal(device, one_process):
    model, batch = on(device, BERT)
    alone = deepcopy(model)
    trained(alone, batch, alone)
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    trained(model, batch, model)
    found = {name: weight.full_tensor() for name, weight in model.named_parameters()}
    assert_same_tensors(found, dict(alone.named_parameters()), atol=1e-5)


def test_a_resumed_run_ends_bit_for_bit_as_the_whole_one(device, deterministic, tmp_path: Path):
    whole, resumed = (trainer_on(device, tmp_path / name) for name in ("whole", "resumed"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_tensors(resumed.model.state_dict(), whole.model.state_dict())


def trainer_on(device: torch.device, folder: Path) -> Trainer:
    model = build(BERT)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=1))
    batch = batch_for(BERT)
    rows = [{name: value[number % 3] for name, value in batch.items()} | {"labels": number % 2} for number in range(12)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, num_train_epochs=1, save_steps=3, report_to=[],
        use_cpu=device.type == "cpu", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows)
