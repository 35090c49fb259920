"""A Trainer for several depths: the gradients of a loop, accumulation, resume, precision, logs and the cost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import SGD
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainingArguments,
)

from conftest import assert_same_tensors, build
from depth_models import labelled, model_of
from hf_layerdrop import (
    DepthTrainer,
    DepthTraining,
    LayerDropConfig,
    Seq2SeqDepthTrainer,
    backward_depths,
    inject_layerdrop,
    prune_layers,
)
from hf_layerdrop.distillation.budget import LayerForwards
from hf_layerdrop.errors import DistillationError, LayerDropConfigError
from hf_layerdrop.evaluation.trainer_source import has_own_evaluation

CLASSIFIER, CAUSAL, SEQ2SEQ = "BertForSequenceClassification", "LlamaForCausalLM", "BartForConditionalGeneration"
ALL = DepthTraining([4, 3, 2], per_step=3)


def rows(head: str, batches: int = 4) -> list[dict[str, torch.Tensor]]:
    found = []
    for seed in range(batches):
        batch = labelled(head, seed)
        found += [{name: value[row] for name, value in batch.items()} for row in range(3)]
    return found


def trainer_for(
    model: PreTrainedModel, folder: Path, head: str = CLASSIFIER, training: Any = ALL, **changes: Any
) -> DepthTrainer:
    kind = Seq2SeqTrainingArguments if head == SEQ2SEQ else TrainingArguments
    arguments = kind(
        str(folder),
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **{
            "max_steps": 2,
            "per_device_train_batch_size": 3,
            "save_strategy": "no",
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            **changes,
        },
    )
    cls = Seq2SeqDepthTrainer if head == SEQ2SEQ else DepthTrainer
    optimizer = SGD(model.parameters(), lr=0.01)
    return cls(model, arguments, train_dataset=rows(head), depth_training=training, optimizers=(optimizer, None))


@pytest.mark.parametrize("head", [CLASSIFIER, CAUSAL, SEQ2SEQ, "BertForQuestionAnswering", "RobertaForMaskedLM"])
def test_it_trains_as_a_loop_of_ones_own(head: str, tmp_path: Path) -> None:
    trained, looped = model_of(head), model_of(head)
    names = [f"depth_{name}" for name in ((4, 3, 2) if head != SEQ2SEQ else ())]
    trainer_for(trained, tmp_path, head).train()
    optimizer = SGD(looped.parameters(), lr=0.01)
    for step in range(2):
        losses = backward_depths(looped, labelled(head, step), ALL, step=step)
        assert {f"loss_{name}" for name in names} <= set(losses)
        optimizer.step()
        optimizer.zero_grad()
    assert_same_tensors(trained.state_dict(), looped.state_dict(), atol=1e-6)
    assert not torch.equal(next(trained.parameters()), next(model_of(head).parameters()))


@pytest.mark.parametrize("head", [CLASSIFIER, CAUSAL, SEQ2SEQ])
def test_accumulated_batches_are_one_large_batch(head: str, tmp_path: Path) -> None:
    ends = []
    for size, accumulated in ((6, 1), (3, 2), (2, 3)):
        model = model_of(head)
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        trainer_for(model, tmp_path, head, **sizes).train()
        ends.append(dict(model.state_dict()))
    assert_same_tensors(ends[1], ends[0], atol=1e-6)
    assert_same_tensors(ends[2], ends[0], atol=1e-6)


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(tmp_path: Path) -> None:
    training = DepthTraining([4, 3, 2, 1], per_step=3, whole_every=2)
    whole, log = model_of(CLASSIFIER), {"logging_steps": 1}
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    uninterrupted = trainer_for(whole, tmp_path / "one", training=training, **steps, **log)
    uninterrupted.train()
    resumed = model_of(CLASSIFIER, seed=1)
    again = trainer_for(resumed, tmp_path / "two", training=training, **steps, **log)
    again.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-3"))
    assert_same_tensors(resumed.state_dict(), whole.state_dict())
    assert again.layer_forwards == uninterrupted.layer_forwards
    drawn = [sorted(name for name in entry if name.startswith("loss_")) for entry in again.state.log_history]
    assert drawn == [
        sorted(name for name in entry if name.startswith("loss_")) for entry in uninterrupted.state.log_history
    ]
    assert len({tuple(names) for names in drawn if names}) > 1


def test_the_log_has_the_loss_of_each_depth_and_the_layers_are_counted(tmp_path: Path) -> None:
    model = model_of(CLASSIFIER)
    expected = []
    for seed in range(2):  # the learning rate is 0: the losses of both steps are those of the cut models
        for depth in (4, 3, 2):
            cut = prune_layers(copy.deepcopy(model), depth).train()
            expected.append(float(cut(**labelled(CLASSIFIER, seed)).loss))
    trainer = trainer_for(model, tmp_path, logging_steps=2)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.train()
    entry = trainer.state.log_history[0]
    for place, depth in enumerate((4, 3, 2)):
        assert entry[f"loss_depth_{depth}"] == pytest.approx((expected[place] + expected[place + 3]) / 2, abs=1e-5)
    assert entry["loss"] > sum(entry[f"loss_depth_{depth}"] for depth in (4, 3, 2)) - 1e-4
    assert trainer.layer_forwards == LayerForwards(teacher=0, student=2 * (4 + 3 + 2))


def test_a_step_waits_for_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a tensor was read")

    trainer = trainer_for(model_of(CLASSIFIER), tmp_path)
    model, batch = trainer.model, labelled(CLASSIFIER)
    del batch["attention_mask"]  # transformers reads it, to see whether there is padding
    trainer.current_gradient_accumulation_steps = 1
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    trainer.training_step(model, batch)


def test_evaluation_is_of_the_whole_model_and_as_trainer_does(tmp_path: Path) -> None:
    model = model_of(CLASSIFIER)
    trainer = trainer_for(model, tmp_path)
    trainer.eval_dataset = rows(CLASSIFIER, 1)
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(float(model.eval()(**labelled(CLASSIFIER)).loss), abs=1e-6)
    assert not has_own_evaluation(trainer)


def test_the_checkpoint_is_plain(tmp_path: Path) -> None:
    model = model_of(CLASSIFIER)
    names = set(model.state_dict())
    trainer = trainer_for(model, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == names
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").train()
    batch = labelled(CLASSIFIER)
    assert torch.allclose(plain(**batch).logits, model(**batch).logits, atol=1e-6)
    assert "hf_layerdrop" not in (tmp_path / "out" / "config.json").read_text()


def test_mixed_precision_trains(tmp_path: Path) -> None:
    model = model_of(CLASSIFIER)
    trainer = trainer_for(model, tmp_path, bf16=True, logging_steps=1)
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert next(model.parameters()).dtype is torch.float32


def test_checkpointing_by_trainer_changes_nothing(tmp_path: Path) -> None:
    plain, checkpointed = model_of(CLASSIFIER), model_of(CLASSIFIER)
    trainer_for(plain, tmp_path).train()
    trainer_for(checkpointed, tmp_path, activation_checkpointing=True).train()
    assert_same_tensors(checkpointed.state_dict(), plain.state_dict(), atol=1e-6)


def test_each_further_training_goes_on_with_the_draws(tmp_path: Path) -> None:
    training = DepthTraining([4, 3, 2, 1], per_step=3)
    trainer = trainer_for(model_of(CLASSIFIER), tmp_path, training=training, max_steps=4, logging_steps=1)
    drawn = []
    for _ in range(2):
        trainer.train()
        drawn.append([sorted(name for name in entry if "depth" in name) for entry in trainer.state.log_history[:4]])
    assert drawn[0] != drawn[1]


def test_an_injected_list_needs_no_settings(tmp_path: Path) -> None:
    model = inject_layerdrop(model_of(CLASSIFIER), LayerDropConfig.for_depths([4, 2]))
    trainer = trainer_for(model, tmp_path, training=None, logging_steps=1)
    trainer.train()
    assert {"loss_depth_4", "loss_depth_2"} <= set(trainer.state.log_history[0])


def test_a_trainer_that_was_built_before_tells_its_steps(tmp_path: Path) -> None:
    """No model was injected when it was built, so that Trainer did not have our callback."""

    class Steps(TrainerCallback):
        seen: list[int]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append(trainer.depth_plan.place[0])

    trainer, steps = trainer_for(model_of(CLASSIFIER), tmp_path), Steps()
    steps.seen = []
    trainer.add_callback(steps)
    trainer.train()
    assert steps.seen == [0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"args": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor"),
        ({"compute_loss_func": lambda *_: None}, "compute_loss_func"),
        ({"model_init": lambda: build(CLASSIFIER), "model": None}, "model_init"),
    ],
)
def test_arguments_of_trainer_that_ask_for_another_loss(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    changes = dict(changes)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, **changes.pop("args", {}))
    with pytest.raises(DistillationError, match=said):
        DepthTrainer(**{"model": build(CLASSIFIER), "args": arguments, "depth_training": [4, 2], **changes})


def test_depths_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(LayerDropConfigError, match="twice"):
        trainer_for(model_of(CLASSIFIER), tmp_path, training=[4, 2, 2])
