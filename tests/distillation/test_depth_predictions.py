"""A frozen teacher for depths: asked once for a row, whatever it is padded to, and found again on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainingArguments

from conftest import assert_same_tensors
from depth_models import HEADS, Batch, labelled, model_of
from hf_layerdrop import DepthTrainer, DepthTraining, backward_depths, prepare_depths
from hf_layerdrop.distillation.budget import LayerForwards
from hf_layerdrop.errors import DistillationError

CLASSIFIER = "BertForSequenceClassification"


def gradients(model: PreTrainedModel, batch: Batch, training: DepthTraining, step: int = 0) -> dict[str, Any]:
    model.zero_grad()
    backward_depths(model, batch, training, step=step)
    return {name: None if weight.grad is None else weight.grad.clone() for name, weight in model.named_parameters()}


def reordered(batch: Batch, order: list[int]) -> Batch:
    return {name: value[order] for name, value in batch.items()}


def longer(batch: Batch, head: str) -> Batch:
    """Pad a batch further."""
    pad = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    found = dict(batch)
    for name, value in batch.items():
        if value.dim() == 2 and (name != "labels" or value.shape[1] > 1):
            found[name] = torch.cat([value, torch.full((len(value), 4), pad[name])], 1)
    return found


@pytest.mark.parametrize("head", HEADS)
def test_what_is_kept_is_what_the_teacher_says_row_by_row(head: str) -> None:
    teacher, batch = model_of(head, seed=3), labelled(head)
    kept = DepthTraining([4, 2], teacher=teacher, temperature=2.0)
    asked = DepthTraining([4, 2], teacher=teacher, temperature=2.0, keep_predictions=False)
    model = model_of(head)
    gradients(model, batch, kept)
    predictions = prepare_depths(model, kept).teacher
    assert predictions is not None
    others = reordered(batch, [2, 0])
    same_length = head in ("ViTForImageClassification", "BertForQuestionAnswering")
    batches = [others] if same_length else [others, longer(others, head)]
    for other in batches:
        found = gradients(model, other, kept)
        assert predictions.forwards == 1
        assert_same_tensors(found, gradients(model_of(head), other, asked), atol=1e-4)
    in_step = gradients(model_of(head), batches[0], DepthTraining([4, 2], temperature=2.0))
    assert any(
        not torch.allclose(one, other, atol=1e-3)
        for one, other in zip(gradients(model, batches[0], kept).values(), in_step.values(), strict=True)
        if one is not None
    )


def test_a_row_that_differs_in_one_token_is_asked_about() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    training = DepthTraining([4, 2], teacher=model_of(CLASSIFIER, seed=3))
    teacher = prepare_depths(model, training).teacher
    assert teacher is not None
    gradients(model, batch, training)
    batch["input_ids"][1, 2] += 1
    gradients(model, batch, training)
    gradients(model, batch, training)
    assert teacher.forwards == 2
    assert teacher.kept is not None
    assert len(teacher.kept) == 4


def test_a_step_without_the_whole_model_learns_from_a_frozen_teacher_too() -> None:
    model, batch = model_of(CLASSIFIER), labelled(CLASSIFIER)
    teacher = model_of(CLASSIFIER, seed=3)
    with_teacher = gradients(model, batch, DepthTraining([4, 2], whole_every=2, teacher=teacher), step=1)
    without = gradients(model_of(CLASSIFIER), batch, DepthTraining([4, 2], whole_every=2), step=1)
    assert not torch.allclose(with_teacher["classifier.weight"], without["classifier.weight"])


def trainer_for(folder: Path, place: Path | bool, teacher: PreTrainedModel, **changes: Any) -> DepthTrainer:
    data = [{name: value[row] for name, value in labelled(CLASSIFIER, 0).items()} for row in range(3)]
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", per_device_train_batch_size=2,
        **{"num_train_epochs": 3, **changes},
    )  # fmt: skip
    training = DepthTraining([4, 2], teacher=teacher, keep_predictions=place)
    return DepthTrainer(model_of(CLASSIFIER), arguments, train_dataset=data, depth_training=training)


def test_a_trainer_asks_in_the_first_epoch_and_another_run_not_at_all(tmp_path: Path) -> None:
    place, teacher = tmp_path / "kept", model_of(CLASSIFIER, seed=3)
    first = trainer_for(tmp_path / "one", place, teacher)
    first.train()
    assert first.layer_forwards == LayerForwards(teacher=2 * 4, student=6 * 6)
    assert [path.suffix for path in place.iterdir()] == [".safetensors"]
    again = trainer_for(tmp_path / "two", place, teacher)
    again.train()
    assert again.layer_forwards == LayerForwards(teacher=0, student=6 * 6)
    assert_same_tensors(again.model.state_dict(), first.model.state_dict(), atol=1e-6)
    assert again.evaluate(again.train_dataset)["eval_loss"] > 0
    with pytest.raises(DistillationError, match="another teacher"):
        trainer_for(tmp_path / "three", place, model_of(CLASSIFIER, seed=4))


def test_the_teacher_is_no_part_of_the_checkpoint_and_stays_as_it_is(tmp_path: Path) -> None:
    teacher = model_of(CLASSIFIER, seed=3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = trainer_for(tmp_path, True, teacher)
    names = set(trainer.model.state_dict())
    assert teacher.train().training
    trainer.train()
    assert teacher.training
    assert set(trainer.model.state_dict()) == names
    assert_same_tensors(teacher.state_dict(), before)
    assert all(weight.grad is None for weight in teacher.parameters())
