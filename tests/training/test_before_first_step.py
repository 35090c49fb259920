"""What Trainer does not take is refused before its first step, in one sentence, and leaves no folder."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop import LayerDropConfig
from hf_layerdrop.cli import run
from hf_layerdrop.distillation.run import distill
from hf_layerdrop.errors import TaskError, TrainingArgumentsError
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import TASKS
from hf_layerdrop.training.before_first_step import check_arguments
from hf_layerdrop.training.train import train

WRONG = [
    # by transformers' parser
    ("--lr_scheduler_type=foo", "cosine_with_restarts"),
    ("--optim=adamw_torhc", "adamw_torch"),
    ("--eval_strategy=foo", "epoch"),
    ("--hub_strategy=x", "every_save"),
    ("--max_steps=many", "invalid int value"),
    ("--bf16=perhaps", "true/false"),
    # by TrainingArguments
    ("--logging_steps=1.5", "must be an integer"),
    ("--warmup_steps=-1", ">= 0"),
    ("--lr_scheduler_kwargs={a", "TrainingArguments refuses"),
    # by Trainer
    ("--per_device_train_batch_size=0", "batch_size=0"),
    ("--num_train_epochs=inf", "infinity"),
    ("--learning_rate=nan", "Invalid learning rate: nan"),
    ("--learning_rate=-1e-5", "Invalid learning rate: -1e-05"),
    ("--adam_beta2=1", "Invalid beta"),
    ("--dataloader_num_workers=-1", "num_workers"),
    ("--report_to=foo", "tensorboard"),
    ("--report_to=wandb", "wandb"),
    ("--push_to_hub", "offline mode is enabled"),
    ('--lr_scheduler_kwargs={"a": 3}', "unexpected keyword argument 'a'"),
    ("--lr_scheduler_type=cosine_with_min_lr", "min_lr"),
    # by us, since Trainer would say it after the training, or without a name
    ("--seed=-1", "seed is -1; it must be from 0 to 4294967295"),
    ("--per_device_eval_batch_size=-3", "per_device_eval_batch_size is -3; it must be from 1"),
    ("--gradient_accumulation_steps=0", "gradient_accumulation_steps is 0; it must be from 1"),
    ("--metric_for_best_model=acuracy", "accuracy, loss"),
    ("--metric_for_best_model=depth_2_f1", "accuracy, loss"),
    ("--metric_for_best_model=depth_3_accuracy", "no such depth is evaluated"),
    ("--batch_eval_metrics", "batch_eval_metrics"),
    ("--eval_do_concat_batches=no", "eval_do_concat_batches=False"),
]


@pytest.fixture
def command(model, rows, tmp_path):
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--use_cpu"]
    out = ["--output_dir", str(tmp_path / "made" / "here")]
    return ["train", "--model", str(model), "--task", "sst2", *files, *out, "--eval-depths", "4,2"]


@pytest.fixture
def data(rows):
    return load_task_data(TASKS["sst2"], train_file=rows, validation_file=rows)


def settings(folder, **changes):
    plain = {"max_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **{**plain, **changes})


@pytest.mark.parametrize(("flag", "said"), WRONG, ids=[flag for flag, _ in WRONG])
def test_what_is_refused_is_one_line_and_leaves_no_folder(flag, said, command, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    short = [] if "max_steps" in flag or "epochs" in flag else ["--max_steps", "2"]
    assert run([*command, *short, flag]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert "--debug" not in line
    assert sorted(tmp_path.iterdir()) == before


def test_from_python_too_nothing_is_left_and_the_cause_is_kept(model, data, tmp_path):
    arguments = settings(tmp_path / "a" / "run", per_device_train_batch_size=0)
    for start in (
        lambda: train(data, str(model), arguments, layerdrop=LayerDropConfig(0.2)),
        lambda: distill(data, str(model), arguments, tmp_path / "b" / "student"),
    ):
        with pytest.raises(TrainingArgumentsError, match="cannot start") as caught:
            start()
        assert caught.value.__cause__ is not None
        assert not (tmp_path / "a").exists()
        assert not (tmp_path / "b").exists()


def test_a_folder_that_was_there_stays(model, data, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(TrainingArgumentsError):
        train(data, str(model), settings(tmp_path / "run", report_to="wandb"))
    assert (tmp_path / "run").is_dir()


def test_what_goes_wrong_in_a_step_is_told_as_it_is(model, data, tmp_path):
    def break_forward(trainer, _):
        def fail(*_, **__):
            raise ValueError("in the model")

        trainer.model.register_forward_pre_hook(fail)

    with pytest.raises(ValueError, match=r"^in the model$") as caught:
        train(data, str(model), settings(tmp_path / "run"), on_start=break_forward)
    assert not isinstance(caught.value, TrainingArgumentsError)


def test_what_goes_wrong_with_the_rows_is_told_as_it_is(model, data, tmp_path):
    def break_rows(trainer, _):
        def fail(_):
            raise ValueError("in the rows")

        trainer.data_collator = fail

    with pytest.raises(ValueError, match=r"^in the rows$"):
        train(data, str(model), settings(tmp_path / "run"), on_start=break_rows)


def test_the_best_metric_is_one_of_the_task(tmp_path):
    def check(name):
        check_arguments(settings(tmp_path, metric_for_best_model=name), ("f1", "accuracy"), "mrpc")

    for name in (None, "accuracy", "eval_f1", "loss", "eval_loss", "depth_6_f1", "eval_depth_encoder_2_loss"):
        check(name)
    for name in ("matthews", "eval_depth_6", "depth_6_matthews", "f2"):
        with pytest.raises(TaskError, match=f"metric_for_best_model is '{name}'.*f1, accuracy, loss"):
            check(name)
