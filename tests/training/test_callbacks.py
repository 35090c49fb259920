"""Trainer callbacks: rates that follow the schedule, metrics of depths where every other metric is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForSequenceClassification,
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from conftest import DEPTH, build
from hf_layerdrop.errors import (
    KeepLayersError,
    LayerDropConfigError,
    LayerDropStateError,
    TaskError,
    UnsupportedModelError,
)
from hf_layerdrop.injection.inject import inject_layerdrop, layerdrop_state
from hf_layerdrop.injection.step_callback import LayerDropStepCallback
from hf_layerdrop.models.named import LayerDropBertForSequenceClassification
from hf_layerdrop.samplers.config import LayerDropConfig
from hf_layerdrop.training.callbacks import DepthEvaluationCallback, LayerDropScheduleCallback
from rows import accuracy, arguments, examples

HEAD = "BertForSequenceClassification"


class Spy(TrainerCallback):
    """Note the rates and the masks of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.layers: list[int] = []

    def on_step_end(
        self, args: object, state: object, control: object, *, model: PreTrainedModel, **kwargs: object
    ) -> None:
        self.rates.append(layerdrop_state(model).rates["encoder"][-1])


def trainer_for(
    model: PreTrainedModel, folder: Path, *callbacks: TrainerCallback, rate: object = 0.5, **changes: object
) -> Trainer:
    inject_layerdrop(model, rate)
    settings = {"max_steps": 8, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 2, **changes}
    trainer = Trainer(
        model,
        arguments(folder, **settings),
        train_dataset=examples(),
        eval_dataset=examples(),
        compute_metrics=accuracy,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("constant", {}, [0.5] * 8),
        ("linear", {"end": 0.5}, [0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5]),
        ("step", {"at": 0.5}, [0] * 4 + [0.5] * 4),
    ],
)
def test_rates_follow_the_schedule(tmp_path: Path, name: str, numbers: dict, expected: list[float]) -> None:
    spy = Spy()
    trainer_for(build(HEAD), tmp_path, LayerDropScheduleCallback(name, **numbers), spy).train()
    assert spy.rates == pytest.approx(expected)


def test_a_schedule_keeps_the_shape_over_depth_and_works_with_the_depth_sampler(tmp_path: Path) -> None:
    model = build(HEAD)
    config = LayerDropConfig(0.6, shape="linear")
    trainer_for(model, tmp_path, LayerDropScheduleCallback(lambda progress: 0.5), rate=config).train()
    assert layerdrop_state(model).rates["encoder"] == pytest.approx([0, 0.1, 0.2, 0.3])
    spy = Spy()
    config = LayerDropConfig(0.4, sampler="depth")
    trainer_for(model, tmp_path, LayerDropScheduleCallback("linear"), spy, rate=config).train()
    assert spy.rates == pytest.approx([0.4 * step / 8 for step in range(8)])


def test_the_effective_rate_and_the_layers_used_are_logged(tmp_path: Path) -> None:
    model = build(HEAD)
    trainer = trainer_for(model, tmp_path, LayerDropScheduleCallback("step", at=0.5), rate=(0, 1, 0, 1))
    trainer.train()
    rates = [entry["layerdrop_rate"] for entry in trainer.state.log_history if "layerdrop_rate" in entry]
    used = [entry["layerdrop_layers_used"] for entry in trainer.state.log_history if "layerdrop_layers_used" in entry]
    assert rates == [0, 0, 0.5, 0.5]
    assert used == [4, 4, 2, 2]
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 4  # Trainer's own log is not lost


@pytest.mark.parametrize("execution", ["skip", "mask"])
def test_forwards_at_rate_0_count_among_those_whose_layers_are_logged(execution: str, tmp_path: Path) -> None:
    """Within one record: half of the forwards run 4 layers, the other half 2."""
    config = LayerDropConfig((0, 1, 0, 1), execution=execution)
    schedule = LayerDropScheduleCallback("step", at=0.5)
    trainer = trainer_for(build(HEAD), tmp_path, schedule, rate=config, max_steps=8, logging_steps=8)
    trainer.train()
    (used,) = [entry["layerdrop_layers_used"] for entry in trainer.state.log_history if "loss" in entry]
    assert used == 3


class Reports(TrainerCallback):
    """Note what a service that reports would be handed."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: object, state: object, control: object, *, logs: dict[str, Any], **kwargs: object) -> None:
        self.seen.append(dict(logs))


@pytest.mark.parametrize(("strategy", "records"), [("steps", 4), ("epoch", 2)])
def test_rate_and_layers_stand_in_the_record_of_the_loss(strategy: str, records: int, tmp_path: Path) -> None:
    reports = Reports()
    settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 3, "logging_strategy": strategy}
    trainer = trainer_for(build(HEAD), tmp_path, reports, rate=(0, 1, 0, 1), **settings)
    trainer.train()
    for log in (trainer.state.log_history, reports.seen):
        *of_steps, end = log
        assert "train_loss" in end
        assert len(of_steps) == records
        for entry in of_steps:
            assert {"loss", "learning_rate", "grad_norm", "layerdrop_rate", "layerdrop_layers_used"} <= set(entry)
            assert entry["layerdrop_layers_used"] == 2


class Averages(Trainer):
    """A trainer that collects numbers and writes them with whatever is logged next, as TRL's do."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs["collected"] = getattr(self, "steps", 0)
        super().log(logs, start_time)
        self.steps = 0


def test_what_a_trainer_collects_stands_with_the_loss(tmp_path: Path) -> None:
    model = build(HEAD)
    inject_layerdrop(model, 0.5)
    settings = arguments(tmp_path, max_steps=8, per_device_train_batch_size=4, save_strategy="no", logging_steps=2)
    trainer = Averages(model, settings, train_dataset=examples())
    trainer.train()
    assert [entry["collected"] for entry in trainer.state.log_history if "loss" in entry] == [2, 2, 2, 2]
    assert all("layerdrop_rate" in entry for entry in trainer.state.log_history if "loss" in entry)


def test_the_table_of_a_notebook_gains_depths_and_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    from transformers.utils import notebook

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(notebook.NotebookTrainingTracker, "write_line", lambda _, values: rows.append(dict(values)))
    monkeypatch.setattr(notebook.disp, "display", lambda *args, **kwargs: None)
    trainer = trainer_for(build(HEAD), tmp_path, DepthEvaluationCallback([2]), eval_strategy="steps", eval_steps=4)
    trainer.add_callback(notebook.NotebookProgressCallback)
    trainer.train()
    assert len(rows) == 2
    expected = {"Step", "Training Loss", "Validation Loss", "Accuracy", "Depth 2 Accuracy", "Depth 2 Loss"}
    assert all(set(row) == expected for row in rows)


def test_a_depth_to_which_the_model_cannot_be_cut_is_refused_before_the_first_step(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40}
    model = DiffLlamaForSequenceClassification(DiffLlamaConfig(num_hidden_layers=4, pad_token_id=0, **sizes))
    spy = Spy()
    with pytest.raises(UnsupportedModelError, match="would build layer 2 otherwise"):
        trainer_for(model, tmp_path, DepthEvaluationCallback(["first:2", [0, 2]]), spy).train()
    assert spy.rates == []


def test_a_resumed_run_goes_on_with_the_schedule_and_ends_equal(tmp_path: Path) -> None:
    whole, cut = build(HEAD), build(HEAD)
    make = lambda model, folder, **changes: trainer_for(  # noqa: E731 - two trainers that must not differ
        model, folder, LayerDropScheduleCallback("cosine"), save_strategy="steps", save_steps=4, seed=3, **changes
    )
    make(whole, tmp_path / "whole").train()
    trainer = make(cut, tmp_path / "cut")
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
    other = build(HEAD)
    trainer_for(other, tmp_path / "other", seed=3).train()  # without the schedule it ends elsewhere
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_the_configured_rates_are_saved_not_those_of_the_moment(tmp_path: Path) -> None:
    make = lambda model, folder: trainer_for(  # noqa: E731 - two trainers that must not differ
        model, folder, LayerDropScheduleCallback("linear"), save_strategy="steps", save_steps=4
    )
    whole = build(HEAD)
    make(whole, tmp_path / "whole").train()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert json.loads((checkpoint / "config.json").read_text())["hf_layerdrop"]["rates"] == {"encoder": [0.5] * DEPTH}
    again = LayerDropBertForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    trainer = Trainer(
        again,
        arguments(tmp_path / "again", max_steps=8, per_device_train_batch_size=4, save_strategy="no", logging_steps=2),
        train_dataset=examples(),
        callbacks=[LayerDropScheduleCallback("linear")],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_trainer_that_was_built_too_early_says_so(tmp_path: Path) -> None:
    model = build(HEAD)
    trainer = Trainer(model, arguments(tmp_path, max_steps=8, save_strategy="no"), train_dataset=examples())
    trainer.remove_callback(LayerDropStepCallback)  # other tests have injected before
    inject_layerdrop(model, 0.5)
    with pytest.raises(LayerDropStateError, match="build it afterwards"):
        trainer.train()


def test_bad_depths_are_found_before_the_first_step(tmp_path: Path) -> None:
    trainer = trainer_for(build(HEAD), tmp_path, DepthEvaluationCallback([2, 9]))
    with pytest.raises(KeepLayersError, match="9"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("depths", [6, "63", {"encoder": 2}, []])
def test_depths_that_are_no_list_are_refused(depths: object) -> None:
    with pytest.raises(TaskError, match=r"depths=\[6, 3\]"):
        DepthEvaluationCallback(depths)


def test_a_schedule_of_nothing_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(
        build(HEAD), arguments(tmp_path), train_dataset=examples(), callbacks=[LayerDropScheduleCallback("linear")]
    )
    with pytest.raises(LayerDropStateError, match="inject_layerdrop"):
        trainer.train()


def test_a_schedule_that_leaves_the_range_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(build(HEAD), tmp_path, LayerDropScheduleCallback(lambda progress: 1 + progress))
    with pytest.raises(LayerDropConfigError, match="from 0 to 1"):
        trainer.train()


@pytest.mark.parametrize("schedule", ["quadratic", 0.5, None])
def test_bad_schedules_are_refused_with_the_names_of_the_good_ones(schedule: object) -> None:
    with pytest.raises(LayerDropConfigError, match="linear"):
        LayerDropScheduleCallback(schedule)


def test_depths_are_logged_returned_and_can_choose_the_best_model(tmp_path: Path) -> None:
    model = build(HEAD)
    trainer = trainer_for(
        model,
        tmp_path,
        DepthEvaluationCallback([DEPTH, 2, [1, 2]]),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_depth_2_loss",
        greater_is_better=False,
    )
    trainer.train()
    logged = [entry["eval_depth_2_loss"] for entry in trainer.state.log_history if "eval_depth_2_loss" in entry]
    assert len(logged) == 2
    assert trainer.state.best_metric == min(logged)
    metrics = trainer.evaluate()
    assert metrics["eval_depth_4_accuracy"] == metrics["eval_accuracy"]
    assert {"eval_depth_2_accuracy", "eval_depth_1-2_accuracy"} <= set(metrics)


@pytest.mark.parametrize("metric", ["eval_depth_3_loss", "depth_1-3_accuracy", "depth_encoder3_loss"])
def test_the_best_model_is_not_chosen_by_a_depth_that_is_not_evaluated(metric: str, tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": metric}
    trainer = trainer_for(build(HEAD), tmp_path, DepthEvaluationCallback([DEPTH, 2]), **settings)
    with pytest.raises(LayerDropConfigError, match=rf"'{metric}'.*depth_4, depth_2 "):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_second_callback_may_evaluate_the_depth_that_chooses_the_best_model(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 4, "eval_steps": 4}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "depth_3_loss"}
    depths = DepthEvaluationCallback([2]), DepthEvaluationCallback([3])
    trainer = trainer_for(build(HEAD), tmp_path, *depths, **settings)
    trainer.train()
    assert trainer.state.best_metric is not None


def test_depths_see_the_set_that_is_evaluated(tmp_path: Path) -> None:
    trainer = trainer_for(build(HEAD), tmp_path, DepthEvaluationCallback([DEPTH]))
    metrics = trainer.evaluate({"first": examples(6), "second": examples(12)})
    for name in ("first", "second"):
        assert metrics[f"eval_{name}_depth_4_accuracy"] == metrics[f"eval_{name}_accuracy"]


def test_early_stopping_must_come_later(tmp_path: Path) -> None:
    depths, stopping = DepthEvaluationCallback([2]), EarlyStoppingCallback(1)
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_depth_2_accuracy",
    }
    with pytest.raises(LayerDropConfigError, match="EarlyStoppingCallback"):
        trainer_for(build(HEAD), tmp_path, stopping, depths, **settings).train()
    trainer = trainer_for(build(HEAD), tmp_path, depths, stopping, max_steps=40, learning_rate=0.0, **settings)
    trainer.train()
    assert trainer.state.global_step == 4  # nothing gets better at learning rate 0: it saw the metric and stopped
