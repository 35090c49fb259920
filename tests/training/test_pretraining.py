"""The recipe of 2026: rates that rise over depth and fall over time; the falling cannot be forgotten in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from conftest import build
from hf_layerdrop import (
    AutoLayerDropModelForSequenceClassification,
    LayerDropConfig,
    LayerDropScheduleCallback,
    inject_layerdrop,
    layerdrop_state,
    scale_rates,
    set_step,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError
from rows import arguments, examples

DEPTH, STEPS, P_MAX = 4, 8, 0.6


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
    config = LlamaConfig(num_hidden_layers=DEPTH, initializer_range=0.3, pad_token_id=0, **sizes)
    return LlamaForSequenceClassification._from_config(config, attn_implementation="eager")


class Spy(TrainerCallback):
    """Note the rates of every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_step_end(self, args: object, state: object, control: object, *, model: PreTrainedModel, **_: object) -> None:
        self.rates.append(next(iter(layerdrop_state(model).rates.values())))


def trainer_for(model: PreTrainedModel, folder: Path, *callbacks: TrainerCallback) -> Trainer:
    settings = arguments(
        folder, max_steps=STEPS, per_device_train_batch_size=4, save_steps=4, logging_steps=4, learning_rate=1e-2
    )
    trainer = Trainer(model, settings, train_dataset=examples(), callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    return trainer


def recipe(step: int) -> list[float]:
    return [P_MAX * layer / (DEPTH - 1) * (1 - step / STEPS) for layer in range(DEPTH)]


def test_the_config_is_the_recipe_and_says_so() -> None:
    config = LayerDropConfig.for_pretraining(P_MAX)
    assert (config.shape, config.scale, config.schedule) == ("linear", "kept", "falling")
    assert config.rates_for({"layers": DEPTH})["layers"] == pytest.approx(recipe(0))
    assert LayerDropConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    other = LayerDropConfig.for_pretraining(P_MAX, shape="alternating", scale="none", seed=3)
    assert (other.shape, other.scale, other.schedule, other.seed) == ("alternating", "none", "falling", 3)


def test_trainer_follows_it_without_a_callback(tmp_path: Path) -> None:
    model, spy = llama(), Spy()
    inject_layerdrop(model, LayerDropConfig.for_pretraining(P_MAX))
    trainer_for(model, tmp_path, spy).train()
    assert spy.rates == [pytest.approx(recipe(step)) for step in range(STEPS)]
    saved = json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())["hf_layerdrop"]
    assert saved["rates"]["layers"] == pytest.approx(recipe(0))  # what the schedule scales


def test_a_callback_goes_before_it_in_its_own_training_alone(tmp_path: Path) -> None:
    model, spy = llama(), Spy()
    inject_layerdrop(model, LayerDropConfig.for_pretraining(P_MAX))
    trainer_for(model, tmp_path / "one", LayerDropScheduleCallback("early", share=0.25), spy).train()
    assert spy.rates == [pytest.approx(recipe(0))] * 2 + [[0.0] * DEPTH] * 6
    again = Spy()
    trainer_for(model, tmp_path / "two", again).train()
    assert again.rates == [pytest.approx(recipe(step)) for step in range(STEPS)]


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, cut, loaded = llama(), llama(), tmp_path / "whole" / "checkpoint-4"
    for model in (whole, cut):
        inject_layerdrop(model, LayerDropConfig.for_pretraining(P_MAX))
    trainer_for(whole, tmp_path / "whole").train()
    trainer_for(cut, tmp_path / "cut").train(resume_from_checkpoint=str(loaded))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    again = AutoLayerDropModelForSequenceClassification.from_pretrained(loaded, attn_implementation="eager")
    trainer_for(again, tmp_path / "again").train(resume_from_checkpoint=str(loaded))  # all that it needs is saved
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    plain = llama()
    inject_layerdrop(plain, LayerDropConfig.for_pretraining(P_MAX, scale="none"))
    trainer_for(plain, tmp_path / "plain").train()  # without the scale it ends elsewhere
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), plain.parameters(), strict=True))


def test_a_loop_that_follows_nothing_is_told_so_at_its_first_forward() -> None:
    model = llama().train()
    inject_layerdrop(model, LayerDropConfig.for_pretraining(P_MAX))
    batch = {"input_ids": torch.arange(1, 9)[None], "labels": torch.tensor([1])}
    set_step(model, 0)
    with pytest.raises(LayerDropStateError, match=r"'falling', and nothing follows it.*scale_rates\(model, factor\)"):
        model(**batch)
    with torch.no_grad():
        model.eval()(**batch)
    scale_rates(model, 0.5)
    model.train()(**batch).loss.backward()
    assert layerdrop_state(model).rates["layers"] == pytest.approx([rate / 2 for rate in recipe(0)])


def test_a_post_norm_model_takes_it_without_the_scale() -> None:
    model = build("BertForSequenceClassification")
    with pytest.raises(LayerDropConfigError, match="scale='none'"):
        inject_layerdrop(model, LayerDropConfig.for_pretraining(P_MAX))
    inject_layerdrop(model, LayerDropConfig.for_pretraining(P_MAX, scale="none"))
    assert layerdrop_state(model).rates["encoder"] == pytest.approx(recipe(0))


@pytest.mark.parametrize(
    ("schedule", "said"),
    [("fallling", "unknown"), ("early:part=0.3", "does not take"), ("early:share=x", "write its numbers"), (3, "is 3")],
)
def test_a_schedule_that_is_none_is_refused(schedule: object, said: str) -> None:
    with pytest.raises(LayerDropConfigError, match=said):
        LayerDropConfig(0.2, schedule=schedule)
