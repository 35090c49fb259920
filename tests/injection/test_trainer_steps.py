"""Trainer counts the steps: masks differ from one to the next, and go on where a run is resumed."""

import numpy as np
import pytest
import torch
import transformers
from transformers import TrainingArguments

from conftest import (
    assert_same_tensors,
    batch_for,
    build,
    drawn,
    injected,
    recorded_runs,
)
from hf_layerdrop import (
    LayerDropConfig,
    inject_layerdrop,
    set_step,
)
from hf_layerdrop.errors import LayerDropStateError

PLAIN_CALLBACKS = [cls for cls in transformers.trainer.DEFAULT_CALLBACKS if "layerdrop" not in cls.__module__]


def trainer_for(model, folder, **changes):
    generator = torch.Generator().manual_seed(3)
    data = [{"input_ids": torch.randint(5, 60, (7,), generator=generator), "labels": row % 2} for row in range(24)]
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_steps": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "seed": 5,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 2,
        **changes,
    }
    return transformers.Trainer(model=model, args=TrainingArguments(**settings), train_dataset=data)


def trained(folder, *, rate=0.5, resume=None, **changes):
    model = build("BertForSequenceClassification")
    inject_layerdrop(model, rate)
    trainer = trainer_for(model, folder, **changes)
    with recorded_runs(model) as runs:
        trainer.train(resume_from_checkpoint=resume)
    return model, runs["encoder"], trainer.state.log_history


def test_a_resumed_trainer_run_draws_what_the_uninterrupted_one_drew(tmp_path):
    whole, runs, logs = trained(tmp_path / "whole")
    resumed, later_runs, _ = trained(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert runs[-len(later_runs) :] == later_runs
    assert_same_tensors(dict(resumed.named_parameters()), dict(whole.named_parameters()))
    other, other_runs, _ = trained(tmp_path / "other", seed=6, data_seed=5)
    assert other_runs != runs
    assert whole.config.hf_layerdrop["seed"] == 5
    assert other.config.hf_layerdrop["seed"] == 6
    assert {entry["layerdrop_rate"] for entry in logs if "layerdrop_rate" in entry} == {0.5}
    used = [entry["layerdrop_layers_used"] for entry in logs if "layerdrop_layers_used" in entry]
    assert np.mean(used) == pytest.approx(len(runs) / 12)


def test_trainer_counts_steps_and_micro_steps_and_keeps_a_seed_that_was_given(tmp_path):
    _, runs, _ = trained(tmp_path, rate=LayerDropConfig(0.5, seed=77), seed=1)
    model = injected("BertForSequenceClassification", seed=77)
    expected = []
    for step in range(6):
        for micro_step in range(2):
            set_step(model, step, micro_step)
            expected += drawn(model, batch_for("BertForSequenceClassification"))[0]["encoder"]
    assert runs == expected


def test_a_trainer_that_was_built_too_early_is_an_error_and_not_one_mask_for_all_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", list(PLAIN_CALLBACKS))
    model = build("BertForSequenceClassification")
    trainer = trainer_for(model, tmp_path)
    inject_layerdrop(model, 0.5)
    with pytest.raises(LayerDropStateError, match="before LayerDrop was injected"):
        trainer.train()


def test_trainer_leaves_models_without_layerdrop_alone(tmp_path):
    inject_layerdrop(build("BertModel"), 0.5)  # has registered its callback with Trainer by now
    model = build("BertForSequenceClassification")
    trainer = trainer_for(model, tmp_path, max_steps=1)
    trainer.train()
    assert not any("layerdrop_rate" in entry for entry in trainer.state.log_history)
    assert getattr(model.config, "hf_layerdrop", None) is None
