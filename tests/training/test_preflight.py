"""What Trainer does not take is refused before its first step: at once where the source of transformers tells."""

from __future__ import annotations

import pytest
import typer
from transformers import TrainingArguments, trainer_utils, training_args
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from classifiers import model, rows, save_classifier  # noqa: F401 - fixtures
from hf_layerdrop import LayerDropConfig
from hf_layerdrop.cli import run
from hf_layerdrop.cli.training_flags import config_flags, read_flags, training_fields
from hf_layerdrop.cli.training_values import _choices, _reporters
from hf_layerdrop.distillation.run import distill
from hf_layerdrop.errors import TaskError, TrainingArgumentsError
from hf_layerdrop.tasks.data import load_task_data
from hf_layerdrop.tasks.registry import TASKS
from hf_layerdrop.training.preflight import check_best_metric
from hf_layerdrop.training.train import train
from light import run_lightly

AT_ONCE = [
    ("--per_device_train_batch_size=0", "1 or more"),
    ("--per_device_eval_batch_size=-3", "1 or more"),
    ("--gradient_accumulation_steps=0", "1 or more"),
    ("--max_steps=0", "1 or more, or -1"),
    ("--max_steps=-2", "1 or more, or -1"),
    ("--num_train_epochs=0", "above 0"),
    ("--num_train_epochs=inf", "a finite number, above 0"),
    ("--learning_rate=nan", "a finite number, 0 or more"),
    ("--learning_rate=-1e-5", "0 or more"),
    ("--adam_beta2=1", "from 0 to less than 1"),
    ("--label_smoothing_factor=1.5", "from 0 to 1"),
    ("--eval_steps=0", "above 0"),
    ("--lr_scheduler_type=foo", "cosine_with_restarts"),
    ("--optim=adamw_torhc", "did you mean adamw_torch?"),
    ("--eval_strategy=foo", "no, steps, epoch"),
    ("--save_strategy=bes", "did you mean best?"),
    ("--hub_strategy=x", "every_save"),
    ("--report_to=foo", "tensorboard"),
    ("--metric_for_best_model=acuracy", "did you mean accuracy?"),
    ("--metric_for_best_model=depth_2_f1", "accuracy, loss"),
]
BEFORE_THE_FIRST_STEP = [
    (["--report_to", "wandb"], "wandb"),
    (["--push_to_hub"], "leave push_to_hub out"),
    (["--lr_scheduler_kwargs", '{"a": 3}'], "unexpected keyword argument 'a'"),
    (["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
    (["--metric_for_best_model", "depth_3_accuracy"], "no such depth is evaluated"),
    (["--batch_eval_metrics"], "batch_eval_metrics"),
    (["--eval_do_concat_batches", "no"], "eval_do_concat_batches=False"),
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


@pytest.mark.parametrize(("flag", "said"), AT_ONCE)
def test_a_value_that_no_trainer_takes_is_refused_at_once(flag, said, command, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out, errors = run_lightly(*command, flag)
    assert (code, out) == (2, "")
    assert said in errors
    assert flag.partition("=")[0].lstrip("-") in errors
    assert errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("flags", "said"), BEFORE_THE_FIRST_STEP, ids=lambda value: value[0] if value else None)
def test_what_trainer_refuses_is_one_sentence_and_leaves_no_folder(flags, said, command, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert run([*command, *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert "--debug" not in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["learning_rate", "max_steps", "num_train_epochs", "adam_beta1", "eval_steps"])
def test_a_config_file_has_the_same_ranges(name):
    for value in (-0.5, float("nan")) if name != "max_steps" else (0, -2):
        with pytest.raises(typer.BadParameter, match=f"--{name} is .*; it must be"):
            config_flags({name: value}, options=[])


@pytest.mark.parametrize("name", ["learning_rate", "max_steps", "num_train_epochs", "adam_beta1", "eval_steps"])
def test_usual_values_pass(name):
    usual = {"learning_rate": "0", "max_steps": "-1", "num_train_epochs": "0.5", "adam_beta1": "0", "eval_steps": "0.1"}
    assert read_flags([f"--{name}", usual[name]], options=[]) == {name: [usual[name]]}


def test_choices_are_those_of_transformers():
    named = {part for kind in training_fields().values() for part in kind.split(" | ")} & set(_choices())
    assert {"SchedulerType", "IntervalStrategy", "SaveStrategy", "HubStrategy", "OptimizerNames"} <= named
    for name in named:
        enum = getattr(trainer_utils, name, None) or getattr(training_args, name)
        assert set(_choices()[name]) == {member.value for member in enum}
        for value in _choices()[name]:
            field = next(field for field, kind in training_fields().items() if name in kind.split(" | "))
            assert read_flags([f"--{field}", value], options=[])
    assert set(_reporters()) == set(INTEGRATION_TO_CALLBACK)
    assert read_flags(["--report_to", "none"], options=[]) == {"report_to": ["none"]}
    with pytest.raises(typer.BadParameter, match="tensorboard"):
        read_flags(["--report_to", "wandb", "foo"], options=[])


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


def test_the_best_metric_is_one_of_the_task():
    for name in (None, "accuracy", "eval_f1", "loss", "eval_loss", "depth_6_f1", "eval_depth_encoder_2_loss"):
        check_best_metric(name, ("f1", "accuracy"), "mrpc")
    for name in ("matthews", "eval_depth_6", "depth_6_matthews", "f2"):
        with pytest.raises(TaskError, match=f"metric_for_best_model is '{name}'.*f1, accuracy, loss"):
            check_best_metric(name, ("f1", "accuracy"), "mrpc")
