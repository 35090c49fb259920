"""The distill command: a plain student, what it cost, and runs that go on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from classifiers import model, rows  # noqa: F401 - fixtures
from conftest import (
    assert_same_tensors,
    build,
)
from hf_layerdrop.cli import run
from hf_layerdrop.distillation.config import DistillationConfig

FLAGS = ("--max_steps", "2", "--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "4")


def command(model, rows, output, *more):
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--text-columns", "sentence"]
    return ["distill", str(model), *files, "--output", str(output), *more]


def test_the_command_writes_a_plain_student_and_prints_what_it_cost(model, rows, tmp_path, capsys):
    output = tmp_path / "out" / "student"
    assert run([*command(model, rows, output, "--keep-layers", "3", *FLAGS)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("teacher", "cut, untrained", "distilled student", "accuracy"))
    assert "Layer forwards in training: 14 (8 of the teacher, 6 of the student)" in printed
    assert [path.name for path in output.parent.iterdir()] == ["student"]  # no checkpoints are left
    student = AutoModelForSequenceClassification.from_pretrained(output)
    teacher = AutoModelForSequenceClassification.from_pretrained(model)
    assert student.config.num_hidden_layers == 3
    weights = [network.bert.encoder.layer[0].output.dense.weight for network in (student, teacher)]
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, atol=0.01)
    assert AutoTokenizer.from_pretrained(output)("good film").input_ids
    provenance = json.loads((output / "config.json").read_text())["hf_layerdrop"]
    assert provenance["keep_layers"] == {"encoder": [0, 1, 3]}
    assert provenance["distilled_with"] == DistillationConfig().to_dict()
    card = (output / "README.md").read_text()
    assert "trained to imitate the whole model" in card
    assert "weights unchanged" not in card


def test_the_command_goes_on_from_its_own_checkpoints(model, rows, tmp_path, capsys):
    ends = []
    for name in ("whole", "stopped"):
        output = tmp_path / name
        flags = (*FLAGS[2:], "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2")
        if name == "stopped":  # as if the run had been killed after two steps
            (tmp_path / "kept" / "checkpoint-4").rename(tmp_path / "unused")
            flags += ("--resume_from_checkpoint", "last")
        assert run(command(model, rows, output, *flags, "--output_dir", str(tmp_path / "kept"))) == 0
        ends.append(load_file(output / "model.safetensors"))
    assert_same_tensors(*ends)
    assert (tmp_path / "kept").is_dir()  # a folder that was named is the user's
    other = ("--keep-layers", "0,1", "--output_dir", str(tmp_path / "kept"), "--resume_from_checkpoint", "last")
    assert run(command(model, rows, tmp_path / "other", *other, "--use_cpu")) == 2
    assert "[0, 3]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-layers", "all"], "all 4 layers of the encoder"),
        (["--keep-layers", "9"], "from 1 to 4"),
        (["--temperature", "0"], "above 0"),
        (["--hard-weight", "-1"], "hard_weight is -1.0"),
        (["--soft-weigth", "1"], "--soft-weight"),
        (["--task", "mnli"], "3 labels"),
        (["--task", "mlm"], "Task mlm is no classification of texts"),
        (["--task", "token-classification"], "Task token-classification is no classification"),
        (["--train-file", "none.csv"], "none.csv"),
        (["--resume_from_checkpoint"], "no complete checkpoint"),
        (["--output", "."], "--overwrite"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(model, rows, tmp_path, arguments, said, capsys):
    assert run(command(model, rows, tmp_path / "out", *arguments)) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [rows]


def test_a_model_without_a_task_head_is_no_teacher(rows, tmp_path, capsys):
    build("BertForMaskedLM").save_pretrained(tmp_path / "mlm")
    assert run(command(tmp_path / "mlm", rows, tmp_path / "out")) == 2
    assert "BertForMaskedLM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
