"""The depths of a trained model: measured once for the same weights, and kept in the record of the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainingArguments

from classifiers import model, rows  # noqa: F401
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import load_task
from hf_layerdrop.training.train import TrainingRun, train

STEPS = 4
DEPTHS = [4, 2, 1]
AT_THE_END = {"eval_strategy": "steps", "eval_steps": STEPS}
EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


class Seen(TrainerCallback):
    """Count batches that the first layer evaluates, and keep what is reported."""

    def __init__(self) -> None:
        self.forwards = 0
        self.logs: list[dict[str, float]] = []

    def count(self, trainer: object, data: object) -> None:
        trainer.add_callback(self)
        trainer.model.bert.encoder.layer[-1].register_forward_hook(self._note)

    def _note(self, module: object, inputs: object, output: object) -> None:
        self.forwards += not module.training

    def on_log(self, args: object, state: object, control: object, *, logs: dict, **kwargs: object) -> None:
        self.logs.append(dict(logs))


def run(folder: Path, model: Path, rows: Path, seen: Seen | None = None, **settings: object) -> TrainingRun:
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=0.05, use_cpu=True, report_to=[], disable_tqdm=True, **settings
    )
    data = load_task_data(load_task("sst2"), train_file=rows, validation_file=rows)
    return train(data, str(model), arguments, eval_depths=DEPTHS, on_start=None if seen is None else seen.count)


def plain(results: list) -> list[tuple]:
    return [(one.keep_layers, one.metrics, one.rows, one.intervals, one.layer_forwards) for one in results]


def test_an_evaluation_after_the_last_step_is_not_repeated(tmp_path, model, rows):
    at_the_end, after, both = Seen(), Seen(), Seen()
    measured = run(tmp_path / "a", model, rows, at_the_end, **AT_THE_END)
    alone = run(tmp_path / "b", model, rows, after)
    run(tmp_path / "c", model, rows, both, eval_strategy="steps", eval_steps=STEPS - 1)
    assert plain(measured.results) == plain(alone.results)
    assert len({one.metrics["loss"] for one in measured.results}) == 3
    whole = 3  # batches of 8 of the 20 rows, by the whole model
    assert at_the_end.forwards == after.forwards + whole
    assert both.forwards == 2 * at_the_end.forwards  # Trainer evaluates after the last step, too


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_the_best_model_is_measured_with_its_own_weights(tmp_path, model, rows, greater_is_better):
    best = {"metric_for_best_model": "depth_2_loss", "greater_is_better": greater_is_better}
    done = run(tmp_path / "run", model, rows, load_best_model_at_end=True, **best, **EACH_STEP)
    assert plain(done.results) == plain(evaluate_depths(done.trainer, depths=DEPTHS, progress=False))


def test_the_depths_stand_in_the_record_of_the_evaluation_and_are_reported(tmp_path, model, rows):
    seen = Seen()
    history = run(tmp_path / "run", model, rows, seen, **EACH_STEP).trainer.state.log_history
    evaluations = [record for record in history if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [1, 2, 3, 4]
    for record in evaluations:
        assert record["eval_depth_4_loss"] == record["eval_loss"] != record["eval_depth_2_loss"]
    assert [record for record in history if "eval_depth_2_loss" in record] == evaluations
    assert [log["eval_depth_2_loss"] for log in seen.logs if "eval_depth_2_loss" in log] == [
        record["eval_depth_2_loss"] for record in evaluations
    ]
