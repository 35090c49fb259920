"""Distillation: the student learns from its teacher alone, is counted and resumed, and what does not fit is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertModel,
    Trainer,
)

from conftest import (
    DEPTH,
    VOCABULARY,
    assert_same_tensors,
    build,
    tiny_config,
)
from distilling import (
    CLASSIFIER,
    FAMILIES,
    KEEP,
    batch_of,
    examples,
    only,
    settings,
    teacher_of,
    trainer_for,
    training_loss,
)
from hf_layerdrop.distillation.student import student_of
from hf_layerdrop.distillation.trainer import DistillationTrainer
from hf_layerdrop.errors import DistillationError
from hf_layerdrop.evaluation.evaluate import evaluate_depths
from hf_layerdrop.evaluation.trainer_source import has_own_evaluation
from hf_layerdrop.injection.inject import inject_layerdrop
from hf_layerdrop.samplers.config import LayerDropConfig

# Training.


@pytest.mark.parametrize("head", FAMILIES)
def test_training_brings_the_student_close_to_its_teacher(tmp_path, head):
    teacher = teacher_of(head)
    trainer = trainer_for(
        student_of(teacher, KEEP[head]),
        teacher,
        tmp_path,
        head,
        per_device_train_batch_size=8,
        max_steps=60,
        learning_rate=5e-3,
    )
    trainer.distillation = only(soft_weight=1.0)
    untrained = training_loss(trainer, batch_of(head)).item()
    trainer.train()
    assert training_loss(trainer, batch_of(head)).item() < untrained / 3
    trained = teacher_of(head, seed=9)  # another model is no closer than before
    other = trainer_for(copy.deepcopy(trainer.model), trained, tmp_path, head, only(soft_weight=1.0))
    assert training_loss(other, batch_of(head)).item() > untrained / 3


def test_a_resumed_run_equals_one_that_went_through_and_saves_the_student_alone(tmp_path):
    def trainer(name, **changes):
        teacher = teacher_of(CLASSIFIER, hidden_dropout_prob=0.1)
        student = student_of(teacher, [0, 1, 3])
        inject_layerdrop(student, LayerDropConfig(0.5, seed=1))
        more = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, **changes}
        return trainer_for(student, teacher, tmp_path / name, CLASSIFIER, **more)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_tensors(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.layer_forwards == whole.layer_forwards
    assert whole.layer_forwards.teacher == 4 * DEPTH
    assert 0 < whole.layer_forwards.student < 4 * 3
    assert load_file(checkpoint / "model.safetensors").keys() == whole.model.state_dict().keys()
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(moments) <= len(list(whole.model.parameters()))


def test_layers_that_layerdrop_dropped_do_not_count(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    student = student_of(teacher, [0, 1, 3])
    inject_layerdrop(student, LayerDropConfig((0.0, 1.0, 0.0)))
    trainer = trainer_for(student, teacher, tmp_path, CLASSIFIER, max_steps=3, logging_steps=1)
    trainer.train()
    assert (trainer.layer_forwards.teacher, trainer.layer_forwards.student) == (3 * DEPTH, 3 * 2)
    assert trainer.layer_forwards.total == 3 * DEPTH + 6
    trainer.train()  # a second training is counted by itself
    assert trainer.layer_forwards.student == 6
    alone = trainer_for(student_of(teacher, 2), teacher, tmp_path, CLASSIFIER, only(hard_weight=1.0))
    alone.train()
    assert alone.layer_forwards.teacher == 0  # the labels alone need no teacher


def test_evaluation_is_that_of_the_task(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    student = student_of(teacher, [0, 2])
    found = trainer_for(student, teacher, tmp_path, CLASSIFIER).predict(examples(CLASSIFIER))
    expected = Trainer(student, settings(tmp_path)).predict(examples(CLASSIFIER))
    assert found.metrics["test_loss"] == expected.metrics["test_loss"]
    assert torch.equal(torch.tensor(found.predictions), torch.tensor(expected.predictions))


def test_the_three_losses_are_logged_and_the_settings_are_noted_in_the_config(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    trainer = trainer_for(student_of(teacher, [0, 2]), teacher, tmp_path, CLASSIFIER, logging_steps=2)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "soft_loss" in entry)
    assert log["loss"] == pytest.approx(5 * log["soft_loss"] + log["hidden_loss"] + 2 * log["hard_loss"], rel=1e-3)
    assert trainer.model.config.hf_layerdrop["distilled_with"]["temperature"] == 2.0


def test_depths_are_measured_together_as_with_trainer_itself(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    trainer = trainer_for(student_of(teacher, [0, 2]), teacher, tmp_path, CLASSIFIER)
    assert not has_own_evaluation(trainer)
    assert has_own_evaluation(LogsMore(trainer.model, settings(tmp_path), teacher=teacher))
    found = evaluate_depths(trainer, examples(CLASSIFIER), depths=[2, 1], progress=False)
    plain = Trainer(trainer.model, settings(tmp_path))
    expected = evaluate_depths(plain, examples(CLASSIFIER), depths=[2, 1], progress=False)
    assert [one.metrics for one in found] == [one.metrics for one in expected]
    assert [one.layer_forwards for one in found] == [one.layer_forwards for one in expected]


class LogsMore(DistillationTrainer):
    """A trainer of a user's, whose log may hold anything from one evaluation to the next."""

    def log(self, logs, *args, **kwargs):
        super().log(logs, *args, **kwargs)


@pytest.mark.parametrize("restored", [False, True])
def test_what_is_counted_is_kept_where_trainer_restores_its_callbacks(tmp_path, restored):
    def trainer(name, **changes):
        teacher = teacher_of(CLASSIFIER)
        more = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes}
        return trainer_for(student_of(teacher, [0, 1, 3]), teacher, tmp_path / name, CLASSIFIER, **more)

    whole, resumed = trainer("whole"), trainer("resumed", restore_callback_states_from_checkpoint=restored)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.layer_forwards == whole.layer_forwards


# What does not fit.


def misfits():
    teacher = teacher_of(CLASSIFIER)
    larger = teacher_of(CLASSIFIER, vocab_size=VOCABULARY + 1)
    cut = student_of(teacher, [0, 2])
    unknown = student_of(teacher, [0, 2])
    del unknown.config.hf_layerdrop
    other_head = build("BertForTokenClassification")
    wide = teacher_of(CLASSIFIER, hidden_size=32)
    return {
        "no head": (cut, BertModel(tiny_config("BertModel")), {}, "no head"),
        "another head": (cut, other_head, {}, "same head"),
        "vocabularies": (cut, larger, {}, "vocab_size 61 and the student 60"),
        "labels": (cut, teacher_of(CLASSIFIER, num_labels=5), {}, "num_labels 5 and the student 2"),
        "widths": (cut, wide, {}, "hidden_weight=0"),
        "itself": (teacher, teacher, {}, "the student itself"),
        "unknown layers": (unknown, teacher, {}, "student_of"),
        "label smoothing": (cut, teacher, {"label_smoothing_factor": 0.1}, "leave it at 0"),
    }


@pytest.mark.parametrize("case", misfits())
def test_what_does_not_fit_is_refused_before_training(tmp_path, case):
    student, teacher, changes, said = misfits()[case]
    with pytest.raises(DistillationError, match=said):
        trainer_for(student, teacher, tmp_path, CLASSIFIER, **changes)


def test_models_of_other_widths_are_compared_by_their_predictions_alone(tmp_path):
    teacher = teacher_of(CLASSIFIER, hidden_size=32)
    student = teacher_of(CLASSIFIER, num_hidden_layers=3)
    trainer = trainer_for(student, teacher, tmp_path, CLASSIFIER, only(soft_weight=1.0))
    assert training_loss(trainer, batch_of(CLASSIFIER)).item() > 0


def test_labels_are_needed_for_the_hard_loss_alone(tmp_path):
    teacher = teacher_of(CLASSIFIER)
    batch = {name: value for name, value in batch_of(CLASSIFIER).items() if name != "labels"}
    with pytest.raises(DistillationError, match="only input_ids, attention_mask"):
        training_loss(trainer_for(student_of(teacher, 2), teacher, tmp_path, CLASSIFIER), batch)
    soft = trainer_for(student_of(teacher, 2), teacher, tmp_path, CLASSIFIER, only(soft_weight=1.0))
    assert training_loss(soft, batch).item() == training_loss(soft, batch_of(CLASSIFIER)).item()
